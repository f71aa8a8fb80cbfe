"""Routers whose routes are complete when they are declared.

`FastAPI.include_router` builds every route anew for the place where the router is included, with all the schemas of its
answers: with two levels of routers, the service would start a second later. So a router of the API is created with its
whole prefix and the class of its answers, and its routes are added to the application as they are.
"""

from __future__ import annotations

from enum import Enum

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from gradmedic.protocol.service import API_PATH
from gradmedic_service.http.responses import WireResponse


def api_router(
    prefix: str = "", tags: list[str | Enum] | None = None, route_class: type[APIRoute] = APIRoute
) -> APIRouter:
    """Return a router of the API. Its routes are below `API_PATH` and answer JSON as `WireResponse` writes it.

    Args:
        prefix: the path of the routes below `API_PATH`.
        tags: the tags of the routes in the documentation.
        route_class: the class of the routes.
    """
    return APIRouter(
        prefix=f"{API_PATH}{prefix}", tags=tags, default_response_class=WireResponse, route_class=route_class
    )


def add_routes(app: FastAPI, *routers: APIRouter) -> None:
    """Add the routes of routers to an application, in order and as they were declared."""
    for router in routers:
        app.router.routes.extend(router.routes)
