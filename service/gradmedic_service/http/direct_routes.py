"""Direct routes: they find the arguments of their endpoint with little work, and run it on a thread of their own pool.

FastAPI solves the dependencies of each request anew: a coroutine, a cache key and a result object for each of them, two
exit stacks, and two layers that look for errors. That takes longer than all other work of the event loop on a small
request. A direct route does the same in one loop over a plan that is made when the route is declared.

A direct route is declared and documented like every other one, and answers alike, errors included. It accepts less: its
endpoint is a plain function that returns the response itself. Its parameters are dependencies that take the request
alone, parameters of the path, and single headers and parameters of the query that may be missing.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request
from fastapi._compat import ModelField, field_annotation_is_sequence
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gradmedic_service.services import services_of

OPTIONAL_KINDS = ("header_params", "query_params")
"""Kinds of parameters that a request to a direct route may leave out."""
OTHER_KINDS = ("cookie_params", "body_params")
"""Kinds of parameters that a direct route does not have."""
READ_KINDS = ("path_params", *OPTIONAL_KINDS, *OTHER_KINDS, "dependencies")
"""Kinds of parameters that the dependencies of a direct route do not have."""


class DirectRoute(APIRoute):
    """A route for the most frequent request. Use it as `api_router(..., route_class=DirectRoute)`.

    Raises TypeError, when it is declared, for an endpoint that needs what a direct route does not do.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        if inspect.iscoroutinefunction(endpoint):
            raise TypeError(f"{endpoint.__name__} is a coroutine: a direct route runs its endpoint on a thread")
        self._dependencies = tuple(_plan_dependencies(self.dependant))
        self._parameters = tuple(_plan_parameters(self.dependant))

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Raises ServiceError, RequestValidationError, and HTTPException for another method."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive, send)
        arguments: dict[str, Any] = {}
        for name, find in self._dependencies:
            found = await find(request)
            if name is not None:
                arguments[name] = found
        errors: list[Any] = []
        for parameter in self._parameters:
            arguments[parameter.name], found_errors = parameter.find(request)
            errors += found_errors
        if errors:
            raise RequestValidationError(errors)
        threads = services_of(request.app).request_threads
        response = await run_on_thread(threads, partial(self.endpoint, **arguments))
        await response(scope, receive, send)


async def run_on_thread(threads: ThreadPoolExecutor, function: Callable[[], Response]) -> Response:
    """Return what a function returns on a thread, in which the context variables of the request are set."""
    return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, function)


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A parameter of the path or of the query, or a header."""

    name: str
    alias: str
    place: str
    """The attribute of the request that has its value: `path_params`, `headers` or `query_params`."""
    location: tuple[str, str]
    """The first parts of the place of an error."""
    validate: Callable[..., tuple[Any, list[Any]]]
    default: Any

    def find(self, request: Request) -> tuple[Any, list[Any]]:
        """Return the value in a request, and the errors of its validation."""
        value = getattr(request, self.place).get(self.alias)
        if value is None:
            return self.default, []
        return self.validate(value, {}, loc=self.location)


def _plan_dependencies(dependant: Dependant) -> Iterator[tuple[str | None, Callable[[Request], Awaitable[Any]]]]:
    """Yield the parameter and the function of each dependency, in the order of their declaration. Raises TypeError."""
    for dependency in dependant.dependencies:
        call: Any = dependency.call
        is_coroutine = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__)
        reads_more = any(getattr(dependency, kind) for kind in READ_KINDS)
        if not is_coroutine or reads_more or dependency.request_param_name is None:
            raise TypeError(f"the dependency {dependency.name} is no coroutine that takes the request alone")
        yield dependency.name, call


def _plan_parameters(dependant: Dependant) -> Iterator[_Parameter]:
    """Yield the parameters of path, query and headers, in the order of FastAPI. Raises TypeError for other ones."""
    others = [field.name for kind in OTHER_KINDS for field in getattr(dependant, kind)]
    optional = [field for kind in OPTIONAL_KINDS for field in getattr(dependant, kind)]
    others += [field.name for field in optional if field.field_info.is_required() or _is_list(field)]
    if others:
        raise TypeError(f"a direct route does not find {', '.join(others)}")
    for field in dependant.path_params:
        yield _Parameter(field.name, field.alias, "path_params", ("path", field.alias), field.validate, None)
    for field in dependant.query_params:
        yield _Parameter(field.name, field.alias, "query_params", ("query", field.alias), field.validate, field.default)
    for field in dependant.header_params:
        alias = field.name.replace("_", "-") if field.alias == field.name else field.alias
        yield _Parameter(field.name, alias, "headers", ("header", alias), field.validate, field.default)


def _is_list(field: ModelField) -> bool:
    return field_annotation_is_sequence(field.field_info.annotation)
