"""Projects: what listing and changing one means."""

from __future__ import annotations

from datetime import datetime

from gradmedic.protocol.projects import Project, ProjectList, ProjectUpdate
from gradmedic.protocol.service import FieldError
from gradmedic_service.access.principal import Principal
from gradmedic_service.database import models
from gradmedic_service.database.engine import Session
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.http.paging import position_of, token_of
from gradmedic_service.projects import repository
from gradmedic_service.projects.errors import ProjectNotFound
from gradmedic_service.projects.muting import muting_errors

SORTS = ("name", "-name")
DEFAULT_CONCURRENT_TRIALS = 8
DEFAULT_RERUN_SECONDS = 86_400.0
"""What a project allows its reruns until it says otherwise."""
MAX_CONCURRENT_TRIALS = 1_000
MAX_RERUN_SECONDS = 30 * 86_400.0


def caps(session: Session, name: str) -> tuple[int, float]:
    """Return how many trials of a project may run at once, and how many seconds a rerun of it may take."""
    return _caps(repository.find(session, name))


def _caps(project: models.Project | None) -> tuple[int, float]:
    trials = None if project is None else project.max_concurrent_trials
    seconds = None if project is None else project.max_rerun_seconds
    return trials or DEFAULT_CONCURRENT_TRIALS, seconds or DEFAULT_RERUN_SECONDS


def ensure(session: Session, name: str, now: datetime) -> None:
    """Let a project appear, with its first run."""
    repository.add_missing(session, name, now)


def get(session: Session, principal: Principal, name: str) -> Project:
    """Return a project. Raises ProjectNotFound, also for one that the principal does not reach."""
    return _on_the_wire(_existing(principal, repository.find(session, name), name))


def update(session: Session, principal: Principal, name: str, body: ProjectUpdate) -> Project:
    """Change what the body names. Raises ProjectNotFound, InvalidRequest."""
    errors = list(muting_errors(body.muted_detectors or ()))
    if body.max_concurrent_trials is not None and not 1 <= body.max_concurrent_trials <= MAX_CONCURRENT_TRIALS:
        errors.append(FieldError(path="max_concurrent_trials", message=f"must be from 1 to {MAX_CONCURRENT_TRIALS}"))
    if body.max_rerun_seconds is not None and not 1 <= body.max_rerun_seconds <= MAX_RERUN_SECONDS:
        errors.append(FieldError(path="max_rerun_seconds", message=f"must be from 1 to {MAX_RERUN_SECONDS:g}"))
    if errors:
        raise InvalidRequest(errors)
    project = _existing(principal, repository.find(session, name, is_locked=True), name)
    if body.muted_detectors is not None:
        project.muted_detectors = body.muted_detectors
    if body.rerun_automatically is not None:
        project.rerun_automatically = body.rerun_automatically
    if body.max_concurrent_trials is not None:
        project.max_concurrent_trials = body.max_concurrent_trials
    if body.max_rerun_seconds is not None:
        project.max_rerun_seconds = body.max_rerun_seconds
    return _on_the_wire(project)


def list_page(
    session: Session, principal: Principal, sort: str, page_token: str | None, max_results: int
) -> ProjectList:
    """Return a page of projects. Raises InvalidRequest for a token of another list."""
    query = f"projects by {sort}"
    after = None if page_token is None else position_of(page_token, query, 1)[0]
    found = repository.page(
        session, only=principal.project, is_descending=sort.startswith("-"), after=after, size=max_results + 1
    )
    items = found[:max_results]
    return ProjectList(
        items=[_on_the_wire(project) for project in items],
        next_page_token=token_of(query, items[-1].name) if len(found) > max_results else None,
    )


def _existing(principal: Principal, project: models.Project | None, name: str) -> models.Project:
    if project is None or not principal.reaches_project(name):
        raise ProjectNotFound(f"There is no project {name!r}; one appears with its first run or key.")
    return project


def _on_the_wire(project: models.Project) -> Project:
    trials, seconds = _caps(project)
    return Project(
        name=project.name,
        muted_detectors=list(project.muted_detectors),
        created_at=project.created_at,
        rerun_automatically=bool(project.rerun_automatically),
        max_concurrent_trials=trials,
        max_rerun_seconds=seconds,
    )
