"""Answers about reruns: rows of the database as messages of the API."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from gradmedic.protocol.origins import DiagnosedOrigin
from gradmedic.protocol.reruns import Attempt, Candidate, RerunBudget, RerunDetail, RerunPlan, RerunSummary, Trial
from gradmedic_diagnosis.origin import diagnose_origin
from gradmedic_service.database import models
from gradmedic_service.database.clock import database_time
from gradmedic_service.database.engine import Session
from gradmedic_service.reruns import locating, repository
from gradmedic_service.reruns.advancing import seconds_left, seconds_per_step, trial_state
from gradmedic_service.reruns.forecast import expected_seconds, expected_trials
from gradmedic_service.reruns.outcomes import CANDIDATES, ORIGIN, OUTCOMES, published_outcome
from gradmedic_service.reruns.repository import ACTIVE_STATUSES
from gradmedic_service.reruns.stored_plan import design_of, plan_of
from gradmedic_service.runs import repository as stored_runs
from gradmedic_service.runs.progress import read_progress
from gradmedic_service.trainables import repository as trainables
from gradmedic_service.trainables.service import has_expired_offer

WAITS_FOR_PLACE = "it waits for a place on the cluster"


def summarize(rerun: models.Rerun) -> RerunSummary:
    """Return a rerun as lists show it."""
    return RerunSummary(**_summary_fields(rerun))


def describe(session: Session, rerun: models.Rerun) -> RerunDetail:
    """Return a rerun with its candidates, its trials and all attempts at them."""
    trials = repository.read_trials(session, rerun.id)
    attempts = repository.read_attempts(session, rerun.id)
    runs = repository.read_runs(session, attempts)
    outcomes = {outcome.candidate: outcome for outcome in OUTCOMES.validate_python(rerun.outcomes or [])}
    races = list(enumerate(design_of(rerun).rounds, start=1))
    round_of = {member: (number, race.steps) for number, race in reversed(races) for member in race.members}
    is_active = rerun.status in ACTIVE_STATUSES
    left = seconds_left(session, rerun, trials, database_time(session)) if is_active else 0.0
    return RerunDetail(
        **_summary_fields(rerun) | {"reason": rerun.reason or _reason_to_wait(session, rerun, trials)},
        budget=_describe_budget(rerun),
        seeds=list(rerun.seeds),
        executor=rerun.executor,
        parameters=dict(rerun.parameters),
        candidates=[
            Candidate(
                remedies=remedies,
                outcome=published_outcome(rerun.id, outcomes[index]) if index in outcomes else None,
                reason=outcomes[index].reason if index in outcomes else None,
                round=round_of[index][0],
                steps=round_of[index][1],
            )
            for index, remedies in enumerate(CANDIDATES.validate_python(rerun.candidates))
        ],
        trials=[
            _describe_trial(trial, [attempt for attempt in attempts if attempt.trial_id == trial.id], runs)
            for trial in trials
        ],
        cost_seconds=sum(trial.seconds for trial in trials),
        plan=describe_plan(rerun, trials, left) if is_active else None,
        origin=_describe_origin(session, rerun),
    )


def describe_plan(rerun: models.Rerun, trials: Sequence[models.Trial], seconds: float) -> RerunPlan:
    """Return the expected cost of a rerun, whose budget has some seconds left."""
    design, states = design_of(rerun), [trial_state(trial) for trial in trials]
    step_seconds = seconds_per_step(states) or plan_of(rerun).step_seconds
    if rerun.kind == "locate":
        expected = min(max(locating.EXPECTED_TRIALS, len(trials)), rerun.max_trials)
        left = (expected - sum(state.has_ended for state in states)) * rerun.steps
        return RerunPlan(
            candidates=0,
            trials=expected,
            steps=rerun.steps,
            step_seconds=step_seconds,
            seconds_left=None if step_seconds is None else max(0.0, min(left * step_seconds, seconds)),
            budget=_describe_budget(rerun),
        )
    return RerunPlan(
        candidates=sum(len(race.candidates) for race in design.rounds),
        trials=min(len(expected_trials(design, states)), rerun.max_trials),
        steps=design.rounds[-1].steps,
        step_seconds=step_seconds,
        seconds_left=None
        if step_seconds is None
        else max(0.0, min(expected_seconds(design, states, step_seconds), seconds)),
        budget=_describe_budget(rerun),
    )


def _describe_origin(session: Session, rerun: models.Rerun) -> DiagnosedOrigin | None:
    """Return what a rerun of the kind `locate` has found, with code for the framework of its run."""
    origin = ORIGIN.validate_python(rerun.origin)
    if origin is None:
        return None
    run = stored_runs.find(session, rerun.run_id)
    return diagnose_origin(origin, origin.step, None if run is None else run.framework)


def _describe_budget(rerun: models.Rerun) -> RerunBudget:
    rounds = plan_of(rerun).max_rounds
    return RerunBudget(steps=rerun.steps, seconds=rerun.seconds, trials=rerun.max_trials, rounds=rounds)


def _summary_fields(rerun: models.Rerun) -> dict[str, Any]:
    return {
        "id": rerun.id,
        "run_id": rerun.run_id,
        "project": rerun.project,
        "trainable": rerun.trainable,
        "status": rerun.status,
        "reason": rerun.reason,
        "is_automatic": rerun.is_automatic,
        "created_at": rerun.created_at,
        "started_at": rerun.started_at,
        "ended_at": rerun.ended_at,
        "kind": rerun.kind,
    }


def _reason_to_wait(session: Session, rerun: models.Rerun, trials: Sequence[models.Trial]) -> str | None:
    """Return that a rerun waits for a worker, if no worker offers its trainable now; None otherwise."""
    statuses = {trial.status for trial in trials}
    if rerun.status not in ACTIVE_STATUSES or "running" in statuses or "queued" not in statuses:
        return None
    trainable = trainables.find(session, rerun.owner, rerun.trainable)
    if trainable is None or not has_expired_offer(trainable, database_time(session)):
        return None
    since = f"{trainable.updated_at:%Y-%m-%d %H:%M:%S} UTC"
    return f"waits for a worker: none has offered the trainable {rerun.trainable!r} since {since}"


def _describe_trial(trial: models.Trial, attempts: Sequence[models.Attempt], runs: Mapping[UUID, models.Run]) -> Trial:
    state = trial_state(trial)
    curve = None if state.curve is None or not state.curve.steps else state.curve
    measure = state.measure
    latest = attempts[-1] if attempts else None
    run = None if latest is None else runs.get(latest.run_id)
    is_running = trial.status == "running"
    waits_for_place = is_running and latest is not None and latest.is_waiting
    return Trial(
        id=trial.id,
        candidate=trial.candidate,
        seed=trial.seed,
        status=trial.status,
        reason=WAITS_FOR_PLACE if waits_for_place else trial.reason,
        verdict=run.verdict if is_running and run is not None else trial.verdict,
        step=None if run is None else run.last_step,
        start_loss=None if curve is None else curve.start,
        loss=None if curve is None else curve.final,
        seconds=trial.seconds,
        attempts=[
            Attempt(
                number=attempt.number,
                run_id=attempt.run_id,
                worker=attempt.worker,
                status=attempt.status,
                reason=attempt.reason,
                exit_code=attempt.exit_code,
                started_at=attempt.started_at,
                ended_at=attempt.ended_at,
                environment=dict(attempt.environment),
                start_seconds=_start_seconds(attempt.started_at, runs.get(attempt.run_id)),
            )
            for attempt in attempts
        ],
        lease_expires_at=trial.lease_expires_at,
        judged_by=None if measure is None else measure.judged_by,
        judged_value=None if measure is None or math.isnan(measure.start) else measure.final,
        constant_level=None if measure is None else measure.constant_level,
        has_converged=state.has_converged,
        origin=ORIGIN.validate_python(trial.origin),
    )


def _start_seconds(started_at: datetime, run: models.Run | None) -> float | None:
    """Return the seconds from the start of an attempt to the first step of its run, None before that step.

    The SDK creates the run soon after the first step. The step itself has a time of the script's clock, which counts
    where it agrees with the service's clock.
    """
    if run is None or run.last_step is None:
        return None
    created = (run.created_at - started_at).total_seconds()
    progress = read_progress(run.progress)
    logged = -1.0
    if progress is not None and progress.first_time is not None:
        logged = progress.first_time - started_at.timestamp()
    return max(0.0, logged if 0.0 <= logged < created else created)
