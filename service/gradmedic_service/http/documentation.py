"""OpenAPI and the pages that show it, without a content delivery network: their files come with `fastapi-offline`."""

from __future__ import annotations

from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import TypeAdapter
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from gradmedic.protocol.numbers import NONFINITE_NAMES
from gradmedic.protocol.service import PROBLEM_MEDIA_TYPE, Problem
from gradmedic_service.access.authentication import AUTHENTICATION_ERRORS
from gradmedic_service.access.authorization import PUBLIC, PublicFiles, ScopeRequirement, route_requirements
from gradmedic_service.access.errors import (
    ApiKeyInUrl,
    BeyondKey,
    CrossOrigin,
    HostNotAllowed,
    Overloaded,
    ScopeMissing,
)
from gradmedic_service.http.errors import InvalidRequest, RequestTimeout, documented
from gradmedic_service.http.responses import WireResponse
from gradmedic_service.services import services_of

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
            _describe_numbers(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way to extend it


def _describe_access(app: FastAPI, document: dict[str, Any]) -> None:
    """Say of each route which scopes it needs and how it refuses."""
    refusals = documented(*AUTHENTICATION_ERRORS, ScopeMissing, BeyondKey, Overloaded, InvalidRequest)
    of_all = documented(HostNotAllowed, CrossOrigin, ApiKeyInUrl)
    if services_of(app).requires_keys:
        scheme = {"type": "http", "scheme": "bearer", "description": "An API key: `Authorization: Bearer <secret>`."}
        document["components"]["securitySchemes"] = {SECURITY_SCHEME: scheme}
    for path, methods, need in route_requirements(app):
        for method in methods:
            operation = document["paths"].get(path.replace(":path", ""), {}).get(method.lower())
            if operation is None:
                continue
            for status, response in of_all.items():
                operation["responses"].setdefault(str(status), response)
            if not isinstance(need, ScopeRequirement):
                continue
            for status, response in refusals.items():
                _add(operation["responses"], str(status), response)
            if "requestBody" in operation:
                operation["responses"].update({str(status): one for status, one in documented(RequestTimeout).items()})
            if services_of(app).requires_keys:
                operation["security"] = [{SECURITY_SCHEME: list(need.scopes)}]


def _add(responses: dict[str, Any], status: str, response: dict[str, Any]) -> None:
    """Document an answer, beside what the route documents of the same status."""
    if status not in responses:
        responses[status] = deepcopy(response)
        return
    ours = response["content"][PROBLEM_MEDIA_TYPE]["examples"]
    theirs = responses[status].get("content", {}).get(PROBLEM_MEDIA_TYPE, {}).get("examples")
    if theirs is not None:
        theirs.update(ours)


def _describe_numbers(node: Any) -> None:
    """Say of every number of the document, in place, that it may be one of the names of non-finite ones."""
    for key, child in list(node.items() if isinstance(node, dict) else enumerate(node)):
        if isinstance(child, dict) and child.get("type") == "number":
            node[key] = {name: value for name, value in child.items() if name != "type"} | {
                "anyOf": [{"type": "number"}, {"type": "string", "enum": list(NONFINITE_NAMES)}]
            }
        elif isinstance(child, dict | list):
            _describe_numbers(child)


def _problem_schemas() -> dict[str, Any]:
    """Return what `errors.documented` refers to.

    As a `model` of every error of every route, the same schema would be built a hundred times, and under the wrong
    media type.
    """
    problem = TypeAdapter(Problem).json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    return {**problem.pop("$defs"), "Problem": problem}
