"""OpenAPI and the pages that show it, without a content delivery network: their files come with `fastapi-offline`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import TypeAdapter
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from gradmedic import wire
from gradmedic_service.access.authorization import PUBLIC, Need, PublicFiles, needs
from gradmedic_service.errors import (
    ApiKeyExpired,
    ApiKeyMissing,
    ApiKeyRevoked,
    ApiKeyUnknown,
    ScopeMissing,
    SessionEnded,
    documented,
)
from gradmedic_service.responses import WireResponse

FILES_PATH = "/docs/files"
OPENAPI_PATH = "/openapi.json"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Swagger's page starts itself by a script within it; it loads and asks nothing from elsewhere."""
SECURITY_SCHEME = "api_key"


def add_documentation(app: FastAPI) -> None:
    """Serve `/docs`, and describe problems in `/openapi.json`."""
    folder = Path(str(files("fastapi_offline") / "static"))

    @app.get("/docs", include_in_schema=False, dependencies=[PUBLIC])
    async def docs() -> Response:
        page = get_swagger_ui_html(
            openapi_url=OPENAPI_PATH,
            title=f"{app.title} API",
            swagger_js_url=f"{FILES_PATH}/swagger-ui-bundle.js",
            swagger_css_url=f"{FILES_PATH}/swagger-ui.css",
            swagger_favicon_url=f"{FILES_PATH}/favicon.png",
        )
        page.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        return page

    @app.get(OPENAPI_PATH, include_in_schema=False, dependencies=[PUBLIC])
    async def document() -> Response:
        return WireResponse(app.openapi())

    app.mount(FILES_PATH, PublicFiles(StaticFiles(directory=folder)), name="docs-files")

    described = app.openapi

    def openapi() -> dict[str, Any]:
        is_new = app.openapi_schema is None
        document = described()
        if is_new:
            document["components"]["schemas"].update(_problem_schemas())
            _describe_access(app, document)
        return document

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way to extend it


def _describe_access(app: FastAPI, document: dict[str, Any]) -> None:
    """Say of each route which scopes it needs and how it refuses."""
    refusals = documented(ApiKeyMissing, ApiKeyUnknown, ApiKeyRevoked, ApiKeyExpired, SessionEnded, ScopeMissing)
    if app.state.requires_keys:
        scheme = {"type": "http", "scheme": "bearer", "description": "An API key: `Authorization: Bearer <secret>`."}
        document["components"]["securitySchemes"] = {SECURITY_SCHEME: scheme}
    for path, methods, need in needs(app):
        for method in methods:
            operation = document["paths"].get(path.replace(":path", ""), {}).get(method.lower())
            if operation is None or not isinstance(need, Need):
                continue
            for status, response in refusals.items():
                operation["responses"].setdefault(str(status), response)
            if app.state.requires_keys:
                operation["security"] = [{SECURITY_SCHEME: list(need.scopes)}]


def _problem_schemas() -> dict[str, Any]:
    """Return what `errors.documented` refers to.

    As a `model` of every error of every route, the same schema would be built a hundred times, and under the wrong
    media type.
    """
    problem = TypeAdapter(wire.Problem).json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    return {**problem.pop("$defs"), "Problem": problem}
