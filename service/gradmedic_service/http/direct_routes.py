"""Direct routes: they find the arguments of their endpoint with little work, and run it on a thread of their own pool.

FastAPI solves the dependencies of each request anew: a coroutine, a cache key and a result object for each of them, two
exit stacks, and two layers that look for errors. That takes longer than all other work of the event loop on a small
request. A direct route does the same in one loop over a plan that is made when the route is declared.

A direct route is declared and documented like every other one, and answers alike, errors included. It accepts less: its
endpoint is a plain function that returns the response itself. Its parameters are dependencies that take the request
alone, parameters of the path and of the query, and headers.
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
from fastapi._compat import ModelField, field_annotation_is_sequence, get_missing_field_error, lenient_issubclass
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gradmedic_service.services import services_of

PLACES = {"path": "path_params", "query": "query_params", "header": "headers"}
"""Attributes of a request, by the places of the parameters that a direct route finds there."""
OTHER_KINDS = ("cookie_params", "body_params")
"""Kinds of parameters that a direct route does not have."""
OBJECTS = (
    "request_param_name",
    "websocket_param_name",
    "http_connection_param_name",
    "response_param_name",
    "background_tasks_param_name",
    "security_scopes_param_name",
)
"""Parameters that are objects of FastAPI, which the endpoint of a direct route does not get."""
READ_KINDS = ("path_params", "query_params", "header_params", *OTHER_KINDS, "dependencies")
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
    """One of `PLACES`."""
    is_list: bool
    """Whether a request may have several of it."""
    is_required: bool
    default: Any
    validate: Callable[..., tuple[Any, list[Any]]]

    def find(self, request: Request) -> tuple[Any, list[Any]]:
        """Return the value in a request, and the errors of its validation."""
        values = getattr(request, PLACES[self.place])
        value = values.getlist(self.alias) or None if self.is_list else values.get(self.alias)
        location = (self.place, self.alias)
        if value is not None:
            return self.validate(value, {}, loc=location)
        return (None, [get_missing_field_error(location)]) if self.is_required else (self.default, [])


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
    others += [name for kind in OBJECTS if (name := getattr(dependant, kind)) is not None]
    fields = [(place, field) for place in PLACES for field in getattr(dependant, f"{place}_params")]
    others += [field.name for _, field in fields if not _is_plain(field)]
    if others:
        raise TypeError(f"a direct route does not find {', '.join(others)}")
    for place, field in fields:
        is_header_name = place == "header" and field.alias == field.name
        yield _Parameter(
            name=field.name,
            alias=field.name.replace("_", "-") if is_header_name else field.alias,
            place=place,
            is_list=field_annotation_is_sequence(field.field_info.annotation),
            is_required=field.field_info.is_required(),
            default=field.default,
            validate=field.validate,
        )


def _is_plain(field: ModelField) -> bool:
    """Return whether a parameter has one value or a list of values under one name, and a default that nothing changes.

    FastAPI can do more with the other ones: models, names for the validation only, defaults that are validated.
    """
    info: Any = field.field_info
    return not (
        lenient_issubclass(info.annotation, BaseModel)
        or info.validation_alias not in (None, field.alias)
        or info.validate_default is True
        or getattr(info, "convert_underscores", True) is False
        or isinstance(field.default, list | dict | set)
    )
