"""The routes of projects."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Query

from gradmedic.protocol.projects import Project, ProjectList, ProjectUpdate
from gradmedic_service.access.authorization import MayAdminister, MayRead
from gradmedic_service.http.dependencies import (
    DatabaseDependency,
    LimitsDependency,
    MaxResults,
    PageToken,
    check_max_results,
)
from gradmedic_service.http.errors import BODY_ERRORS, InvalidRequest, documented
from gradmedic_service.http.json_bodies import json_body
from gradmedic_service.http.routers import api_router
from gradmedic_service.projects import service
from gradmedic_service.projects.errors import ProjectNotFound

router = api_router(prefix="/projects", tags=["projects"])

Name = Annotated[str, Path(description="The name of the project, percent-encoded.", examples=["char-lm"])]
Sort = Annotated[str, Query(description=f"The order of the list: one of {', '.join(service.SORTS)}.")]

UPDATE_EXAMPLES: dict[str, Any] = {
    "mute": {"summary": "Mute a detector", "value": {"muted_detectors": ["plateau"]}},
    "unmute": {"summary": "Unmute every detector", "value": {"muted_detectors": []}},
}


@router.get("", operation_id="projects.list", response_model=ProjectList, responses=documented(InvalidRequest))
def list_projects(
    principal: MayRead,
    database: DatabaseDependency,
    limits: LimitsDependency,
    sort: Sort = service.SORTS[0],
    max_results: MaxResults = 100,
    page_token: PageToken = None,
) -> ProjectList:
    """List the projects that the API key reaches, sorted by name."""
    if sort not in service.SORTS:
        raise InvalidRequest.at("sort", f"{sort!r} is not one of {', '.join(service.SORTS)}")
    check_max_results(max_results, limits)
    with database.reading() as session:
        return service.list_page(session, principal, sort, page_token, max_results)


@router.get(
    "/{name:path}",
    operation_id="projects.get",
    response_model=Project,
    responses=documented(ProjectNotFound, InvalidRequest),
)
def get_project(name: Name, principal: MayRead, database: DatabaseDependency) -> Project:
    """Return a project with its settings."""
    with database.reading() as session:
        return service.get(session, principal, name)


@router.patch(
    "/{name:path}",
    operation_id="projects.update",
    response_model=Project,
    responses=documented(ProjectNotFound, *BODY_ERRORS),
)
def update_project(
    name: Name,
    principal: MayAdminister,
    body: Annotated[ProjectUpdate, json_body(ProjectUpdate, UPDATE_EXAMPLES)],
    database: DatabaseDependency,
) -> Project:
    """Change the settings of a project, which hold for all its runs."""
    with database.writing() as session:
        return service.update(session, principal, name, body)
