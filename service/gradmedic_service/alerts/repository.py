"""Destinations, events, alerts and deliveries in the database."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    Connection,
    Delete,
    Table,
    Update,
    case,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session

from gradmedic_service.alerts.grouping import NamedRun
from gradmedic_service.alerts.policy import Event, PastTrouble
from gradmedic_service.database import models

IDS_PER_QUERY = 500
"""Largest number of ids in one statement."""

_ADD_EVENTS = insert(cast("Table", models.AlertEvent.__table__))
_IS_WAITING = models.AlertEvent.handled_at.is_(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventGroup:
    """The due events of one trouble of one project."""

    project: str
    trouble: str
    first_due_at: datetime


def add_events(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store events; each row has all columns that may not be null."""
    connection.execute(_ADD_EVENTS, rows)


def list_due_groups(session: Session, now: datetime) -> list[EventGroup]:
    """Read the groups of waiting events that are due, the one that is due longest first."""
    event = models.AlertEvent
    first_due_at = func.min(event.due_at).label("first_due_at")
    query = select(event.project, event.trouble, first_due_at).where(_IS_WAITING, event.due_at <= now)
    rows = session.execute(query.group_by(event.project, event.trouble).order_by(first_due_at)).all()
    return [EventGroup(project=row.project, trouble=row.trouble, first_due_at=row.first_due_at) for row in rows]


def read_due_events(
    session: Session, project: str, trouble: str, now: datetime, size: int
) -> Sequence[models.AlertEvent]:
    """Read the first `size` due events of a group, the one that is due longest first."""
    event = models.AlertEvent
    query = select(event).where(_IS_WAITING, event.due_at <= now, event.project == project, event.trouble == trouble)
    return session.scalars(query.order_by(event.due_at, event.id).limit(size)).all()


def to_event(row: models.AlertEvent) -> Event:
    """Return a stored event as the policy reads it."""
    return Event(
        id=row.id,
        run_id=row.run_id,
        revision=row.revision,
        subject=row.subject,
        trouble=row.trouble,
        rerun_id=row.rerun_id,
        details=row.details,
        created_at=row.created_at,
    )


def read_pasts(session: Session, run_ids: Collection[UUID]) -> dict[UUID, dict[tuple[str, str], PastTrouble]]:
    """Read what happened to runs so far, by run, then by subject and trouble."""
    event = models.AlertEvent
    is_told = event.alert_id.is_not(None)
    columns = (
        event.run_id,
        event.subject,
        event.trouble,
        func.max(event.revision).label("last_revision"),
        func.max(case((is_told, event.revision))).label("told_revision"),
        func.max(case((is_told, event.handled_at))).label("told_at"),
    )
    pasts: dict[UUID, dict[tuple[str, str], PastTrouble]] = {}
    for ids in _batches(run_ids):
        query = select(*columns).where(event.run_id.in_(ids)).group_by(event.run_id, event.subject, event.trouble)
        for row in session.execute(query):
            past = PastTrouble(last_revision=row.last_revision, told_revision=row.told_revision, told_at=row.told_at)
            pasts.setdefault(row.run_id, {})[row.subject, row.trouble] = past
    return pasts


def mark_handled(
    session: Session, event_ids: Collection[UUID], handled_at: datetime, alert_id: UUID | None = None
) -> None:
    """Mark events as handled, with the alert that was made of them."""
    event = models.AlertEvent
    for ids in _batches(event_ids):
        _change(session, update(event).where(event.id.in_(ids)).values(handled_at=handled_at, alert_id=alert_id))


def postpone(session: Session, event_ids: Collection[UUID], due_at: datetime) -> None:
    """Let events wait until a time."""
    event = models.AlertEvent
    for ids in _batches(event_ids):
        _change(session, update(event).where(event.id.in_(ids)).values(due_at=due_at))


def count_alerts_since(session: Session, project: str, trouble: str, since: datetime) -> int:
    """Count the alerts about a trouble of a project since a time."""
    alert = models.Alert
    query = select(func.count()).where(
        alert.project == project, alert.id >= first_id_at(since), alert.trouble == trouble, alert.created_at >= since
    )
    return session.scalar(query) or 0


def first_id_at(moment: datetime) -> UUID:
    """Return the smallest id that is made at a time or later: ids of version 7 begin with milliseconds."""
    return UUID(int=max(0, int(moment.timestamp() * 1000)) << 80)


def lock_project(session: Session, name: str) -> models.Project | None:
    """Read a project and lock it until the transaction ends; None if there is none or another transaction locks it."""
    query = select(models.Project).where(models.Project.name == name).with_for_update(skip_locked=True)
    return session.scalars(query).one_or_none()


def name_runs(session: Session, run_ids: Sequence[UUID]) -> list[NamedRun]:
    """Read the names of runs, in the order of the ids; runs that are gone are left out."""
    run = models.Run
    found: dict[UUID, NamedRun] = {}
    for ids in _batches(run_ids):
        for row in session.execute(select(run.id, run.name, run.group).where(run.id.in_(ids))):
            found[row.id] = NamedRun(id=row.id, name=row.name, group=row.group)
    return [found[run_id] for run_id in run_ids if run_id in found]


def count_runs(session: Session, project: str, group: str | None) -> int:
    """Count the runs of a group; without a group, the running runs of the project. Runs of trials do not count."""
    run = models.Run
    query = select(func.count()).where(run.project == project, run.parent_id.is_(None))
    if group is None:
        return session.scalar(query.where(run.status == literal_column("'running'"))) or 0
    return session.scalar(query.where(run.group == group)) or 0


def add_alert(session: Session, alert: models.Alert, deliveries: Sequence[models.AlertDelivery]) -> None:
    """Store an alert with its deliveries."""
    session.add(alert)
    session.flush()
    session.add_all(deliveries)


# Destinations


def add_destination(session: Session, destination: models.AlertDestination) -> None:
    """Store a destination."""
    session.add(destination)


def find_destination(
    session: Session, destination_id: UUID, *, is_locked: bool = False
) -> models.AlertDestination | None:
    """Read a destination; with `is_locked`, no other transaction changes it until this one ends."""
    query = select(models.AlertDestination).where(models.AlertDestination.id == destination_id)
    return session.scalars(query.with_for_update() if is_locked else query).one_or_none()


def list_destinations(
    session: Session, project: str | None, *, after: UUID | None = None, size: int | None = None
) -> Sequence[models.AlertDestination]:
    """Read the destinations of a project, or of all projects, in the order in which they were made."""
    destination = models.AlertDestination
    query = select(destination).order_by(destination.id)
    if project is not None:
        query = query.where(destination.project == project)
    if after is not None:
        query = query.where(destination.id > after)
    return session.scalars(query if size is None else query.limit(size)).all()


def remove_destination(session: Session, destination_id: UUID) -> None:
    """Delete a destination; the database deletes its deliveries."""
    session.execute(delete(models.AlertDestination).where(models.AlertDestination.id == destination_id))


# History


def list_alerts(
    session: Session,
    project: str | None,
    *,
    run_id: UUID | None = None,
    trouble: str | None = None,
    after: UUID | None = None,
    size: int,
) -> Sequence[models.Alert]:
    """Read the first `size` alerts after one, newest first: of a project or all, and about one run or any."""
    alert, event = models.Alert, models.AlertEvent
    query = select(alert).order_by(alert.id.desc()).limit(size)
    if project is not None:
        query = query.where(alert.project == project)
    if run_id is not None:
        query = query.where(alert.id.in_(select(event.alert_id).where(event.run_id == run_id)))
    if trouble is not None:
        query = query.where(alert.trouble == trouble)
    if after is not None:
        query = query.where(alert.id < after)
    return session.scalars(query).all()


def read_deliveries(
    session: Session, alert_ids: Collection[UUID]
) -> dict[UUID, list[tuple[models.AlertDelivery, models.AlertDestination]]]:
    """Read the deliveries of alerts with their destinations, by alert."""
    delivery, destination = models.AlertDelivery, models.AlertDestination
    found: dict[UUID, list[tuple[models.AlertDelivery, models.AlertDestination]]] = {}
    for ids in _batches(alert_ids):
        query = select(delivery, destination).join(destination, destination.id == delivery.destination_id)
        for row in session.execute(query.where(delivery.alert_id.in_(ids)).order_by(delivery.id)):
            found.setdefault(row[0].alert_id, []).append((row[0], row[1]))
    return found


# Deliveries


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A delivery that this process is to send."""

    delivery: models.AlertDelivery
    alert: models.Alert
    destination: models.AlertDestination


def has_due_delivery(session: Session, now: datetime) -> bool:
    """Whether a delivery is due."""
    return session.scalar(_due_deliveries(now).limit(1)) is not None


def claim_delivery(session: Session, now: datetime, lease_expires_at: datetime) -> ClaimedDelivery | None:
    """Begin an attempt at a due delivery, and return it; None if none is due.

    Destinations that work come first, then deliveries with few attempts, then old ones. It passes over deliveries that
    another transaction has locked. A delivery to a destination that is muted gets the state `muted`.
    """
    delivery = models.AlertDelivery
    order = (models.AlertDestination.failures, delivery.attempts, delivery.created_at, delivery.id)
    while True:
        query = _due_deliveries(now).order_by(*order).limit(1)
        claimed_id = session.scalar(query.with_for_update(skip_locked=True, of=delivery))
        if claimed_id is None:
            return None
        claimed = session.get_one(delivery, claimed_id)
        destination = session.get_one(models.AlertDestination, claimed.destination_id)
        if destination.muted_until is not None and destination.muted_until > now:
            claimed.state, claimed.lease_expires_at = "muted", None
            session.flush()
            continue
        claimed.state, claimed.attempts, claimed.lease_expires_at = "sending", claimed.attempts + 1, lease_expires_at
        claimed.next_attempt_at = lease_expires_at
        return ClaimedDelivery(claimed, session.get_one(models.Alert, claimed.alert_id), destination)


def _due_deliveries(now: datetime) -> Any:
    delivery, destination = models.AlertDelivery, models.AlertDestination
    return (
        select(delivery.id)
        .join(destination, destination.id == delivery.destination_id)
        .where(
            delivery.state.in_(("waiting", "sending")),
            delivery.next_attempt_at <= now,
            or_(destination.paused_until.is_(None), destination.paused_until <= now),
        )
    )


def lock_attempt(session: Session, delivery_id: UUID, attempt: int) -> models.AlertDelivery | None:
    """Read and lock a delivery that is still at an attempt; None if another process has claimed it since."""
    delivery = models.AlertDelivery
    is_current = (delivery.id == delivery_id, delivery.attempts == attempt, delivery.state == "sending")
    return session.scalars(select(delivery).where(*is_current).with_for_update()).one_or_none()


def end_old_deliveries(session: Session, created_before: datetime) -> int:
    """Give up waiting deliveries that were made before a time, and were tried; return how many."""
    delivery = models.AlertDelivery
    is_old = (delivery.state == "waiting", delivery.created_at < created_before, delivery.attempts > 0)
    return _change(session, update(delivery).where(*is_old).values(state="dead"))


# Retention


def remove_alerts_before(session: Session, moment: datetime, limit: int) -> int:
    """Delete the oldest alerts before a time, at most `limit`; return how many."""
    alert = models.Alert
    old = select(alert.id).where(alert.id < first_id_at(moment)).order_by(alert.id).limit(limit)
    return _change(session, delete(alert).where(alert.id.in_(old)))


def remove_alerts_beyond(session: Session, project: str, count: int) -> int:
    """Delete all but the newest `count` alerts of a project; return how many."""
    alert = models.Alert
    newest_first = select(alert.id).where(alert.project == project).order_by(alert.id.desc())
    first_beyond = session.scalar(newest_first.offset(count).limit(1))
    if first_beyond is None:
        return 0
    return _change(session, delete(alert).where(alert.project == project, alert.id <= first_beyond))


def list_projects_with_alerts(session: Session) -> list[str]:
    """Read the names of the projects with alerts."""
    return list(session.scalars(select(models.Alert.project).distinct()))


def remove_untold_events(session: Session, handled_before: datetime) -> int:
    """Delete the events that were handled before a time and became no alert; return how many."""
    event = models.AlertEvent
    return _change(session, delete(event).where(event.handled_at < handled_before, event.alert_id.is_(None)))


def _change(session: Session, statement: Delete | Update) -> int:
    """Run a statement that changes rows, and return how many it changed."""
    return session.connection().execute(statement).rowcount


def _batches(ids: Collection[UUID]) -> Iterator[list[UUID]]:
    """Yield ids in lists that fit into one statement."""
    listed = list(ids)
    for start in range(0, len(listed), IDS_PER_QUERY):
        yield listed[start : start + IDS_PER_QUERY]
