"""Authorization: each route declares its requirement, as `principal: MayRead` or `dependencies=[PUBLIC]`.

There is no default. `check_requirements` walks the whole route table, mounted applications included, and the service
does not start if a route declares nothing. So a public route is one that was declared public.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from anyio import sleep_forever
from fastapi import Depends, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradmedic_service.access.authentication import principal_of
from gradmedic_service.access.errors import ScopeMissing
from gradmedic_service.access.principal import TICKET, Principal
from gradmedic_service.services import services_of


class ScopeRequirement:
    """A dependency that returns the principal of a request if it has at least one of some scopes.

    Without named scopes every API key is enough.
    """

    def __init__(self, *scopes: str) -> None:
        self.scopes = scopes

    async def __call__(self, request: Request) -> Principal:
        """Authorize a request.

        Raises ApiKeyMissing, ApiKeyUnknown, ApiKeyRevoked, ApiKeyExpired, ScopeMissing, and InvalidRequest for a query
        parameter that the route does not declare, and for text in the URL that no database stores.
        """
        principal = principal_of(request.scope)
        if self.scopes and not principal.has_scope(*self.scopes):
            needed = " or ".join(repr(scope) for scope in self.scopes)
            held = ", ".join(sorted(principal.scopes))
            raise ScopeMissing(
                f"{request.method} {request.url.path} needs the scope {needed}; the API key {principal.name!r} has "
                f"{held}."
            )
        services_of(request.app).route_table.check_url(request.scope)
        return principal


class Public:
    """A dependency of routes that need no API key."""

    async def __call__(self) -> None:
        """Authorize every request."""


class PublicFiles:
    """A mounted application that needs no API key, and reads no bodies."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Serve a request.

        A response with a file waits for the end of the connection while it sends. If the request has no API key, its
        `receive` would refuse that as the reading of a body. So the application gets a `receive` that never returns.
        """
        await self._app(scope, _receive_nothing, send)


async def _receive_nothing() -> Message:
    await sleep_forever()
    raise AssertionError("unreachable: the sleep is cancelled when the answer has been sent")


PUBLIC = Depends(Public())

AnyKey = Annotated[Principal, Depends(ScopeRequirement())]
MayRead = Annotated[Principal, Depends(ScopeRequirement("read"))]
MayIngest = Annotated[Principal, Depends(ScopeRequirement("ingest"))]
MayFollow = Annotated[Principal, Depends(ScopeRequirement("read", "ingest"))]
"""For what a training job reads back: its run, whose id it has, and the run's diagnosis."""
MayRerun = Annotated[Principal, Depends(ScopeRequirement("rerun"))]
MayFollowRerun = Annotated[Principal, Depends(ScopeRequirement("read", "rerun", "worker"))]
"""For the people and workers that request reruns, run them or read their outcomes."""
MayWork = Annotated[Principal, Depends(ScopeRequirement("worker"))]
MayRedeem = Annotated[Principal, Depends(ScopeRequirement(TICKET))]
"""For the process of a trial on another machine than its worker's."""
MayAdminister = Annotated[Principal, Depends(ScopeRequirement("admin"))]

Requirement = ScopeRequirement | Public


def route_requirements(app: FastAPI) -> Iterator[tuple[str, frozenset[str], Requirement | None]]:
    """Yield each route's path and methods with its requirement, None where it declares none."""
    for route in iter_route_contexts(app.routes):
        path, methods = route.path or "", frozenset(route.methods or ())
        original = route.original_route
        if isinstance(original, Mount):
            yield path, methods, Public() if isinstance(original.app, PublicFiles) else None
        else:
            yield path, methods, _find_requirement(getattr(route, "dependant", None))


def check_requirements(app: FastAPI) -> None:
    """Raise RuntimeError if a route declares no requirement."""
    undeclared = [path for path, _, requirement in route_requirements(app) if requirement is None]
    if undeclared:
        raise RuntimeError(f"routes without a requirement such as `MayRead` or `PUBLIC`: {', '.join(undeclared)}")


def _find_requirement(dependant: Dependant | None) -> Requirement | None:
    """Return the requirement among the dependencies of a route, at any depth."""
    if dependant is None:
        return None
    if isinstance(dependant.call, ScopeRequirement | Public):
        return dependant.call
    requirements = (_find_requirement(dependency) for dependency in dependant.dependencies)
    return next((requirement for requirement in requirements if requirement is not None), None)
