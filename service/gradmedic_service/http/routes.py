"""The route table as a whole: a route's template, the query parameters it knows, the methods of a path.

One idea: it is made once, from what the routes declare, and looked up by a request's endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from starlette.types import Scope

from gradmedic.protocol.service import FieldError
from gradmedic_service.http.errors import InvalidRequest

MAX_QUERY_FIELDS = 2_000
"""A thousand layers and statistics; each is looked at."""


class RouteTable:
    """What is known of every route of an application that is complete."""

    def __init__(self, app: FastAPI) -> None:
        self._templates: dict[Callable[..., Any], str] = {}
        self._queries: dict[Callable[..., Any], frozenset[str]] = {}
        self._methods: list[tuple[re.Pattern[str], frozenset[str]]] = []
        for route in iter_route_contexts(app.routes):
            endpoint, dependant = route.endpoint, getattr(route, "dependant", None)
            if endpoint is None or dependant is None:
                continue
            self._templates[endpoint] = (route.path or "").replace(":path", "")
            self._queries[endpoint] = frozenset(_query_names(dependant))
            self._methods.append((route.path_regex, frozenset(route.methods or ())))

    def template(self, scope: Scope) -> str | None:
        """Return the path of a request's route with its parameters' names, None where it has none."""
        return self._templates.get(scope.get("endpoint"))  # type: ignore[arg-type] # None is no key

    def check_query(self, scope: Scope) -> None:
        """Raise InvalidRequest naming the query parameters that the request's route does not know."""
        query: bytes = scope["query_string"]
        known = self._queries.get(scope.get("endpoint"))  # type: ignore[arg-type] # None is no key
        if not query or known is None:
            return
        try:
            given = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
        except ValueError:
            raise InvalidRequest.at("query", f"has more than {MAX_QUERY_FIELDS} parameters") from None
        unknown = dict.fromkeys(name for name, _ in given if name not in known)
        if unknown:
            there_are = f"; there are {', '.join(sorted(known))}" if known else ""
            raise InvalidRequest(
                [FieldError(path=name[:100] or "query", message=f"is no parameter{there_are}") for name in unknown]
            )

    def methods(self, path: str) -> frozenset[str]:
        """Return every method that some route takes at a path."""
        return frozenset().union(*(methods for pattern, methods in self._methods if pattern.match(path)))


def _query_names(dependant: Dependant) -> Iterator[str]:
    """Yield the query parameters that a route, or something that it depends on, declares."""
    yield from (parameter.alias for parameter in dependant.query_params)
    for one in dependant.dependencies:
        yield from _query_names(one)
