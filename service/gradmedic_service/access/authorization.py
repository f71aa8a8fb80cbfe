"""What each route needs, said by the route: `principal: MayRead`, or `dependencies=[PUBLIC]`.

One idea: there is no default. A route that does not say what it needs does not start: `require_needs` walks the whole
table, mounted applications included, and `public` is a word that somebody must have written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from gradmedic_service.access.authentication import authenticated
from gradmedic_service.access.errors import ScopeMissing
from gradmedic_service.access.principal import TICKET, Principal
from gradmedic_service.services import services_of


class Need:
    """A dependency that returns who asks, if they hold one of some scopes; without any named, every key will do."""

    def __init__(self, *scopes: str) -> None:
        self.scopes = scopes

    async def __call__(self, request: Request) -> Principal:
        """Authorize a request.

        Raises ApiKeyMissing, ApiKeyUnknown, ApiKeyRevoked, ApiKeyExpired, ScopeMissing.

        Raises InvalidRequest for a query parameter that the route does not know.
        """
        principal = authenticated(request.scope)
        if self.scopes and not principal.holds(*self.scopes):
            needed = " or ".join(repr(scope) for scope in self.scopes)
            held = ", ".join(sorted(principal.scopes))
            raise ScopeMissing(
                f"{request.method} {request.url.path} needs the scope {needed}; the API key {principal.name!r} has "
                f"{held}."
            )
        if request.scope["query_string"]:
            services_of(request.app).route_table.check_query(request.scope)
        return principal


class Public:
    """A dependency of what anybody may read who can connect."""

    async def __call__(self) -> None:
        """Let everybody pass."""


class PublicFiles:
    """A mounted application that anybody may read who can connect."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        await self._app(scope, receive, send)


PUBLIC = Depends(Public())

AnyKey = Annotated[Principal, Depends(Need())]
MayRead = Annotated[Principal, Depends(Need("read"))]
MayIngest = Annotated[Principal, Depends(Need("ingest"))]
MayFollow = Annotated[Principal, Depends(Need("read", "ingest"))]
"""For what a training job reads back: the run that it knows the id of, and its diagnosis."""
MayRerun = Annotated[Principal, Depends(Need("rerun"))]
MayFollowRerun = Annotated[Principal, Depends(Need("read", "rerun", "worker"))]
"""For whoever asks for reruns, runs them or reads what came of them."""
MayWork = Annotated[Principal, Depends(Need("worker"))]
MayRedeem = Annotated[Principal, Depends(Need(TICKET))]
"""For the process of a trial that runs elsewhere than on its worker's machine."""
MayAdminister = Annotated[Principal, Depends(Need("admin"))]


def needs(app: FastAPI) -> Iterator[tuple[str, frozenset[str], Need | Public | None]]:
    """Yield each route's path and methods with what it says it needs, None where it says nothing."""
    for route in iter_route_contexts(app.routes):
        path, methods = route.path or "", frozenset(route.methods or ())
        original = route.original_route
        if isinstance(original, Mount):
            yield path, methods, Public() if isinstance(original.app, PublicFiles) else None
        else:
            yield path, methods, _need_of(getattr(route, "dependant", None))


def require_needs(app: FastAPI) -> None:
    """Raise RuntimeError if a route does not say what it needs."""
    silent = [path for path, _, need in needs(app) if need is None]
    if silent:
        raise RuntimeError(f"routes that do not say what they need, as `MayRead` or `PUBLIC`: {', '.join(silent)}")


def _need_of(dependant: Dependant | None) -> Need | Public | None:
    if dependant is None:
        return None
    if isinstance(dependant.call, Need | Public):
        return dependant.call
    return next((need for one in dependant.dependencies if (need := _need_of(one)) is not None), None)
