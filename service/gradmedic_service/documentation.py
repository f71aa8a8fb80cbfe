"""OpenAPI and the pages that show it, without a content delivery network: their files come with `fastapi-offline`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from gradmedic import wire

FILES_PATH = "/docs/files"


def add_documentation(app: FastAPI) -> None:
    """Serve `/docs`, and describe errors in `/openapi.json` as the problems that they are."""
    folder = Path(str(files("fastapi_offline") / "static"))

    async def docs(_request: Request) -> Response:
        return get_swagger_ui_html(
            openapi_url=app.openapi_url or "/openapi.json",
            title=f"{app.title} API",
            swagger_js_url=f"{FILES_PATH}/swagger-ui-bundle.js",
            swagger_css_url=f"{FILES_PATH}/swagger-ui.css",
            swagger_favicon_url=f"{FILES_PATH}/favicon.png",
        )

    app.add_route("/docs", docs, include_in_schema=False)
    app.mount(FILES_PATH, StaticFiles(directory=folder), name="docs-files")

    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _give_errors_their_media_type(described())
        return described()

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way to extend it


def _give_errors_their_media_type(schema: dict[str, Any]) -> None:
    """FastAPI documents a `model` under the route's own media type; a problem has one of its own."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                content = response.get("content", {})
                if int(status) >= 400 and wire.JSON_MEDIA_TYPE in content:
                    content.setdefault(wire.PROBLEM_MEDIA_TYPE, {}).update(content.pop(wire.JSON_MEDIA_TYPE))
