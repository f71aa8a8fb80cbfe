"""Making alerts: turns waiting events into alerts and deliveries, a short transaction for each trouble of a project.

The lock of the project's row keeps other replicas from the same events. A crash leaves the events as they were.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from threading import Event as ThreadEvent
from uuid import UUID

import structlog

from gradmedic.protocol.ids import new_id
from gradmedic_service.alerts import policy, repository
from gradmedic_service.alerts.grouping import ToldEvent, common_group, compose
from gradmedic_service.alerts.policy import Event
from gradmedic_service.alerts.repository import EventGroup
from gradmedic_service.database import models
from gradmedic_service.database.clock import database_time
from gradmedic_service.database.engine import Database, Session

MAX_EVENTS = 2_000
"""Largest number of events of one transaction, and of runs of one alert."""

_logger = structlog.get_logger("gradmedic.alerts")


def make_due_alerts(database: Database, is_ending: ThreadEvent | None = None) -> int:
    """Make the alerts that are due, and return how many. An error is logged, and the other alerts are still made.

    Args:
        database: the database of the service.
        is_ending: once set, no further alert is begun.
    """
    with database.reading() as session:
        groups = _ready_groups(session, database_time(session))
    made = 0
    for group in groups:
        if is_ending is not None and is_ending.is_set():
            break
        try:
            with database.writing() as session:
                made += make_alert(session, group.project, group.trouble, database_time(session))
        except Exception:  # one project's alerts must not depend on those of another
            _logger.exception("alerts are made later", project=group.project, trouble=group.trouble)
    return made


def make_alert(session: Session, project_name: str, trouble: str, now: datetime) -> bool:
    """Decide on the due events of a trouble of a project, and make an alert of those that need one.

    Returns whether an alert was made. Nothing happens if another transaction does it.
    """
    project = repository.lock_project(session, project_name)
    if project is None:
        return False
    rows = repository.read_due_events(session, project_name, trouble, now, MAX_EVENTS)
    if not rows or not _is_ready(session, project_name, trouble, rows[0].due_at, now):
        return False
    destinations = [
        destination
        for destination in repository.list_destinations(session, project_name)
        if destination.troubles is None or trouble in destination.troubles
    ]
    is_muted = project.alerts_muted_until is not None and project.alerts_muted_until > now
    if is_muted or not destinations:
        repository.mark_handled(session, [row.id for row in rows], now)
        return False
    told = _decide(session, [repository.to_event(row) for row in rows], now)
    if not told:
        return False
    alert = _new_alert(session, project_name, trouble, told, now)
    repository.add_alert(session, alert, [_new_delivery(alert, destination, now) for destination in destinations])
    repository.mark_handled(session, [entry.event.id for entry in told], now, alert.id)
    return True


def _ready_groups(session: Session, now: datetime) -> list[EventGroup]:
    """Return the groups of events that have been gathered for long enough."""
    groups = repository.list_due_groups(session, now)
    return [group for group in groups if _is_ready(session, group.project, group.trouble, group.first_due_at, now)]


def _is_ready(session: Session, project: str, trouble: str, first_due_at: datetime, now: datetime) -> bool:
    """Whether the events of a trouble have been gathered for long enough."""
    waited = (now - first_due_at).total_seconds()
    if waited < policy.GATHERING_SECONDS:
        return False
    since = now - timedelta(seconds=policy.RECENT_SECONDS)
    return waited >= policy.gathering_seconds(repository.count_alerts_since(session, project, trouble, since))


def _decide(session: Session, events: Sequence[Event], now: datetime) -> list[ToldEvent]:
    """Drop the events that need no alert, postpone those that are too early, and return the others with their runs."""
    pasts = repository.read_pasts(session, {event.run_id for event in events})
    dropped: list[UUID] = []
    postponed: dict[datetime, list[UUID]] = defaultdict(list)
    told: list[Event] = []
    for event in events:
        decision = policy.decide(event, pasts.get(event.run_id, {}), now)
        if decision.action == "tell":
            told.append(event)
        elif decision.until is not None:
            postponed[decision.until].append(event.id)
        else:
            dropped.append(event.id)
    repository.mark_handled(session, dropped, now)
    for until, event_ids in postponed.items():
        repository.postpone(session, event_ids, until)
    runs = {run.id: run for run in repository.name_runs(session, [event.run_id for event in told])}
    return [ToldEvent(event=event, run=runs[event.run_id]) for event in told if event.run_id in runs]


def _new_alert(session: Session, project: str, trouble: str, told: Sequence[ToldEvent], now: datetime) -> models.Alert:
    text = compose(project, trouble, told, repository.count_runs(session, project, common_group(told)))
    return models.Alert(
        id=new_id(),
        project=project,
        trouble=trouble,
        run_ids=[str(run_id) for run_id in text.run_ids],
        run_count=text.run_count,
        title=text.title,
        sentence=text.sentence,
        advice=text.advice,
        path=text.path,
        created_at=now,
    )


def _new_delivery(alert: models.Alert, destination: models.AlertDestination, now: datetime) -> models.AlertDelivery:
    is_muted = destination.muted_until is not None and destination.muted_until > now
    return models.AlertDelivery(
        id=new_id(),
        alert_id=alert.id,
        destination_id=destination.id,
        state="muted" if is_muted else "waiting",
        attempts=0,
        next_attempt_at=now,
        lease_expires_at=None,
        last_error=None,
        delivered_at=None,
        created_at=now,
    )
