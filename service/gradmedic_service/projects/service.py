"""Projects: what listing and changing one means."""

from __future__ import annotations

from datetime import datetime

from gradmedic import wire
from gradmedic_service import models
from gradmedic_service.access.principal import Principal
from gradmedic_service.db import Session
from gradmedic_service.errors import InvalidRequest, ProjectNotFound
from gradmedic_service.muting import muting_errors
from gradmedic_service.pages import position_of, token_of
from gradmedic_service.projects import repository

SORTS = ("name", "-name")


def ensure(session: Session, name: str, now: datetime) -> None:
    """Let a project appear, with its first run."""
    repository.add_missing(session, name, now)


def get(session: Session, principal: Principal, name: str) -> wire.Project:
    """Return a project. Raises ProjectNotFound, also for one that the principal does not reach."""
    return _on_the_wire(_existing(principal, repository.find(session, name), name))


def update(session: Session, principal: Principal, name: str, body: wire.ProjectUpdate) -> wire.Project:
    """Change what the body names. Raises ProjectNotFound, InvalidRequest."""
    errors = list(muting_errors(body.muted_detectors or ()))
    if errors:
        raise InvalidRequest(errors)
    project = _existing(principal, repository.find(session, name, is_locked=True), name)
    if body.muted_detectors is not None:
        project.muted_detectors = body.muted_detectors
    return _on_the_wire(project)


def list_page(
    session: Session, principal: Principal, sort: str, page_token: str | None, max_results: int
) -> wire.ProjectList:
    """Return a page of projects. Raises InvalidRequest for a token of another list."""
    query = f"projects by {sort}"
    after = None if page_token is None else position_of(page_token, query, 1)[0]
    found = repository.page(
        session, only=principal.project, is_descending=sort.startswith("-"), after=after, size=max_results + 1
    )
    items = found[:max_results]
    return wire.ProjectList(
        items=[_on_the_wire(project) for project in items],
        next_page_token=token_of(query, items[-1].name) if len(found) > max_results else None,
    )


def _existing(principal: Principal, project: models.Project | None, name: str) -> models.Project:
    if project is None or not principal.reaches_project(name):
        raise ProjectNotFound(f"There is no project {name!r}; one appears with its first run or key.")
    return project


def _on_the_wire(project: models.Project) -> wire.Project:
    return wire.Project(name=project.name, muted_detectors=list(project.muted_detectors), created_at=project.created_at)
