"""Finding a trial and its running attempt, and the errors where there is none."""

from __future__ import annotations

from uuid import UUID

from gradmedic_service.access.principal import Principal
from gradmedic_service.database import models
from gradmedic_service.database.engine import Session
from gradmedic_service.reruns import repository as reruns
from gradmedic_service.trainables.service import owner_of
from gradmedic_service.trials import repository
from gradmedic_service.trials.errors import StaleAttempt, TrialNotFound


def find_trial_of_worker(session: Session, principal: Principal, trial_id: UUID) -> tuple[models.Trial, models.Rerun]:
    """Return a trial and its rerun, if the trainable belongs to the worker. Raises TrialNotFound."""
    trial, rerun = find_trial(session, trial_id)
    if not principal.reaches_project(rerun.project) or rerun.owner != owner_of(principal):
        raise trial_not_found(trial_id)
    return trial, rerun


def find_trial(session: Session, trial_id: UUID) -> tuple[models.Trial, models.Rerun]:
    """Return a trial and its rerun. Raises TrialNotFound."""
    trial = repository.find_trial(session, trial_id)
    rerun = None if trial is None else reruns.find_rerun(session, trial.rerun_id)
    if trial is None or rerun is None:
        raise trial_not_found(trial_id)
    return trial, rerun


def lock_running_attempt(
    session: Session, rerun_id: UUID, trial_id: UUID, number: int
) -> tuple[models.Trial, models.Attempt]:
    """Lock a rerun, and return one of its trials with its running attempt. Raises TrialNotFound, StaleAttempt."""
    reruns.lock_rerun(session, rerun_id)
    trial = repository.find_trial(session, trial_id)
    attempt = reruns.find_attempt(session, trial_id, number, is_fresh=True)
    if trial is None or attempt is None:
        raise trial_not_found(trial_id)
    check_running(trial, number)
    return trial, attempt


def check_running(trial: models.Trial, attempt: int) -> None:
    """Raise StaleAttempt unless an attempt is the running one of a trial."""
    if trial.attempt != attempt or trial.status != "running":
        raise stale_attempt(trial, attempt)


def trial_not_found(trial_id: UUID) -> TrialNotFound:
    """Return the error for a trial that does not exist, or that the principal does not reach."""
    return TrialNotFound(f"There is no trial {trial_id}.")


def stale_attempt(trial: models.Trial, attempt: int) -> StaleAttempt:
    """Return the error for an attempt that is not the running one of a trial."""
    if trial.attempt != attempt:
        return StaleAttempt(f"Attempt {attempt} at this trial was given up; attempt {trial.attempt} is the latest.")
    return StaleAttempt(f"The trial is {trial.status}: {trial.reason or 'it has ended'}.")
