"""Reruns, trials, attempts and trainables in the database.

One idea: whoever starts or ends a trial holds the rerun's row; a heartbeat, which does neither, holds its trial's. A
row is locked by a statement of its own, and what belongs to it is read by the statements after: PostgreSQL would show a
joined row as it was before the wait. Locks are taken in one order: project, rerun, trial, run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

from sqlalchemy import Connection, Table, bindparam, exists, func, select, text, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, defer

from gradmedic.protocol.remedies import Remedy, describe_remedies
from gradmedic_service.database import models

LIVING = ("queued", "running")

_RERUNS = cast("Table", models.Rerun.__table__)
_CONCLUDED = (
    select(_RERUNS.c.id, _RERUNS.c.candidates, _RERUNS.c.outcomes)
    .where(_RERUNS.c.run_id == bindparam("run_id"), _RERUNS.c.outcomes.is_not(None))
    .order_by(_RERUNS.c.ended_at.desc(), _RERUNS.c.id.desc())
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunQuery:
    """Which reruns, after which one; newest first."""

    reachable_project: str | None = None
    project: str | None = None
    run_id: UUID | None = None
    status: str | None = None
    after: tuple[datetime, UUID] | None = None


def now(session: Session) -> datetime:
    """Read the database's clock: leases are judged by it alone, whatever the clocks of replicas and workers say."""
    if session.get_bind().dialect.name == "sqlite":
        seconds = session.scalar(text("SELECT (julianday('now') - 2440587.5) * 86400.0"))
        return datetime.fromtimestamp(float(seconds or 0.0), UTC)
    found = session.scalar(select(func.clock_timestamp()))
    if not isinstance(found, datetime):
        raise TypeError(f"the database's clock shows {found!r}")
    return found.astimezone(UTC)


# --- trainables -------------------------------------------------------------------------------------------------------


def find_trainable(session: Session, name: str) -> models.Trainable | None:
    """Read a trainable."""
    query = select(models.Trainable).where(models.Trainable.name == name)
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()


def lock_trainables(session: Session, owner: str, names: Sequence[str]) -> dict[str, models.Trainable]:
    """Read the trainables of an owner, and those of some names, by name, and hold them until the transaction ends."""
    trainable = models.Trainable
    query = select(trainable).where((trainable.owner == owner) | trainable.name.in_(names)).order_by(trainable.name)
    found = session.scalars(query.with_for_update().execution_options(populate_existing=True))
    return {one.name: one for one in found}


def add_trainable(session: Session, trainable: models.Trainable) -> bool:
    """Store a trainable; False if its name was taken meanwhile."""
    try:
        with session.begin_nested():
            session.add(trainable)
    except IntegrityError:
        return False
    return True


def trainables(session: Session, project: str | None) -> Sequence[models.Trainable]:
    """Read the trainables that may be rerun for a project, or all, by name."""
    query = select(models.Trainable).where(models.Trainable.withdrawn_at.is_(None)).order_by(models.Trainable.name)
    if project is not None:
        query = query.where(models.Trainable.project.in_([project]) | models.Trainable.project.is_(None))
    return session.scalars(query).all()


# --- reruns -----------------------------------------------------------------------------------------------------------


def add_rerun(session: Session, rerun: models.Rerun) -> bool:
    """Store a rerun; False if its id is taken."""
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
    """Read a rerun and hold it until the transaction ends; None if there is none, or one that is held is skipped."""
    query = select(models.Rerun).where(models.Rerun.id == rerun_id).with_for_update(skip_locked=skips_locked)
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()


def page(session: Session, query: RerunQuery, size: int) -> Sequence[models.Rerun]:
    """Read the first `size` reruns of a query."""
    rerun = models.Rerun
    statement = select(rerun).order_by(rerun.created_at.desc(), rerun.id.desc()).limit(size)
    for column, wanted in (
        (rerun.project, query.reachable_project),
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
    """Whether a run was ever rerun."""
    return bool(session.scalar(select(exists().where(models.Rerun.run_id == run_id))))


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunRevision:
    """How a rerun stands, in the few words that change while it is under way."""

    rerun_id: UUID
    status: str
    trials: dict[str, int]
    """How many there are of each status."""
    revision: int
    """Grows with whatever its trials' runs are told."""


def pulses(session: Session, run_ids: Collection[UUID]) -> dict[UUID, list[RerunRevision]]:
    """Read how the reruns of some runs stand, by one query, the oldest first; runs without any are missing."""
    rerun, trial, attempt, run = models.Rerun, models.Trial, models.Attempt, models.Run
    is_latest = (attempt.trial_id == trial.id) & (attempt.number == trial.attempt)
    rows = session.execute(
        select(
            rerun.run_id,
            rerun.id,
            rerun.status,
            trial.status.label("trials"),
            func.count(trial.id).label("number"),
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
        of_run = found.setdefault(row.run_id, {})
        before = of_run.get(row.id) or RerunRevision(rerun_id=row.id, status=row.status, trials={}, revision=0)
        trials = before.trials if row.trials is None else before.trials | {row.trials: row.number}
        of_run[row.id] = replace(before, trials=trials, revision=before.revision + int(row.revision))
    return {run_id: list(of_run.values()) for run_id, of_run in found.items()}


@dataclass(frozen=True, slots=True)
class Concluded:
    """A rerun that came to a result."""

    id: UUID
    candidates: list[Any]
    outcomes: list[Any]


def concluded(connection: Connection, run_id: UUID) -> list[Concluded]:
    """Read the reruns of a run that came to a result, the latest first."""
    return [Concluded(*row) for row in connection.execute(_CONCLUDED, {"run_id": run_id})]


def with_queued_trials(
    session: Session, owner: str, project: str | None, names: Sequence[str], executor: str, limit: int
) -> list[tuple[UUID, str]]:
    """Read id and project of the reruns of some trainables that wait for a worker, the oldest first."""
    rerun, trial = models.Rerun, models.Trial
    query = select(rerun.id, rerun.project).where(
        rerun.status.in_(LIVING),
        rerun.owner == owner,
        rerun.trainable.in_(names),
        (rerun.executor == executor) | rerun.executor.is_(None),
        exists().where(trial.rerun_id == rerun.id, trial.status == "queued"),
    )
    if project is not None:
        query = query.where(rerun.project == project)
    return [(row.id, row.project) for row in session.execute(query.order_by(rerun.created_at, rerun.id).limit(limit))]


def with_expired_trials(session: Session, at: datetime) -> list[UUID]:
    """Read the ids of the reruns with a trial whose worker was not heard of in time."""
    trial = models.Trial
    query = select(trial.rerun_id).where(trial.status == "running", trial.lease_expires_at < at).distinct()
    return list(session.scalars(query))


def without_worker(session: Session, at: datetime, since: datetime, rerun_id: UUID | None = None) -> list[UUID]:
    """Read the ids of the reruns, or say it of one, that nobody works on, and whose trainable was not offered since."""
    rerun, trial, trainable = models.Rerun, models.Trial, models.Trainable
    is_theirs = (
        (trainable.name == rerun.trainable) & (trainable.owner == rerun.owner) & trainable.withdrawn_at.is_(None)
    )
    is_offered = exists().where(is_theirs, trainable.updated_at >= since)
    is_worked_on = exists().where(trial.rerun_id == rerun.id, trial.status == "running", trial.lease_expires_at >= at)
    query = select(rerun.id).where(rerun.status.in_(LIVING), ~is_offered, ~is_worked_on).order_by(rerun.id)
    return list(session.scalars(query if rerun_id is None else query.where(rerun.id == rerun_id)))


def running_in_project(session: Session, project: str) -> int:
    """Count the trials of a project's reruns that run now."""
    trial, rerun = models.Trial, models.Rerun
    query = select(func.count()).select_from(trial).join(rerun, rerun.id == trial.rerun_id)
    return session.scalar(query.where(rerun.project == project, trial.status == "running")) or 0


# --- trials -----------------------------------------------------------------------------------------------------------


def trials_of(session: Session, rerun_id: UUID) -> Sequence[models.Trial]:
    """Read the trials of a rerun, in the order in which they are started; as they are now, whatever was read before."""
    query = select(models.Trial).where(models.Trial.rerun_id == rerun_id).order_by(models.Trial.position)
    return session.scalars(query.execution_options(populate_existing=True)).all()


def find_trial(session: Session, trial_id: UUID) -> models.Trial | None:
    """Read a trial."""
    return session.scalars(
        select(models.Trial).where(models.Trial.id == trial_id).execution_options(populate_existing=True)
    ).one_or_none()


def add_trials(session: Session, trials: Sequence[models.Trial]) -> None:
    """Store trials."""
    session.add_all(trials)
    session.flush()


def renew(session: Session, trial_id: UUID, attempt: int, until: datetime) -> bool:
    """Renew the lease of an attempt; False if it is not the one that runs."""
    trial = models.Trial
    changed = session.execute(
        update(trial)
        .where(trial.id == trial_id, trial.attempt == attempt, trial.status == "running")
        .values(lease_expires_at=until)
        .returning(trial.id)
    )
    return changed.one_or_none() is not None


def end_trial(session: Session, trial_id: UUID, attempt: int, *, status: str, reason: str | None) -> bool:
    """End a trial by what an attempt showed, by compare-and-set: False unless this attempt is the one that runs."""
    trial = models.Trial
    changed = session.execute(
        update(trial)
        .where(trial.id == trial_id, trial.attempt == attempt, trial.status == "running")
        .values(status=status, reason=reason, lease_expires_at=None)
        .returning(trial.id)
    )
    return changed.one_or_none() is not None


# --- attempts ---------------------------------------------------------------------------------------------------------


def add_attempt(session: Session, attempt: models.Attempt) -> None:
    """Store an attempt."""
    session.add(attempt)
    session.flush()


def find_attempt(session: Session, trial_id: UUID, number: int, *, is_fresh: bool = False) -> models.Attempt | None:
    """Read an attempt; fresh, as it is now, whatever was read before a lock was waited for."""
    return session.get(models.Attempt, (trial_id, number), populate_existing=is_fresh)


def attempts_of(session: Session, rerun_id: UUID) -> Sequence[models.Attempt]:
    """Read every attempt at the trials of a rerun; what each has printed only when it is asked for."""
    attempt, trial = models.Attempt, models.Trial
    query = select(attempt).join(trial, trial.id == attempt.trial_id).where(trial.rerun_id == rerun_id)
    query = query.options(defer(attempt.output))
    return session.scalars(query.order_by(attempt.trial_id, attempt.number)).all()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRun:
    """What the run of an attempt is, whatever the script says of it."""

    parent_id: UUID
    project: str
    name: str
    stop_after: int


def run_of_attempt(session: Session, run_id: UUID) -> AttemptRun | None:
    """Return what a run is that an attempt was promised; None for any other run."""
    attempt, trial, rerun = models.Attempt, models.Trial, models.Rerun
    query = (
        select(attempt, trial, rerun)
        .join(trial, trial.id == attempt.trial_id)
        .join(rerun, rerun.id == trial.rerun_id)
        .where(attempt.run_id == run_id)
    )
    row = session.execute(query).one_or_none()
    if row is None:
        return None
    remedies = [Remedy(**one) for one in row[2].candidates[row[1].candidate]]
    is_current = row[0].status == "running" and row[1].reason_to_stop is None
    return AttemptRun(
        parent_id=row[2].run_id,
        project=row[2].project,
        name=f"{describe_remedies(remedies)}, seed {row[1].seed}"[: models.NAME_LENGTH],
        stop_after=row[2].steps - 1 if is_current else -1,
    )


def runs_of(session: Session, ids: Sequence[UUID]) -> dict[UUID, models.Run]:
    """Read the runs of attempts, those that were created."""
    return {run.id: run for run in session.scalars(select(models.Run).where(models.Run.id.in_(ids)))}


def stop_run(session: Session, run_id: UUID, status: str | None) -> None:
    """Let a run take no further step, and end it unless its script has."""
    run = models.Run
    session.execute(update(run).where(run.id == run_id).values(stop_after=-1))
    if status is not None:
        session.execute(
            update(run).where(run.id == run_id, run.status.in_(("running", "stalled"))).values(status=status)
        )


def lease_end(at: datetime, seconds: float) -> datetime:
    """Return when a lease that begins at a moment ends."""
    return at + timedelta(seconds=seconds)
