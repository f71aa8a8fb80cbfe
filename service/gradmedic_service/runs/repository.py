"""Runs in the database."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, delete, literal_column, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload, selectinload

from gradmedic_service.database import models


def add(session: Session, run: models.Run) -> bool:
    """Store a new run; False if its id is taken."""
    try:
        with session.begin_nested():
            session.add(run)
    except IntegrityError:
        return False
    return True


def find(session: Session, run_id: UUID, *, is_locked: bool = False) -> models.Run | None:
    """Read a run with its details and tags. With `is_locked`, no other transaction changes it until this one ends.

    The first statement only takes the lock: after a wait for it, PostgreSQL reads anew only the row that it locked.
    """
    if is_locked:
        session.execute(select(models.Run.id).where(models.Run.id == run_id).with_for_update())
    query = (
        select(models.Run)
        .where(models.Run.id == run_id)
        .options(
            joinedload(models.Run.details, innerjoin=True),
            joinedload(models.Run.review),
            selectinload(models.Run.tags),
        )
    )
    return session.scalars(query).one_or_none()


def remove(session: Session, run_id: UUID) -> None:
    """Delete a run; the database deletes all rows that belong to it."""
    session.execute(delete(models.Run).where(models.Run.id == run_id))


def has_more_runs(session: Session, project: str, count: int | None) -> bool:
    """Whether a project has more than `count` runs; never where `count` is None."""
    if count is None:
        return False
    beyond = select(models.Run.id).where(models.Run.project == project).order_by(models.Run.created_at)
    return session.scalar(beyond.offset(count).limit(1)) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRevision:
    """The fields of a run that change while it trains, at one revision."""

    run_id: UUID
    project: str
    revision: int
    generation: int
    status: str
    verdict: str
    learning: str
    level: str
    score: float
    since_step: int | None
    last_step: int | None


def read_revisions(session: Session, run_ids: Collection[UUID]) -> dict[UUID, RunRevision]:
    """Read the current revisions of runs by one query; a run that does not exist is missing."""
    run = models.Run
    rows = session.execute(
        select(
            run.id,
            run.project,
            run.revision,
            run.generation,
            run.status,
            run.verdict,
            run.learning,
            run.level,
            run.score,
            run.since_step,
            run.last_step,
        ).where(run.id.in_(run_ids))
    )
    return {
        row.id: RunRevision(
            run_id=row.id,
            project=row.project,
            revision=row.revision,
            generation=row.generation,
            status=row.status,
            verdict=row.verdict,
            learning=row.learning,
            level=row.level,
            score=row.score,
            since_step=row.since_step,
            last_step=row.last_step,
        )
        for row in rows
    }


def read_judgement(session: Session, run_id: UUID, step: int) -> tuple[str, str] | None:
    """Read the verdict and the level of a run at a step; None if nothing was decided until then."""
    change = models.VerdictChange
    query = select(change.verdict, change.level).where(change.run_id == run_id, change.step <= step)
    row = session.execute(query.order_by(change.step.desc(), change.id.desc()).limit(1)).one_or_none()
    return None if row is None else (row.verdict, row.level)


def find_all(session: Session, run_ids: Collection[UUID]) -> dict[UUID, models.Run]:
    """Read runs with their tags, and lock them in the order of their ids, so that two requests never wait in a ring."""
    locked = select(models.Run.id).where(models.Run.id.in_(run_ids)).order_by(models.Run.id).with_for_update()
    session.execute(locked)
    query = select(models.Run).where(models.Run.id.in_(run_ids)).options(selectinload(models.Run.tags))
    return {run.id: run for run in session.scalars(query)}


def set_tags(session: Session, run: models.Run, tags: Sequence[str]) -> None:
    """Replace a run's tags."""
    session.execute(delete(models.RunTag).where(models.RunTag.run_id == run.id))
    session.expire(run, ["tags"])
    session.add_all(models.RunTag(run_id=run.id, position=index, tag=tag) for index, tag in enumerate(tags))
    session.flush()


def touch(run: models.Run) -> None:
    """Raise the revision of a run that a transaction changes, and set its time of change."""
    run.revision += 1
    run.updated_at = datetime.now(UTC)


def list_silent_runs(session: Session, now: datetime, limit: int) -> list[UUID]:
    """Read the ids of the running runs that have been silent for longer than their limit."""
    query = select(models.Run.id).where(*_is_silent(now)).order_by(models.Run.stalls_at).limit(limit)
    return list(session.scalars(query))


def mark_stalled(session: Session, run_id: UUID, now: datetime) -> bool:
    """Mark a silent run as stalled; return False if it is not silent any more, or if another transaction holds it."""
    run = models.Run
    locked = select(run.id).where(run.id == run_id, *_is_silent(now)).with_for_update(skip_locked=True)
    if session.scalar(locked) is None:
        return False
    session.execute(update(run).where(run.id == run_id).values(status="stalled", revision=run.revision + 1))
    return True


def list_stalled_runs(session: Session, stalled_before: datetime, limit: int) -> list[UUID]:
    """Read the ids of the runs that are stalled since before a time. No index has them: it reads all runs."""
    query = select(models.Run.id).where(*_is_stalled_since(stalled_before)).order_by(models.Run.stalls_at).limit(limit)
    return list(session.scalars(query))


def mark_failed(session: Session, run_id: UUID, stalled_before: datetime) -> bool:
    """Mark a stalled run as failed; return False if it is not stalled any more, or another transaction holds it.

    Without a time at which it stalls, a failed run is one that did not report its end.
    """
    run = models.Run
    locked = select(run.id).where(run.id == run_id, *_is_stalled_since(stalled_before))
    if session.scalar(locked.with_for_update(skip_locked=True)) is None:
        return False
    values = {"status": "failed", "stalls_at": None, "revision": run.revision + 1}
    session.execute(update(run).where(run.id == run_id).values(values))
    return True


def _is_stalled_since(time: datetime) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return models.Run.status == "stalled", models.Run.stalls_at <= time


def _is_silent(now: datetime) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Return the conditions of `list_silent_runs`. The status is a literal, so that its partial index is used."""
    return models.Run.status == literal_column("'running'"), models.Run.stalls_at <= now


def read_stored_facts(
    connection: Connection | Session, run_id: UUID
) -> tuple[list[Any], dict[str, Any] | None, str | None]:
    """Read the layers, the training and the framework of a run, from which its facts are made."""
    layers, training, framework = connection.execute(
        select(models.RunDetails.layers, models.RunDetails.training, models.Run.framework)
        .join(models.Run, models.Run.id == models.RunDetails.run_id)
        .where(models.RunDetails.run_id == run_id)
    ).one()
    return layers, training, framework
