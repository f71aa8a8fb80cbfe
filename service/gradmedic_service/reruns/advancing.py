"""Advancing the experiment of a rerun: reads its rows, and starts trials or concludes.

It is called after every change of a trial, in the transaction that makes the change, while the rerun's row is locked.
After a crash, the next change or the due work finds rows from which the same follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime

from pydantic import TypeAdapter

from gradmedic.protocol.encoding import without_nonfinite
from gradmedic.protocol.ids import new_id
from gradmedic_service.database import models
from gradmedic_service.database.engine import Session
from gradmedic_service.reruns import experiment, repository
from gradmedic_service.reruns.experiment import ExperimentBudget, ExperimentDesign, TrialState
from gradmedic_service.reruns.loss_curves import LossCurve
from gradmedic_service.reruns.repository import ACTIVE_STATUSES
from gradmedic_service.runs import repository as runs
from gradmedic_service.trainables import service as trainables

MIN_SECONDS = 1.0
"""No trial is started with less time than this."""
SECONDS_SPENT = "the rerun's budget of seconds is spent"

CURVE = TypeAdapter(LossCurve)


def advance(session: Session, rerun: models.Rerun, at: datetime, reason_for_no_new_trials: str | None = None) -> None:
    """Start the trials that the experiment needs now, or conclude it. The rerun's row must be locked.

    Args:
        session: a session of the transaction that has changed the rerun or one of its trials.
        rerun: the rerun; one that has ended stays as it is.
        at: the database's time.
        reason_for_no_new_trials: why no further trial can be started; queued ones are then cancelled.
    """
    if rerun.status not in ACTIVE_STATUSES:
        return
    trials = list(repository.read_trials(session, rerun.id))
    reason = trainables.reason_not_offered(session, rerun.trainable, rerun.owner) or reason_for_no_new_trials
    if reason is None and seconds_left(session, rerun, trials, at) < MIN_SECONDS:
        reason = SECONDS_SPENT
    if reason is not None:
        cancel_queued(trials, reason)
    # The latest attempt at a trial comes last, so that its environment is the one that stays.
    environments = {attempt.trial_id: attempt.environment for attempt in repository.read_attempts(session, rerun.id)}
    states = [replace(trial_state(trial), environment=environments.get(trial.id, {})) for trial in trials]
    next_step = experiment.next_step(design_of(rerun), states, reason)
    if next_step.conclusion is not None:
        _conclude(session, rerun, next_step.conclusion, at)
        return
    new_trials = [
        _new_trial(rerun, len(trials) + index, candidate, seed)
        for index, (candidate, seed) in enumerate(next_step.start)
    ]
    repository.add_trials(session, new_trials)


def design_of(rerun: models.Rerun) -> ExperimentDesign:
    """Return the design of a rerun's experiment."""
    budget = ExperimentBudget(steps=rerun.steps, trials=rerun.max_trials)
    return ExperimentDesign(candidates=len(rerun.candidates) - 1, seeds=tuple(rerun.seeds), budget=budget)


def trial_state(trial: models.Trial) -> TrialState:
    """Return a trial as the experiment reads it, without its environment."""
    return TrialState(
        candidate=trial.candidate,
        seed=trial.seed,
        status=trial.status,
        verdict=trial.verdict,
        curve=None if trial.curve is None else CURVE.validate_python(trial.curve),
        rungs=tuple(float(loss) for loss in trial.rungs),
        seconds=trial.seconds,
        reason=trial.reason,
    )


def seconds_left(session: Session, rerun: models.Rerun, trials: Sequence[models.Trial], at: datetime) -> float:
    """Return the seconds that are left of a rerun's budget; running trials count up to now."""
    left = rerun.seconds - sum(trial.seconds for trial in trials)
    for trial in trials:
        if trial.status == "running":
            attempt = repository.find_attempt(session, trial.id, trial.attempt)
            if attempt is not None and not attempt.is_waiting:
                left -= max(0.0, (at - attempt.started_at).total_seconds())
    return left


def cancel_queued(trials: Sequence[models.Trial], reason: str) -> None:
    """Cancel the queued ones of some trials."""
    for trial in trials:
        if trial.status == "queued":
            trial.status, trial.reason = "cancelled", reason


def touch_suspect_run(session: Session, rerun: models.Rerun) -> None:
    """Raise the revision of a rerun's suspect run."""
    run = runs.find(session, rerun.run_id, is_locked=True)
    if run is not None:
        runs.touch(run)


def _conclude(session: Session, rerun: models.Rerun, conclusion: experiment.Conclusion, at: datetime) -> None:
    rerun.status, rerun.reason, rerun.ended_at = conclusion.status, conclusion.reason, at
    rerun.outcomes = [without_nonfinite(asdict(outcome)) for outcome in conclusion.outcomes]
    touch_suspect_run(session, rerun)


def _new_trial(rerun: models.Rerun, position: int, candidate: int, seed: int) -> models.Trial:
    return models.Trial(
        id=new_id(),
        rerun_id=rerun.id,
        position=position,
        candidate=candidate,
        seed=seed,
        status="queued",
        reason=None,
        attempt=0,
        lease_expires_at=None,
        reason_to_stop=None,
        verdict="undetermined",
        rungs=[],
        curve=None,
        seconds=0.0,
    )
