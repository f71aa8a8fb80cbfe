"""OpenAPI and the pages that show it, without a content delivery network: their files come with `fastapi-offline`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from gradmedic import wire

FILES_PATH = "/docs/files"


def add_documentation(app: FastAPI) -> None:
    """Serve `/docs`, and describe problems in `/openapi.json`."""
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
            described()["components"]["schemas"].update(_problem_schemas())
        return described()

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way to extend it


def _problem_schemas() -> dict[str, Any]:
    """Return what `errors.documented` refers to.

    As a `model` of every error of every route, the same schema would be built a hundred times, and under the wrong
    media type.
    """
    problem = TypeAdapter(wire.Problem).json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    return {**problem.pop("$defs"), "Problem": problem}
