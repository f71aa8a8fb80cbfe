"""The HTML pages.

A page contains only the name of the API key and, for a run, what its banner shows. Its scripts read the rest by the
routes of the API, so that every number has one source and no data needs escaping in a template.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.responses import Response

from gradmedic.protocol.access import SCOPES
from gradmedic.protocol.origin_sentences import explain_search
from gradmedic.protocol.reruns import RERUN_STATUSES
from gradmedic.protocol.reviews import NO_REVIEW, REVIEW_ANSWERS
from gradmedic.protocol.runs import STATUSES
from gradmedic.protocol.service import API_PATH
from gradmedic.protocol.statistics import Scale, statistics_drawn
from gradmedic.protocol.verdicts import LEARNING_STATES, LEVELS, UNHEALTHY_VERDICTS, VERDICTS
from gradmedic_service.access.authentication import principal_of
from gradmedic_service.access.authorization import PUBLIC, MayRead
from gradmedic_service.access.errors import ScopeMissing
from gradmedic_service.access.principal import Principal
from gradmedic_service.http.dependencies import DatabaseDependency
from gradmedic_service.http.errors import MAX_PATH_LENGTH, ServiceError
from gradmedic_service.http.problems import answer_http_exception
from gradmedic_service.http.routers import add_routes
from gradmedic_service.reruns import service as reruns
from gradmedic_service.reruns.errors import RerunNotFound
from gradmedic_service.runs import service as runs
from gradmedic_service.runs.endpoints import RunId
from gradmedic_service.runs.errors import RunNotFound
from gradmedic_service.services import services_of
from gradmedic_service.web.assets import PICTURES_PREFIX, STATIC_PATH, Assets
from gradmedic_service.web.conditions import Conditions
from gradmedic_service.web.documents import Documents
from gradmedic_service.web.errors import ConditionNotFound, OperationNotFound, PageNotFound
from gradmedic_service.web.notes import render_notes

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Scripts and styles come from this service only, and none are inline; scripts that set styles need no permission."""
HEADERS = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Cache-Control": "no-store"}
LOGIN_PATH = "/login"


class Pages:
    """Renders the templates.

    Args:
        assets: files that the pages link to.
        conditions: conditions that have a page.
    """

    def __init__(self, assets: Assets, conditions: Conditions) -> None:
        self._environment = Environment(
            loader=PackageLoader("gradmedic_service.web"),
            autoescape=select_autoescape(default=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(asset=assets.url, api_path=API_PATH, verdicts=VERDICTS, levels=LEVELS)
        self._environment.globals.update(statuses=STATUSES, rerun_statuses=RERUN_STATUSES, scopes=SCOPES)
        self._environment.globals.update(learning_states=LEARNING_STATES)
        self._environment.globals.update(
            review_filters=(*REVIEW_ANSWERS, NO_REVIEW),
            linear_statistics=statistics_drawn(Scale.LINEAR),
            unhealthy_verdicts=UNHEALTHY_VERDICTS,
            conditions=conditions.names,
            find_first_actions=conditions.find_first_actions,
            explain_search=explain_search,
        )

    def render(self, name: str, principal: Principal | None, status: int = 200, **context: Any) -> HTMLResponse:
        """Return a page for a principal, or for a reader who is not logged in."""
        content = self._environment.get_template(f"{name}.html").render(
            principal=principal,
            is_admin=principal is not None and principal.has_scope("admin"),
            may_rerun=principal is not None and principal.has_scope("rerun"),
            may_edit=principal is not None and principal.run_id is None and principal.has_scope("ingest"),
            may_delete=principal is not None and principal.run_id is None and principal.has_scope("admin"),
            **context,
        )
        return HTMLResponse(content, status_code=status, headers=HEADERS)


def add_pages(app: FastAPI) -> None:
    """Add the routes of the pages and their files."""
    assets = Assets()
    conditions = Conditions(lambda name: assets.url(PICTURES_PREFIX + name))
    pages = Pages(assets, conditions)
    # Public: a reader who is not logged in is redirected to the login, whether the page exists or not.
    router = APIRouter(include_in_schema=False, dependencies=[PUBLIC])

    @router.get("/")
    def show_runs(request: Request) -> Response:
        return _respond(pages, request, lambda principal: pages.render("runs", principal))

    @router.get("/runs/{run_id}")
    def show_run(request: Request, run_id: str) -> Response:
        def render(principal: Principal) -> Response:
            with services_of(request.app).database.reading() as session:
                run = runs.get(session, principal, _parse_run_id(run_id))
            return pages.render("run", principal, run=run, notes=render_notes(run.notes))

        return _respond(pages, request, render)

    @router.get("/reruns")
    def show_reruns(request: Request) -> Response:
        return _respond(pages, request, lambda principal: pages.render("reruns", principal))

    @router.get("/reruns/{rerun_id}")
    def show_rerun(request: Request, rerun_id: str) -> Response:
        def render(principal: Principal) -> Response:
            with services_of(request.app).database.reading() as session:
                rerun = reruns.get(session, principal, _parse_rerun_id(rerun_id))
                run = runs.get(session, principal, rerun.run_id)
            return pages.render("rerun", principal, rerun=rerun, run=run)

        return _respond(pages, request, render)

    @router.get("/compare")
    def compare_runs(request: Request) -> Response:
        return _respond(pages, request, lambda principal: pages.render("compare", principal))

    _add_documents(router, pages, conditions, "Conditions", ConditionNotFound)
    _add_documents(router, pages, Documents("operations"), "Operations", OperationNotFound)

    @router.get("/alerts")
    def show_alerts(request: Request) -> Response:
        return _respond(pages, request, lambda principal: pages.render("alerts", principal))

    @router.get("/projects")
    def show_projects(request: Request) -> Response:
        return _respond(pages, request, lambda principal: pages.render("projects", principal))

    @router.get("/api-keys")
    def show_api_keys(request: Request) -> Response:
        return _respond(pages, request, lambda principal: pages.render("api_keys", principal), scope="admin")

    @router.get(LOGIN_PATH)
    async def show_login() -> Response:
        return pages.render("login", None)

    @router.get(STATIC_PATH + "/{version}/{path:path}")
    async def read_asset(request: Request, version: str, path: str) -> Response:
        return assets.answer(request, version, path)

    add_routes(app, router, _make_fragments())

    def answer_unknown_address(request: Request, error: Exception) -> Response:
        """Answer a reader of pages with a page, and every other client with a problem."""
        wants_page = "text/html" in request.headers.get("accept", "") and request.method in ("GET", "HEAD")
        if not wants_page or request.url.path.startswith(f"{API_PATH}/"):
            return answer_http_exception(request, error)

        def refuse(_: Principal) -> Response:
            raise PageNotFound(f"There is no page {request.url.path[:MAX_PATH_LENGTH]}.")

        return _respond(pages, request, refuse)

    app.add_exception_handler(HTTPStatus.NOT_FOUND, answer_unknown_address)


def _add_documents(
    router: APIRouter, pages: Pages, documents: Documents, title: str, not_found: type[ServiceError]
) -> None:
    """Add the routes of an index of documents and of its pages."""
    noun = title.lower().removesuffix("s")

    @router.get(documents.path)
    def show_index(request: Request) -> Response:
        def render(principal: Principal) -> Response:
            return pages.render("document", principal, title=title, text=documents.find(), index=None)

        return _respond(pages, request, render)

    @router.get(documents.path + "/{name}")
    def show_document(request: Request, name: str) -> Response:
        def render(principal: Principal) -> Response:
            text = documents.find(name) if name in documents.names else None
            if text is None:
                raise not_found(f"There is no {noun} {name[:100]}.")
            index = (documents.path, f"All {title.lower()}")
            return pages.render("document", principal, title=name, text=text, index=index)

        return _respond(pages, request, render)


def _make_fragments() -> APIRouter:
    """Return the routes of parts of pages, which a script reads with the authorization of the API."""
    router = APIRouter(include_in_schema=False)

    @router.get("/runs/{run_id}/notes", response_class=HTMLResponse)
    def show_notes(run_id: RunId, principal: MayRead, database: DatabaseDependency) -> HTMLResponse:
        with database.reading() as session:
            run = runs.get(session, principal, run_id)
        return HTMLResponse(render_notes(run.notes), headers=HEADERS)

    return router


def _respond(pages: Pages, request: Request, render: Callable[[Principal], Response], scope: str = "read") -> Response:
    """Return the rendered page or a page of the error; redirect a reader who is not logged in to the login and back."""
    principal = None
    try:
        principal = principal_of(request.scope)
        if not principal.has_scope(scope):
            raise ScopeMissing(f"This page needs the scope {scope!r}, which the API key {principal.name!r} lacks.")
        return render(principal)
    except ServiceError as error:
        if error.status == HTTPStatus.UNAUTHORIZED:
            query = f"?{request.url.query}" if request.url.query else ""
            address = f"{LOGIN_PATH}?next={quote(request.url.path + query, safe='')}"
            return RedirectResponse(address, status_code=303, headers={"Cache-Control": "no-store"})
        return pages.render("problem", principal, error.status, title=error.title, detail=error.detail)


def _parse_run_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise RunNotFound(f"There is no run {text[:100]}.") from None


def _parse_rerun_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise RerunNotFound(f"There is no rerun {text[:100]}.") from None
