"""Reruns in the database, with the trials and attempts that belong to them.

A transaction that starts or ends a trial locks the rerun's row. A heartbeat does neither, and locks the trial's row.
A row is locked by a statement of its own, and what belongs to it is read by later statements: PostgreSQL would return a
joined row as it was before the wait for the lock. Locks are taken in the order project, rerun, trial, run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Table, bindparam, case, exists, func, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, defer

from gradmedic_service.database import models

ACTIVE_STATUSES = ("queued", "running")
"""Statuses of reruns and trials that have not ended."""

_RERUNS = cast("Table", models.Rerun.__table__)
_RUNS = cast("Table", models.Run.__table__)
_HAS_LOCATED = (_RERUNS.c.kind == "locate") & (_RERUNS.c.status == "done")
_RESULTS = (
    select(
        _RERUNS.c.id,
        _RERUNS.c.candidates,
        _RERUNS.c.outcomes,
        case((_HAS_LOCATED, _RERUNS.c.origin)).label("origin"),
        _RUNS.c.framework,
    )
    .join(_RUNS, _RUNS.c.id == _RERUNS.c.run_id)
    .where(_RERUNS.c.run_id == bindparam("run_id"), _RERUNS.c.outcomes.is_not(None) | _HAS_LOCATED)
    .order_by(_RERUNS.c.ended_at.desc(), _RERUNS.c.id.desc())
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunQuery:
    """Filters and position of a page of reruns, newest first."""

    reachable_project: str | None = None
    """The only project that the principal reaches; None for all."""
    reachable_run: UUID | None = None
    """The only run that the principal reaches; None for all."""
    project: str | None = None
    run_id: UUID | None = None
    status: str | None = None
    after: tuple[datetime, UUID] | None = None
    """Time of creation and id of the last rerun of the page before."""


def add_rerun(session: Session, rerun: models.Rerun) -> bool:
    """Store a rerun; return False if its id is taken."""
    try:
        with session.begin_nested():
            session.add(rerun)
    except IntegrityError:
        return False
    return True


def find_rerun(session: Session, rerun_id: UUID) -> models.Rerun | None:
    """Read a rerun."""
    return session.get(models.Rerun, rerun_id)


def lock_rerun(session: Session, rerun_id: UUID, *, skips_locked: bool = False) -> models.Rerun | None:
    """Read a rerun and lock it until the transaction ends; None if there is none, or a locked one is to be skipped."""
    query = select(models.Rerun).where(models.Rerun.id == rerun_id).with_for_update(skip_locked=skips_locked)
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()


def read_page(session: Session, query: RerunQuery, size: int) -> Sequence[models.Rerun]:
    """Read the first `size` reruns of a query."""
    rerun = models.Rerun
    statement = select(rerun).order_by(rerun.created_at.desc(), rerun.id.desc()).limit(size)
    for column, wanted in (
        (rerun.project, query.reachable_project),
        (rerun.run_id, query.reachable_run),
        (rerun.project, query.project),
        (rerun.run_id, query.run_id),
        (rerun.status, query.status),
    ):
        if wanted is not None:
            statement = statement.where(column == wanted)
    if query.after is not None:
        after = tuple_(*query.after, types=[rerun.created_at.type, rerun.id.type])
        statement = statement.where(tuple_(rerun.created_at, rerun.id) < after)
    return session.scalars(statement).all()


def has_rerun(session: Session, run_id: UUID) -> bool:
    """Whether a run has any rerun that races remedies."""
    rerun = models.Rerun
    return bool(session.scalar(select(exists().where(rerun.run_id == run_id, rerun.kind == "repair"))))


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunRevision:
    """The few values of a rerun that change while it runs."""

    rerun_id: UUID
    status: str
    trials: dict[str, int]
    """Number of its trials by status."""
    revision: int
    """Sum that grows whenever the run of one of its trials changes."""


def read_revisions(session: Session, run_ids: Collection[UUID]) -> dict[UUID, list[RerunRevision]]:
    """Read the revisions of the reruns of some runs by one query, the oldest first; runs without reruns are missing."""
    rerun, trial, attempt, run = models.Rerun, models.Trial, models.Attempt, models.Run
    is_latest = (attempt.trial_id == trial.id) & (attempt.number == trial.attempt)
    rows = session.execute(
        select(
            rerun.run_id,
            rerun.id,
            rerun.status,
            trial.status.label("trial_status"),
            func.count(trial.id).label("trial_count"),
            func.coalesce(func.sum(run.revision + 1), 0).label("revision"),
        )
        .outerjoin(trial, trial.rerun_id == rerun.id)
        .outerjoin(attempt, is_latest)
        .outerjoin(run, run.id == attempt.run_id)
        .where(rerun.run_id.in_(run_ids))
        .group_by(rerun.run_id, rerun.id, rerun.status, trial.status)
        .order_by(rerun.id, trial.status)
    )
    found: dict[UUID, dict[UUID, RerunRevision]] = {}
    for row in rows:
        revisions = found.setdefault(row.run_id, {})
        before = revisions.get(row.id) or RerunRevision(rerun_id=row.id, status=row.status, trials={}, revision=0)
        trials = before.trials if row.trial_status is None else before.trials | {row.trial_status: row.trial_count}
        revisions[row.id] = replace(before, trials=trials, revision=before.revision + int(row.revision))
    return {run_id: list(revisions.values()) for run_id, revisions in found.items()}


@dataclass(frozen=True, slots=True)
class RerunResult:
    """What a rerun has shown."""

    id: UUID
    candidates: list[Any]
    outcomes: list[Any] | None
    """Outcomes of the candidates; None if the rerun has compared none."""
    origin: Any
    """What a rerun of the kind `locate` has found; None if it has found nothing, or is of another kind."""
    framework: str | None
    """Framework of the suspect run."""


def list_results(connection: Connection, run_id: UUID) -> list[RerunResult]:
    """Read what the reruns of a run have shown, the latest first."""
    return [RerunResult(*row) for row in connection.execute(_RESULTS, {"run_id": run_id})]


def list_without_worker(session: Session, at: datetime, offered_since: datetime, limit: int) -> list[UUID]:
    """Read the ids of active reruns that no worker runs, and whose trainable no worker has offered since a time."""
    query = select(models.Rerun.id).where(_has_no_worker(at, offered_since)).order_by(models.Rerun.id).limit(limit)
    return list(session.scalars(query))


def has_no_worker(session: Session, rerun_id: UUID, at: datetime, offered_since: datetime) -> bool:
    """Whether a rerun is one of `list_without_worker`."""
    query = select(exists().where(models.Rerun.id == rerun_id, _has_no_worker(at, offered_since)))
    return bool(session.scalar(query))


def _has_no_worker(at: datetime, offered_since: datetime) -> ColumnElement[bool]:
    rerun, trial, trainable = models.Rerun, models.Trial, models.Trainable
    is_offered = exists().where(
        trainable.name == rerun.trainable,
        trainable.owner == rerun.owner,
        trainable.withdrawn_at.is_(None),
        trainable.updated_at >= offered_since,
    )
    is_running = exists().where(trial.rerun_id == rerun.id, trial.status == "running", trial.lease_expires_at >= at)
    return rerun.status.in_(ACTIVE_STATUSES) & ~is_offered & ~is_running


def read_trials(session: Session, rerun_id: UUID) -> Sequence[models.Trial]:
    """Read the trials of a rerun in the order of their start, as they are now."""
    query = select(models.Trial).where(models.Trial.rerun_id == rerun_id).order_by(models.Trial.position)
    return session.scalars(query.execution_options(populate_existing=True)).all()


def add_trials(session: Session, trials: Sequence[models.Trial]) -> None:
    """Store trials."""
    session.add_all(trials)
    session.flush()


def find_attempt(session: Session, trial_id: UUID, number: int, *, is_fresh: bool = False) -> models.Attempt | None:
    """Read an attempt; a fresh one is read again, even if this transaction has read it before it waited for a lock."""
    return session.get(models.Attempt, (trial_id, number), populate_existing=is_fresh)


def read_attempts(session: Session, rerun_id: UUID) -> Sequence[models.Attempt]:
    """Read all attempts at the trials of a rerun, without their output."""
    attempt, trial = models.Attempt, models.Trial
    query = select(attempt).join(trial, trial.id == attempt.trial_id).where(trial.rerun_id == rerun_id)
    query = query.options(defer(attempt.output))
    return session.scalars(query.order_by(attempt.trial_id, attempt.number)).all()


def read_runs(session: Session, attempts: Sequence[models.Attempt]) -> dict[UUID, models.Run]:
    """Read the runs of attempts by id; those that no script has created are missing."""
    ids = [attempt.run_id for attempt in attempts]
    return {run.id: run for run in session.scalars(select(models.Run).where(models.Run.id.in_(ids)))}


def stop_run(session: Session, run_id: UUID) -> None:
    """Let the run of an attempt accept no further step."""
    session.execute(update(models.Run).where(models.Run.id == run_id).values(stop_after=-1))


def end_run(session: Session, run_id: UUID, status: str) -> None:
    """End the run of an attempt, unless its script has ended it."""
    run = models.Run
    has_not_ended = run.status.in_(("running", "stalled"))
    session.execute(update(run).where(run.id == run_id, has_not_ended).values(status=status))
