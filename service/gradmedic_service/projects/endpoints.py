"""Routes of projects."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Query

from gradmedic.protocol.names import text_error
from gradmedic.protocol.projects import Project, ProjectList, ProjectUpdate
from gradmedic_service.access.authorization import MayAdminister, MayRead
from gradmedic_service.http.dependencies import DatabaseDependency, LimitsDependency, check_max_results, json_only
from gradmedic_service.http.errors import BodyTooLarge, InvalidRequest, MalformedBody, UnsupportedMediaType, documented
from gradmedic_service.projects import service
from gradmedic_service.projects.errors import ProjectNotFound

router = APIRouter(prefix="/projects", tags=["projects"])

Name = Annotated[str, Path(description="Name of the project, percent-encoded.", examples=["char-lm"])]

UPDATE_EXAMPLES: dict[str, Any] = {
    "mute": {"summary": "Its losses plateau by design", "value": {"muted_detectors": ["plateau"]}},
    "unmute": {"summary": "Hear every detector again", "value": {"muted_detectors": []}},
}


@router.get("", response_model=ProjectList, responses=documented(InvalidRequest))
def list_projects(
    principal: MayRead,
    database: DatabaseDependency,
    limits: LimitsDependency,
    sort: Annotated[str, Query(description=f"One of {', '.join(service.SORTS)}.")] = service.SORTS[0],
    max_results: Annotated[int, Query(description="Items of a page, at most what `/limits` says.")] = 100,
    page_token: Annotated[str | None, Query(description="`next_page_token` of the page before.")] = None,
) -> ProjectList:
    """List the projects that the key reaches, by name."""
    if sort not in service.SORTS:
        raise InvalidRequest.at("sort", f"{sort!r} is not one of {', '.join(service.SORTS)}")
    check_max_results(max_results, limits)
    with database.reading() as session:
        return service.list_page(session, principal, sort, page_token, max_results)


@router.get("/{name:path}", response_model=Project, responses=documented(ProjectNotFound, InvalidRequest))
def get_project(name: Name, principal: MayRead, database: DatabaseDependency) -> Project:
    """Return a project."""
    _check_name(name)
    with database.reading() as session:
        return service.get(session, principal, name)


@router.patch(
    "/{name:path}",
    response_model=Project,
    dependencies=[Depends(json_only)],
    responses=documented(ProjectNotFound, MalformedBody, BodyTooLarge, UnsupportedMediaType, InvalidRequest),
)
def update_project(
    name: Name,
    principal: MayAdminister,
    body: Annotated[ProjectUpdate, Body(openapi_examples=UPDATE_EXAMPLES)],
    database: DatabaseDependency,
) -> Project:
    """Change what holds for every run of a project."""
    _check_name(name)
    with database.writing() as session:
        return service.update(session, principal, name, body)


def _check_name(name: str) -> None:
    message = text_error(name)
    if message is not None:
        raise InvalidRequest.at("name", message)
