"""OpenAPI and the pages that show it. Their files come with `fastapi-offline`, so no other server is needed.

FastAPI makes the document from the routes. This module adds what it does not know: the bodies of JSON, the scopes and
errors of each route, schemas with names of their own, and examples of the answers.
"""

from __future__ import annotations

from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.routing import iter_route_contexts
from pydantic import TypeAdapter
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from gradmedic.protocol.service import JSON_MEDIA_TYPE, PROBLEM_MEDIA_TYPE, Problem
from gradmedic.protocol.steps import StepsAppend
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
from gradmedic_service.http.json_bodies import json_body_of
from gradmedic_service.http.named_schemas import NAMED_SCHEMAS, SCHEMAS_PATH, name_schemas
from gradmedic_service.http.responses import WireResponse
from gradmedic_service.services import services_of

FILES_PATH = "/docs/files"
OPENAPI_PATH = "/openapi.json"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Swagger's page contains the script that starts it. It loads nothing from other servers."""
SECURITY_SCHEME = "api_key"
TAGS = {
    "runs": "Training jobs: register, list, change, review, follow and delete them.",
    "steps": "The steps of a run: append them, go back to a checkpoint, and read them as series, tables or blocks.",
    "diagnosis": "What is wrong with a run, why, and what fixes it.",
    "alerts": "Where a project's alerts go, and the alerts that were made.",
    "reruns": "Races of remedies on a run's own trainable, against an unchanged control.",
    "projects": "The groups of runs, with their settings.",
    "access": "API keys, the sessions of browsers, and the audit log.",
    "workers": "The workers' side of reruns: trainables, claims, leases and results.",
    "service": "The service itself: health, limits and metrics.",
}
"""The tags of the routes, in the order in which `/docs` shows them, with their descriptions."""
UNDESCRIBED_RESPONSE = "Successful Response"
"""FastAPI's description of a response that has none."""


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

    make_document = app.openapi

    def openapi() -> dict[str, Any]:
        is_new = app.openapi_schema is None
        document = make_document()
        if is_new:
            document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items()]
            document["components"]["schemas"].update(_schemas_of(Problem, "serialization"))
            document["components"]["schemas"].update(_schemas_of(StepsAppend, "validation"))
            _add_bodies(app, document)
            _describe_access(app, document)
            _describe_bodies(document)
            name_schemas(document)
            document["components"]["schemas"].update(deepcopy(NAMED_SCHEMAS))
            _add_answer_examples(app, document)
        return document

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way to extend it


def _add_bodies(app: FastAPI, document: dict[str, Any]) -> None:
    """Add the JSON bodies of all routes and their schemas, in place."""
    inputs: list[tuple[str, Literal["validation"], TypeAdapter[Any]]] = []
    for route in iter_route_contexts(app.routes):
        dependant = getattr(route, "dependant", None)
        body = None if dependant is None else json_body_of(dependant)
        if body is None:
            continue
        inputs.append((body.type.__name__, "validation", TypeAdapter(body.type)))
        schema = {"$ref": f"{SCHEMAS_PATH}/{body.type.__name__}"}
        content = {JSON_MEDIA_TYPE: {"schema": schema, "examples": body.examples}}
        for method in route.methods or ():
            operation = document["paths"][(route.path or "").replace(":path", "")][method.lower()]
            operation["requestBody"] = {"required": True, "content": content}
    _, schemas = TypeAdapter.json_schemas(inputs, ref_template=f"{SCHEMAS_PATH}/{{model}}")
    document["components"]["schemas"].update(jsonable_encoder(schemas["$defs"], exclude_none=True))  # as FastAPI


def _describe_access(app: FastAPI, document: dict[str, Any]) -> None:
    """Add the needed scopes and the possible errors to each operation, in place."""
    errors_of_protected_routes = documented(*AUTHENTICATION_ERRORS, ScopeMissing, BeyondKey, Overloaded, InvalidRequest)
    errors_of_every_route = documented(HostNotAllowed, CrossOrigin, ApiKeyInUrl)
    needs_key = services_of(app).requires_keys
    description = "An API key: `Authorization: Bearer <secret>`." + ("" if needs_key else " This service needs none.")
    scheme = {"type": "http", "scheme": "bearer", "description": description}
    document["components"]["securitySchemes"] = {SECURITY_SCHEME: scheme}
    for path, methods, need in route_requirements(app):
        for method in methods:
            operation = document["paths"].get(path.replace(":path", ""), {}).get(method.lower())
            if operation is None:
                continue
            for status, response in errors_of_every_route.items():
                operation["responses"].setdefault(str(status), response)
            if not isinstance(need, ScopeRequirement):
                continue
            for status, response in errors_of_protected_routes.items():
                _add_response(operation["responses"], str(status), response)
            if "requestBody" in operation:
                for status, response in documented(RequestTimeout).items():
                    operation["responses"][str(status)] = response
            operation["security"] = [*([] if needs_key else [{}]), {SECURITY_SCHEME: list(need.scopes)}]


def _add_response(responses: dict[str, Any], status: str, response: dict[str, Any]) -> None:
    """Add a response to an operation. If the operation has one of the same status, add only the examples."""
    if status not in responses:
        responses[status] = deepcopy(response)
        return
    examples = responses[status].get("content", {}).get(PROBLEM_MEDIA_TYPE, {}).get("examples")
    if examples is not None:
        examples.update(response["content"][PROBLEM_MEDIA_TYPE]["examples"])


def _describe_bodies(document: dict[str, Any]) -> None:
    """Give every request body and response a description that ends with a period, in place.

    A body without a description of its own gets that of its schema.
    """
    schemas = document["components"]["schemas"]
    for methods in document["paths"].values():
        for operation in methods.values():
            if "requestBody" in operation:
                operation["requestBody"].setdefault(
                    "description", _schema_description(operation["requestBody"], schemas)
                )
            for response in operation["responses"].values():
                if response["description"] == UNDESCRIBED_RESPONSE:
                    response["description"] = _schema_description(response, schemas)
                response["description"] = f"{response['description'].rstrip('.')}."


def _schema_description(body: dict[str, Any], schemas: dict[str, Any]) -> str:
    """Return the description of the first schema of a body, or one of its media types if it has no schema."""
    contents = body.get("content", {})
    for content in contents.values():
        name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        if name in schemas:
            description: str = schemas[name]["description"]
            return description
    return f"Body of the type {', '.join(f'`{media_type}`' for media_type in contents)}." if contents else "No body."


def _add_answer_examples(app: FastAPI, document: dict[str, Any]) -> None:
    """Add an example to each successful answer that is text, in place."""
    # Imported here: a service that is never asked for its document does not build the examples.
    from gradmedic_service.http.answer_examples import answer_examples

    examples = answer_examples(services_of(app).limits)
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                for media_type, content in response.get("content", {}).items():
                    example = examples.get((operation["operationId"], media_type))
                    if status.startswith("2") and example is not None:
                        content["example"] = example


def _schemas_of(type_: type[Any], mode: Literal["validation", "serialization"]) -> dict[str, Any]:
    """Return the schema of a class and those that it refers to, by name.

    For errors: declared as the `model` of each error, FastAPI would build `Problem` a hundred times, and with the wrong
    media type.
    """
    schema = TypeAdapter(type_).json_schema(ref_template=f"{SCHEMAS_PATH}/{{model}}", mode=mode)
    return {**schema.pop("$defs", {}), type_.__name__: schema}
