"""The application: FastAPI with the service's own middlewares, and a shorter way from them to the routes.

FastAPI walks through all routes in Python, and puts five layers of its own around each request. Here `RouteTable` finds
the route, and a direct route (`http.direct_routes`) needs none of these layers: `RequestContext`, the outermost
middleware, answers every error. All other routes keep the layers that they need.
"""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Match, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from gradmedic_service.http.direct_routes import DirectRoute
from gradmedic_service.services import services_of

FOUND_ROUTE = "found_route"
"""Key of the route of a request in its state."""


class ServiceApplication(FastAPI):
    """FastAPI with the middlewares that were added to it, and no others around a direct route."""

    def build_middleware_stack(self) -> ASGIApp:
        """Return the application that serves a request. FastAPI calls this before the first one."""
        routes = AsyncExitStackMiddleware(FoundRoutes(self.router))
        app: ASGIApp = DirectRoutes(ExceptionMiddleware(routes, handlers=self.exception_handlers))
        for middleware, arguments, options in reversed(self.user_middleware):
            app = middleware(app, *arguments, **options)
        return app


class DirectRoutes:
    """ASGI application that finds the route of a request, and serves it if it is a direct one.

    Args:
        others: the application that serves all other requests.
    """

    def __init__(self, others: ASGIApp) -> None:
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._others(scope, receive, send)
            return
        route = services_of(scope["app"]).route_table.find(scope)
        match, matched = (Match.NONE, {}) if route is None else route.matches(scope)
        if route is None or match is not Match.FULL:
            await self._others(scope, receive, send)
            return
        scope.update(matched)
        if isinstance(route, DirectRoute):
            await route.handle(scope, receive, send)
            return
        scope["state"][FOUND_ROUTE] = route
        await self._others(scope, receive, send)


class FoundRoutes:
    """ASGI application that serves a request by the route that was found, and by the router if there is none.

    Args:
        router: answers requests that have no route, and serves mounted applications and the lifespan.
    """

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        route: Route | None = scope.get("state", {}).get(FOUND_ROUTE)
        if route is None:
            await self._router(scope, receive, send)
            return
        scope["router"] = self._router
        await route.handle(scope, receive, send)
