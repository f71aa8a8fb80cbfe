"""Advancing the experiment of a rerun: reads its rows, and starts trials or concludes.

It is called after every change of a trial, in the transaction that makes the change, while the rerun's row is locked.
After a crash, the next change or the due work finds rows from which the same follows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from statistics import median

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from gradmedic.protocol.encoding import without_nonfinite
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.remedies import Remedy
from gradmedic_service.access.principal import OPERATOR
from gradmedic_service.alerts import events
from gradmedic_service.database import models
from gradmedic_service.database.engine import Session
from gradmedic_service.reruns import experiment, locating, repository, rounds
from gradmedic_service.reruns.experiment import ExperimentDesign
from gradmedic_service.reruns.judging import TrialState
from gradmedic_service.reruns.loss_curves import LossCurve
from gradmedic_service.reruns.outcomes import CANDIDATES, ORIGIN
from gradmedic_service.reruns.repository import ACTIVE_STATUSES
from gradmedic_service.reruns.stored_plan import design_of, plan_of, store_plan
from gradmedic_service.runs import repository as runs
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.telemetry import service as telemetry
from gradmedic_service.telemetry.failures import find_failed_step
from gradmedic_service.trainables import repository as stored_trainables
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
    left = seconds_left(session, rerun, trials, at)
    if reason is None and left < MIN_SECONDS:
        reason = SECONDS_SPENT
    if reason is not None:
        cancel_queued(trials, reason)
    if rerun.kind == "locate":
        _advance_locating(session, rerun, trials, at, reason)
        return
    attempts = repository.read_attempts(session, rerun.id)
    # The latest attempt at a trial comes last, so that its environment is the one that stays.
    environments = {attempt.trial_id: attempt.environment for attempt in attempts}
    while True:
        design = design_of(rerun)
        states = [replace(trial_state(trial), environment=environments.get(trial.id, {})) for trial in trials]
        affordable = affordable_trials(design, states, left)
        next_step = experiment.next_step(design, states, reason, affordable)
        if next_step.needs_round and not _add_round(session, rerun, trials, states, left):
            ended = replace(design, budget=replace(design.budget, rounds=len(design.rounds)))
            next_step = experiment.next_step(ended, states, reason, affordable)
        if next_step.conclusion is not None:
            _conclude(session, rerun, next_step.conclusion, at)
            return
        if next_step.cancel:
            losing = [trial for trial in trials if (trial.candidate, trial.seed) in next_step.cancel]
            cancel_queued(losing, experiment.CANNOT_WIN)
        elif not next_step.needs_round:
            break
    new_trials = [
        _new_trial(rerun, len(trials) + index, candidate, seed)
        for index, (candidate, seed) in enumerate(next_step.start)
    ]
    repository.add_trials(session, new_trials)


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


def affordable_trials(design: ExperimentDesign, trials: Sequence[TrialState], seconds: float) -> int | None:
    """Return how many trials of the last round some seconds allow besides those that are running or queued.

    It is negative if they do not allow these, and None if no trial has shown yet how long one takes.
    """
    per_step = seconds_per_step(trials)
    if per_step is None:
        return None
    unfinished = sum(not trial.has_ended for trial in trials)
    return math.floor(seconds / (per_step * design.rounds[-1].steps)) - unfinished


def seconds_per_step(trials: Sequence[TrialState]) -> float | None:
    """Return the median seconds of a step with a loss in the trials that ran to their end; None if there is none."""
    taken = [
        trial.seconds / trial.curve.steps
        for trial in trials
        if trial.status == "done" and trial.curve is not None and trial.curve.steps and trial.seconds > 0
    ]
    return median(taken) if taken else None


def cancel_queued(trials: Sequence[models.Trial], reason: str) -> None:
    """Cancel the queued ones of some trials."""
    for trial in trials:
        if trial.status == "queued":
            trial.status, trial.reason = "cancelled", reason


def touch_suspect_run(session: Session, rerun: models.Rerun) -> models.Run | None:
    """Raise the revision of a rerun's suspect run, and return the run."""
    run = runs.find(session, rerun.run_id, is_locked=True)
    if run is not None:
        runs.touch(run)
    return run


def _advance_locating(
    session: Session, rerun: models.Rerun, trials: Sequence[models.Trial], at: datetime, reason: str | None
) -> None:
    """Start the next trial of a rerun of the kind `locate`, or conclude it."""
    plan = plan_of(rerun)
    seed, failed_step = rerun.seeds[0], plan.failed_step or 0
    action = locating.next_step(
        _read_located_trials(session, rerun, trials),
        seed=seed,
        failed_step=failed_step,
        max_trials=rerun.max_trials,
        reason_for_no_new_trials=reason,
    )
    if action.locate_from is not None:
        store_plan(rerun, replace(plan, locate_from=action.locate_from))
    if action.start is not None:
        candidate, seed = action.start
        missing = candidate + 1 - len(rerun.candidates)
        rerun.candidates = [*rerun.candidates, *([[]] * missing)]
        repository.add_trials(session, [_new_trial(rerun, len(trials), candidate, seed)])
    if (result := action.result) is not None:
        rerun.status, rerun.reason, rerun.ended_at = result.status, result.reason, at
        rerun.origin = None if result.origin is None else without_nonfinite(asdict(result.origin))
        touch_suspect_run(session, rerun)


def _read_located_trials(
    session: Session, rerun: models.Rerun, trials: Sequence[models.Trial]
) -> list[locating.LocateTrial]:
    """Return the trials of a rerun of the kind `locate` with what their runs show."""
    connection, facts, plan = session.connection(), FactsCache(), plan_of(rerun)
    attempts = repository.read_attempts(session, rerun.id)
    runs_of = repository.read_runs(session, attempts)
    run_ids = {attempt.trial_id: attempt.run_id for attempt in attempts if attempt.run_id in runs_of}
    located: list[locating.LocateTrial] = []
    reference: NDArray[np.float64] | None = None
    for trial in trials:
        run_id, origin = run_ids.get(trial.id), ORIGIN.validate_python(trial.origin)
        found = locating.LocateTrial(
            candidate=trial.candidate, seed=trial.seed, status=trial.status, reason=trial.reason, origin=origin
        )
        if run_id is not None and found.has_ended:
            first = next((each.origin for each in located if each.has_located), origin)
            losses = np.zeros(0)
            if first is not None and first.step:
                losses = telemetry.read_losses(connection, run_id, first.step - 1)
            is_known = reference is not None and len(reference) > 0
            same = (
                bool(np.array_equal(reference, losses, equal_nan=True)) if is_known and reference is not None else None
            )
            reference = losses if reference is None and found.has_located else reference
            failed = None if found.has_located else find_failed_step(connection, facts, run_id)
            start = None if failed is None else failed.start
            is_earlier = start is not None and plan.locate_from is not None and start < plan.locate_from
            found = replace(
                found,
                steps=(runs_of[run_id].last_step or 0) + 1 if runs_of[run_id].last_step is not None else 0,
                has_same_losses=same,
                earlier_start=start if is_earlier else None,
            )
        located.append(found)
    return located


def _add_round(
    session: Session,
    rerun: models.Rerun,
    trials: Sequence[models.Trial],
    states: Sequence[TrialState],
    seconds: float,
) -> bool:
    """Add the candidates of another round to a rerun; return False if there is nothing left to try."""
    design, plan = design_of(rerun), plan_of(rerun)
    candidates = CANDIDATES.validate_python(rerun.candidates)
    per_step, affordable = seconds_per_step(states), affordable_trials(design, states, seconds)
    trials_left = rerun.max_trials - len(trials)
    trials_of_round = rounds.MAX_SURVIVORS + len(design.seeds) * (1 + experiment.CANDIDATES_TO_CONFIRM)
    affordable_steps = 0 if per_step is None else math.floor(seconds / (per_step * trials_of_round))
    new = rounds.propose_round(
        design,
        candidates,
        states,
        _read_advice(session, rerun, trials),
        trainables.parameters_of(stored_trainables.find(session, rerun.owner, rerun.trainable)),
        max_trials=trials_left if affordable is None else min(trials_left, affordable),
        max_steps=min(plan.max_steps, affordable_steps),
    )
    if new is None:
        return False
    added = [*([[]] if new.control is None else []), *(list(remedies) for remedies in new.candidates)]
    rerun.candidates = [*rerun.candidates, *without_nonfinite(CANDIDATES.dump_python(added))]
    store_plan(rerun, plan.with_round(rounds.number_round(new, len(candidates))))
    return True


def _read_advice(session: Session, rerun: models.Rerun, trials: Sequence[models.Trial]) -> dict[int, Sequence[Remedy]]:
    """Return what the diagnoses of a rerun's trials advise, by candidate: that of its first trial with any advice."""
    facts = FactsCache()
    run_ids = {attempt.trial_id: attempt.run_id for attempt in repository.read_attempts(session, rerun.id)}
    advice: dict[int, Sequence[Remedy]] = {}
    for trial in sorted(trials, key=lambda trial: trial.seed):
        run_id = run_ids.get(trial.id)
        if trial.curve is None or run_id is None or advice.get(trial.candidate):
            continue
        diagnosis = telemetry.diagnose(session.connection(), OPERATOR, facts, run_id)
        advice[trial.candidate] = [entry.remedy for entry in diagnosis.advice]
    return advice


def _conclude(session: Session, rerun: models.Rerun, conclusion: experiment.Conclusion, at: datetime) -> None:
    rerun.status, rerun.reason, rerun.ended_at = conclusion.status, conclusion.reason, at
    rerun.outcomes = [without_nonfinite(asdict(outcome)) for outcome in conclusion.outcomes]
    run = touch_suspect_run(session, rerun)
    verified = next((outcome for outcome in conclusion.outcomes if outcome.state == "verified"), None)
    if run is not None and verified is not None:
        remedies = CANDIDATES.validate_python(rerun.candidates)[verified.candidate]
        session.flush()
        change = events.verified_change(rerun.id, remedies, verified.reason)
        events.record(session.connection(), events.changed_run(run), [change])


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
        origin=None,
        seconds=0.0,
    )
