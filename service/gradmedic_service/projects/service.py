"""Projects: reading, listing and changing them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from gradmedic.protocol.projects import Project, ProjectList, ProjectUpdate
from gradmedic.protocol.service import FieldError
from gradmedic_service.access.principal import Principal
from gradmedic_service.database import models
from gradmedic_service.database.engine import Session
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.http.paging import cut_page, position_of
from gradmedic_service.projects import repository
from gradmedic_service.projects.errors import ProjectNotFound
from gradmedic_service.projects.muting import muting_errors

SORTS = ("name", "-name")
DEFAULT_CONCURRENT_TRIALS = 8
"""Trials that may run at the same time in a project that has set no cap."""
DEFAULT_RERUN_SECONDS = 86_400.0
"""Seconds that a rerun may take in a project that has set no cap."""
MAX_CONCURRENT_TRIALS = 1_000
MAX_RERUN_SECONDS = 30 * 86_400.0
MAX_MUTE = timedelta(days=366)
"""Longest time for which a project's alerts are muted: a mute that nobody remembers should end."""


class RerunCaps(NamedTuple):
    """The caps of a project on its reruns."""

    concurrent_trials: int
    """Trials that may run at the same time."""
    seconds: float
    """Seconds that one rerun may take."""


def rerun_caps(session: Session, name: str) -> RerunCaps:
    """Return the caps of a project on its reruns."""
    return _rerun_caps(repository.find(session, name))


def create_missing(session: Session, name: str, now: datetime) -> None:
    """Create a project unless it exists. A project appears with its first run or key."""
    repository.add_missing(session, name, now)


def lock(session: Session, name: str) -> None:
    """Let no other transaction change a project until this one ends."""
    repository.find(session, name, is_locked=True)


def get(session: Session, principal: Principal, name: str) -> Project:
    """Return a project. Raises ProjectNotFound, also if the principal does not reach the project."""
    return _to_project(_existing(principal, repository.find(session, name), name))


def update(session: Session, principal: Principal, name: str, body: ProjectUpdate) -> Project:
    """Change the settings that the body contains. Raises ProjectNotFound, InvalidRequest."""
    errors = list(muting_errors(body.muted_detectors or ()))
    if body.max_concurrent_trials is not None and not 1 <= body.max_concurrent_trials <= MAX_CONCURRENT_TRIALS:
        errors.append(FieldError(path="max_concurrent_trials", message=f"must be from 1 to {MAX_CONCURRENT_TRIALS}"))
    if body.max_rerun_seconds is not None and not 1 <= body.max_rerun_seconds <= MAX_RERUN_SECONDS:
        errors.append(FieldError(path="max_rerun_seconds", message=f"must be from 1 to {MAX_RERUN_SECONDS:g}"))
    if body.alerts_muted_until is not None and body.alerts_muted_until > datetime.now(UTC) + MAX_MUTE:
        errors.append(FieldError(path="alerts_muted_until", message=f"must be at most {MAX_MUTE.days} days from now"))
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
    if body.alerts_muted_until is not None:
        project.alerts_muted_until = body.alerts_muted_until
    return _to_project(project)


def list_page(
    session: Session, principal: Principal, sort: str, page_token: str | None, max_results: int
) -> ProjectList:
    """Return a page of projects; none for a key of one run. Raises InvalidRequest for a token of another list."""
    if principal.run_id is not None:
        return ProjectList(items=[], next_page_token=None)
    query = f"projects by {sort}"
    after = None if page_token is None else position_of(page_token, query, 1)[0]
    rows = repository.list_by_name(
        session, only=principal.project, is_descending=sort.startswith("-"), after=after, size=max_results + 1
    )
    page, token = cut_page(rows, max_results, query, lambda project: [project.name])
    return ProjectList(items=[_to_project(project) for project in page], next_page_token=token)


def _existing(principal: Principal, project: models.Project | None, name: str) -> models.Project:
    if project is None or not principal.reaches_project(name):
        raise ProjectNotFound(f"There is no project {name!r}; one appears with its first run or key.")
    return project


def _to_project(project: models.Project) -> Project:
    caps = _rerun_caps(project)
    return Project(
        name=project.name,
        muted_detectors=list(project.muted_detectors),
        created_at=project.created_at,
        rerun_automatically=bool(project.rerun_automatically),
        max_concurrent_trials=caps.concurrent_trials,
        max_rerun_seconds=caps.seconds,
        alerts_muted_until=project.alerts_muted_until,
    )


def _rerun_caps(project: models.Project | None) -> RerunCaps:
    trials = None if project is None else project.max_concurrent_trials
    seconds = None if project is None else project.max_rerun_seconds
    return RerunCaps(trials or DEFAULT_CONCURRENT_TRIALS, seconds or DEFAULT_RERUN_SECONDS)
