"""The route table: each route's path template and query parameters, and the methods of each path.

It is built once, from the declarations of the routes. A request's route is found by one regular expression for each
method, which has the expressions of all its routes in their order. FastAPI tries one route after the other in Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Scope

from gradmedic.protocol.names import text_error
from gradmedic.protocol.service import FieldError
from gradmedic_service.http.errors import InvalidRequest

MAX_QUERY_FIELDS = 2_000
"""Query parameters of one request: enough for a thousand layers and their statistics."""
GROUP_NAME = re.compile(r"\?P<\w+>")
"""The name of a group in the expression of a route."""


class RouteTable:
    """The routes of an application to which every router has been added."""

    def __init__(self, app: FastAPI) -> None:
        self._templates: dict[Callable[..., Any], str] = {}
        self._queries: dict[Callable[..., Any], frozenset[str]] = {}
        self._prefixes: dict[Callable[..., Any], tuple[str, ...]] = {}
        self._methods: list[tuple[re.Pattern[str], frozenset[str]]] = []
        self._fixed: dict[str, frozenset[str]] = {}
        """Methods of each path without parameters, as `/runs/counts`, which no value of a parameter can be."""
        self._finders = _make_finders(app.routes)
        for route in iter_route_contexts(app.routes):
            endpoint, dependant = route.endpoint, getattr(route, "dependant", None)
            if endpoint is None or dependant is None:
                continue
            self._templates[endpoint] = (route.path or "").replace(":path", "")
            self._queries[endpoint] = frozenset(_query_names(dependant))
            self._prefixes[endpoint] = tuple(_query_prefixes(dependant))
            methods = frozenset(route.methods or ())
            self._methods.append((route.path_regex, methods))
            if route.path is not None and "{" not in route.path:
                self._fixed[route.path] = self._fixed.get(route.path, frozenset()) | methods

    def find(self, scope: Scope) -> Route | None:
        """Return the first route that matches the method and the path of a request, as FastAPI would choose it.

        None if there is none, or if something that is no route comes first, such as a mounted application.
        """
        finder = self._finders.get(scope["method"])
        return None if finder is None else finder.find(scope["path"])

    def template(self, scope: Scope) -> str | None:
        """Return the path of a request's route, with the names of its parameters; None if no route matches."""
        return self._templates.get(scope.get("endpoint"))  # type: ignore[arg-type] # None is not a key

    def check_url(self, scope: Scope) -> None:
        """Raise InvalidRequest with the parameters of the URL that its route does not declare or no database stores.

        Raises HTTPException if the path is a fixed one that does not accept the method, where another route matched.
        """
        if scope["method"] not in self._fixed.get(scope["path"], (scope["method"],)):
            raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED)
        errors = list(_text_errors(scope["path_params"].items()))
        query: bytes = scope["query_string"]
        declared = self._queries.get(scope.get("endpoint"))  # type: ignore[arg-type] # None is not a key
        if query and declared is not None:
            errors += self._query_errors(query, declared, self._prefixes[scope["endpoint"]])
        if errors:
            raise InvalidRequest(errors)

    @staticmethod
    def _query_errors(query: bytes, declared: frozenset[str], prefixes: tuple[str, ...]) -> Iterator[FieldError]:
        try:
            given = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
        except ValueError:
            raise InvalidRequest.at("query", f"has more than {MAX_QUERY_FIELDS} parameters") from None
        names = [*sorted(declared), *(f"{prefix}NAME" for prefix in prefixes)]
        choices = f"; there are {', '.join(names)}" if names else ""
        known = {name for name, _ in given if name in declared or name.startswith(prefixes)}
        for name in dict.fromkeys(name for name, _ in given if name not in known):
            yield FieldError(path=name[:100] or "query", message=f"is no parameter{choices}")
        yield from _text_errors((name, value) for name, value in given if name in known)
        for name in known - declared:
            if (message := text_error(name)) is not None:
                yield FieldError(path=name[:100], message=f"has a name that {message}")

    def methods(self, path: str) -> frozenset[str]:
        """Return the methods that the routes of a path accept."""
        if path in self._fixed:
            return self._fixed[path]
        return frozenset().union(*(methods for pattern, methods in self._methods if pattern.match(path)))


class _RouteFinder:
    """Finds the route of a path among those that accept a method. A mounted application accepts every method."""

    def __init__(self, routes: Iterable[Route | Mount], method: str) -> None:
        self._routes = [route for route in routes if isinstance(route, Mount) or method in (route.methods or ())]
        expressions = (GROUP_NAME.sub("?:", route.path_regex.pattern) for route in self._routes)
        self._expression = re.compile("|".join(f"({expression})" for expression in expressions))

    def find(self, path: str) -> Route | None:
        match = self._expression.match(path)
        if match is None or match.lastindex is None:
            return None
        route = self._routes[match.lastindex - 1]
        return route if isinstance(route, Route) else None


def _make_finders(routes: Iterable[BaseRoute]) -> dict[str, _RouteFinder]:
    """Return a finder for each method that a route accepts. Raises TypeError for a route that has no expression."""
    known = [route for route in routes if isinstance(route, Route | Mount)]
    unknown = [route for route in routes if not isinstance(route, Route | Mount)]
    if unknown:
        raise TypeError(f"routes of a kind that cannot be found: {unknown}")
    methods = {method for route in known if isinstance(route, Route) for method in route.methods or ()}
    return {method: _RouteFinder(known, method) for method in methods}


def _text_errors(parameters: Iterable[tuple[str, str]]) -> Iterator[FieldError]:
    for name, value in parameters:
        if (message := text_error(value)) is not None:
            yield FieldError(path=name, message=message)


def _query_prefixes(dependant: Dependant) -> Iterator[str]:
    """Yield the prefixes of further query parameters, which a dependency of a route declares as `query_prefixes`."""
    for dependency in dependant.dependencies:
        yield from getattr(dependency.call, "query_prefixes", ())
        yield from _query_prefixes(dependency)


def _query_names(dependant: Dependant) -> Iterator[str]:
    """Yield the names of the query parameters that a route or one of its dependencies declares."""
    yield from (parameter.alias for parameter in dependant.query_params)
    for dependency in dependant.dependencies:
        yield from _query_names(dependency)
