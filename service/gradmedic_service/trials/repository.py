"""Trials and attempts in the database, as workers claim, renew and end them.

`reruns.repository` documents the order in which rows are locked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import exists, func, select, update
from sqlalchemy.orm import Session

from gradmedic.protocol.remedies import Remedy, describe_remedies
from gradmedic_service.database import models
from gradmedic_service.reruns.repository import ACTIVE_STATUSES
from gradmedic_service.reruns.stored_plan import steps_of


def find_trial(session: Session, trial_id: UUID) -> models.Trial | None:
    """Read a trial as it is now, also where this transaction has read it before."""
    query = select(models.Trial).where(models.Trial.id == trial_id)
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()


def list_reruns_with_queued_trials(
    session: Session, owner: str, project: str | None, trainables: Sequence[str], executor: str, limit: int
) -> list[tuple[UUID, str]]:
    """Read id and project of the reruns whose queued trials a worker may claim, the oldest first."""
    rerun, trial, trainable = models.Rerun, models.Trial, models.Trainable
    query = select(rerun.id, rerun.project).where(
        rerun.status.in_(ACTIVE_STATUSES),
        rerun.owner == owner,
        rerun.trainable.in_(trainables),
        (rerun.executor == executor) | rerun.executor.is_(None),
        exists().where(trial.rerun_id == rerun.id, trial.status == "queued"),
        exists().where(
            trainable.name == rerun.trainable, trainable.owner == rerun.owner, trainable.withdrawn_at.is_(None)
        ),
    )
    if project is not None:
        query = query.where(rerun.project == project)
    return [(row.id, row.project) for row in session.execute(query.order_by(rerun.created_at, rerun.id).limit(limit))]


def count_running(session: Session, project: str) -> int:
    """Count the running trials of a project's reruns."""
    trial, rerun = models.Trial, models.Rerun
    query = select(func.count()).select_from(trial).join(rerun, rerun.id == trial.rerun_id)
    return session.scalar(query.where(rerun.project == project, trial.status == "running")) or 0


def list_reruns_with_lost_trials(session: Session, at: datetime, limit: int) -> list[UUID]:
    """Read the ids of the reruns that have a running trial whose lease has expired."""
    trial = models.Trial
    query = select(trial.rerun_id).where(trial.status == "running", trial.lease_expires_at < at)
    return list(session.scalars(query.distinct().order_by(trial.rerun_id).limit(limit)))


def lock_lost_trials(session: Session, rerun_id: UUID, at: datetime) -> Sequence[models.Trial]:
    """Read the running trials of a rerun whose lease has expired, and lock them until the transaction ends.

    The lock keeps a heartbeat from renewing a lease after it was found expired.
    """
    trial = models.Trial
    query = select(trial).where(trial.rerun_id == rerun_id, trial.status == "running", trial.lease_expires_at < at)
    query = query.order_by(trial.position).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).all()


def renew_lease(session: Session, trial_id: UUID, attempt: int, until: datetime) -> bool:
    """Renew the lease of an attempt; return False if it is not the running one."""
    trial = models.Trial
    changed = session.execute(
        update(trial)
        .where(trial.id == trial_id, trial.attempt == attempt, trial.status == "running")
        .values(lease_expires_at=until)
        .returning(trial.id)
    )
    return changed.one_or_none() is not None


def end_trial(session: Session, trial_id: UUID, attempt: int, *, status: str, reason: str | None) -> bool:
    """End a trial with the result of an attempt, by compare-and-set; return False if it is not the running attempt."""
    trial = models.Trial
    changed = session.execute(
        update(trial)
        .where(trial.id == trial_id, trial.attempt == attempt, trial.status == "running")
        .values(status=status, reason=reason, lease_expires_at=None)
        .returning(trial.id)
    )
    return changed.one_or_none() is not None


def add_attempt(session: Session, attempt: models.Attempt) -> None:
    """Store an attempt."""
    session.add(attempt)
    session.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRun:
    """Fields of an attempt's run that the service sets; those that the script sends are ignored."""

    key_id: UUID | None
    """Id of the attempt's API key, which alone may create the run; None where no keys are needed."""
    parent_id: UUID
    project: str
    name: str
    stop_after: int
    """Last step that the run accepts; -1 if it accepts none."""


def find_run_of_attempt(session: Session, run_id: UUID) -> AttemptRun | None:
    """Return the fields that the service sets of a run whose id belongs to an attempt; None for any other run."""
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
    found_attempt, found_trial, found_rerun = row
    remedies = [Remedy(**remedy) for remedy in found_rerun.candidates[found_trial.candidate]]
    may_run = found_attempt.status == "running" and found_trial.reason_to_stop is None
    return AttemptRun(
        key_id=found_attempt.key_id,
        parent_id=found_rerun.run_id,
        project=found_rerun.project,
        name=f"{describe_remedies(remedies)}, seed {found_trial.seed}"[: models.NAME_LENGTH],
        stop_after=steps_of(found_rerun, found_trial.candidate) - 1 if may_run else -1,
    )
