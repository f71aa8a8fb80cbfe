"""Trials: renewing leases, publishing results, and queueing the trials of lost workers again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.encoding import without_nonfinite
from gradmedic.protocol.names import text_error
from gradmedic.protocol.objectives import parse_objective
from gradmedic.protocol.reruns import EXECUTORS_WITH_TICKETS, RerunDetail
from gradmedic.protocol.runs import Objective
from gradmedic.protocol.service import FieldError
from gradmedic.protocol.trials import RESULT_STATUSES, HeartbeatResult, TrialHeartbeat, TrialOutput, TrialResult
from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS
from gradmedic_service.access.principal import Principal
from gradmedic_service.database import models
from gradmedic_service.database.clock import database_time
from gradmedic_service.database.engine import Connection, Session
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.reruns import answers, experiment
from gradmedic_service.reruns import repository as reruns
from gradmedic_service.reruns.advancing import SECONDS_SPENT, advance, seconds_left, trial_state
from gradmedic_service.reruns.attempts import end_attempt, last_output
from gradmedic_service.reruns.loss_curves import loss_at_rung, rungs_of
from gradmedic_service.reruns.measures import choose_objective, summarize_trial
from gradmedic_service.reruns.stored_plan import design_of, steps_of
from gradmedic_service.runs.facts import TRAINING
from gradmedic_service.runs.validation import origin_errors
from gradmedic_service.telemetry import service as telemetry
from gradmedic_service.trials import repository
from gradmedic_service.trials.absences import Absences
from gradmedic_service.trials.errors import TrialNotFound
from gradmedic_service.trials.lookup import (
    check_running,
    find_trial,
    find_trial_of_worker,
    stale_attempt,
    trial_not_found,
)

MAX_ATTEMPTS = 3
"""Number of attempts at a trial that may be lost or incomplete. After that, the trial itself counts as the cause: it
has failed."""
REPEATED_STATUSES = ("lost", "incomplete")
"""Statuses of attempts without a result. Another attempt follows."""
MAX_REASON = 2_000
"""Number of characters that are kept of a worker's reason."""


def renew_lease(
    session: Session, principal: Principal, trial_id: UUID, body: TrialHeartbeat, lease: float
) -> HeartbeatResult:
    """Renew the lease of an attempt, and return whether it should stop. Raises TrialNotFound, StaleAttempt."""
    trial, rerun = find_trial_of_worker(session, principal, trial_id)
    at = database_time(session)
    if not repository.renew_lease(session, trial_id, body.attempt, at + timedelta(seconds=lease)):
        raise stale_attempt(trial, body.attempt)
    trials = reruns.read_trials(session, rerun.id)
    trial = _trial_of_id(trials, trial_id)
    attempt = reruns.find_attempt(session, trial_id, body.attempt)
    if attempt is None:
        raise stale_attempt(trial, body.attempt)
    if body.output is not None:
        attempt.output = last_output(body.output)
    run = reruns.read_runs(session, [attempt]).get(attempt.run_id)
    if run is not None and trial.reason_to_stop is None:
        trial.verdict = run.verdict
        _store_passed_rungs(session, rerun, trials, trial, run)
        if rerun.kind == "repair" and (trial.rungs or trial.verdict == "exploding"):
            trial.reason_to_stop = _reason_to_stop(rerun, trial, trials, (run.last_step or 0) + 1)
    running = sum(other.status == "running" for other in trials)
    seconds = seconds_left(session, rerun, trials, at) / max(1, running)
    if trial.reason_to_stop is None and seconds <= 0:
        trial.reason_to_stop = SECONDS_SPENT
    if trial.reason_to_stop is not None:
        reruns.stop_run(session, attempt.run_id)
    return HeartbeatResult(
        stop=trial.reason_to_stop is not None,
        reason=trial.reason_to_stop,
        seconds=seconds,
        step=None if run is None else run.last_step,
        verdict=trial.verdict,
    )


def publish_result(session: Session, principal: Principal, trial_id: UUID, body: TrialResult) -> RerunDetail:
    """Store the result of an attempt, once, and advance the experiment; the same result again changes nothing.

    Raises TrialNotFound, StaleAttempt, InvalidRequest.
    """
    _check_result(body)
    _, unlocked_rerun = find_trial_of_worker(session, principal, trial_id)
    rerun = reruns.lock_rerun(session, unlocked_rerun.id)
    if rerun is None:
        raise trial_not_found(trial_id)
    trial = _trial_of_id(reruns.read_trials(session, rerun.id), trial_id)
    attempt = reruns.find_attempt(session, trial_id, body.attempt)
    if attempt is not None and attempt.ended_at is not None and attempt.status != "cancelled":
        if (attempt.status == "lost") == (body.status == "lost"):
            return answers.describe(session, rerun)
        raise stale_attempt(trial, body.attempt)
    at = database_time(session)
    run = None if attempt is None else reruns.read_runs(session, [attempt]).get(attempt.run_id)
    status, reason = _judge_result(body, trial, run)
    if status in REPEATED_STATUSES:
        check_running(trial, body.attempt)
        _give_up_attempt(session, trial, at, status, reason or "", body)
    else:
        if not repository.end_trial(session, trial_id, body.attempt, status=status, reason=reason):
            raise stale_attempt(trial, body.attempt)
        trial = _trial_of_id(reruns.read_trials(session, rerun.id), trial_id)
        if run is not None:
            _store_curve(session, rerun, trial, run, body)
        if rerun.kind == "locate" and body.origin is not None:
            trial.origin = without_nonfinite(asdict(body.origin))
        end_attempt(session, trial, at, status=status, reason=reason, **_facts_of(body))
    advance(session, rerun, at)
    return answers.describe(session, rerun)


def read_output(session: Session, principal: Principal, trial_id: UUID, number: int | None) -> TrialOutput:
    """Return the end of the output of an attempt, the latest unless a number is given. Raises TrialNotFound."""
    trial, rerun = find_trial(session, trial_id)
    if not principal.reaches_run(rerun.run_id, rerun.project):
        raise trial_not_found(trial_id)
    number = trial.attempt if number is None else number
    attempt = reruns.find_attempt(session, trial_id, number)
    if attempt is None:
        raise TrialNotFound(f"There is no attempt {number} at trial {trial_id}.")
    return TrialOutput(trial_id=trial_id, attempt=number, output=attempt.output)


def list_reruns_with_lost_trials(session: Session, absences: Absences, limit: int) -> list[UUID]:
    """Return the ids of the reruns that have a running trial whose lease has expired."""
    at = database_time(session)
    return repository.list_reruns_with_lost_trials(session, at - absences.record_work(at), limit)


def requeue_lost_trials(session: Session, rerun_id: UUID, absences: Absences) -> bool:
    """Queue the trials of a rerun again whose lease has expired; those that have lost too many attempts have failed.

    The time in which the service answered no request does not count. A script on its worker's machine ends with its
    worker, so the steps that it sends renew the lease of a worker that gets no time to send heartbeats. Returns False
    if the rerun has no lost trial, or if another transaction holds the rerun.
    """
    rerun = reruns.lock_rerun(session, rerun_id, skips_locked=True)
    if rerun is None:
        return False
    at = database_time(session)
    trials = reruns.read_trials(session, rerun_id)
    lost = []
    for trial in repository.lock_lost_trials(session, rerun_id, at - absences.grace):
        heard_at = _last_heard_of_script(session, rerun, trial)
        if heard_at is not None and heard_at + absences.lease > at - absences.grace:
            trial.lease_expires_at = heard_at + absences.lease
        else:
            lost.append(trial)
    for trial in lost:
        # The worker ends the process at the latest when the seconds of the rerun are spent.
        seconds = max(0.0, rerun.seconds - sum(other.seconds for other in trials))
        reason = "its worker sent no heartbeat in time"
        _give_up_attempt(session, trial, trial.lease_expires_at or at, "lost", reason, seconds=seconds)
    if lost:
        advance(session, rerun, at)
    return bool(lost)


def _last_heard_of_script(session: Session, rerun: models.Rerun, trial: models.Trial) -> datetime | None:
    """Return when the script of a trial sent its last step; None where it may outlive its worker, or has no run yet."""
    attempt = reruns.find_attempt(session, trial.id, trial.attempt)
    if attempt is None or rerun.executor in EXECUTORS_WITH_TICKETS:
        return None
    run = reruns.read_runs(session, [attempt]).get(attempt.run_id)
    return None if run is None else run.updated_at


def _trial_of_id(trials: Sequence[models.Trial], trial_id: UUID) -> models.Trial:
    return next(trial for trial in trials if trial.id == trial_id)


def _check_result(body: TrialResult) -> None:
    """Raise InvalidRequest for a result that cannot be stored. Its output is not checked: it is made storable."""
    if body.seconds is not None and not body.seconds >= 0:
        raise InvalidRequest.at("seconds", f"must not be negative, not {body.seconds!r}")
    if body.status not in RESULT_STATUSES:
        raise InvalidRequest.at("status", f"{body.status!r} is not one of {', '.join(RESULT_STATUSES)}")
    if body.judge_by is not None:
        try:
            parse_objective(body.judge_by)
        except ValueError as error:
            raise InvalidRequest.at("judge_by", str(error)) from None
    texts = [("reason", body.reason or "")]
    texts += [("environment", text) for fact in body.environment.items() for text in fact]
    errors = [FieldError(path=path, message=message) for path, text in texts if (message := text_error(text))]
    errors += origin_errors("origin", body.origin)
    if errors:
        raise InvalidRequest(errors)


def _judge_result(body: TrialResult, trial: models.Trial, run: models.Run | None) -> tuple[str, str | None]:
    """Return the status and the reason with which an attempt ends."""
    if trial.reason_to_stop is not None and body.status != "not_applicable":
        return "stopped", trial.reason_to_stop
    if body.status == "lost":
        return "lost", _shortened(body.reason) or "the machine or the job that ran it was lost"
    if body.status in ("done", "failed") and (missing := _describe_missing_steps(body, run)) is not None:
        return "incomplete", missing
    if body.status == "done" and run is None:
        return "failed", "the script ended without gradmedic.init()"
    if body.status == "done" and run is not None and run.last_step is None and body.origin is None:
        return "failed", "the script never called run.log()"
    return body.status, _shortened(body.reason)


def _describe_missing_steps(body: TrialResult, run: models.Run | None) -> str | None:
    """Return which steps the service lacks of those that the script has logged; None if it lacks none, as far as known.

    The run may miss steps before its last one: those for which the SDK had no room.
    """
    stored = -1 if run is None or run.last_step is None else run.last_step
    if body.last_step is not None and body.last_step > stored:
        has = "no step" if stored == -1 else f"its steps up to {stored}"
        return f"the script has logged its steps up to {body.last_step}, and the service has {has}"
    if body.last_step == -1 and stored >= 0:
        return f"the script ended before the SDK could send the steps after {stored}"
    dropped = None if run is None else (run.details.training or {}).get("dropped_steps")
    return f"the SDK had no room for {dropped} of its steps" if dropped else None


def _shortened(reason: str | None) -> str | None:
    return None if reason is None else reason[:MAX_REASON]


def _give_up_attempt(
    session: Session,
    trial: models.Trial,
    at: datetime,
    status: str,
    reason: str,
    result: TrialResult | None = None,
    *,
    seconds: float | None = None,
) -> None:
    """End the running attempt without a result, and queue its trial again unless too many attempts ended so.

    Args:
        session: a session of the transaction that ends the attempt.
        trial: the trial.
        at: the time at which the attempt ended.
        status: the new status of the attempt, one of `REPEATED_STATUSES`.
        reason: why it has no result.
        result: what its worker has sent; None if the worker is silent.
        seconds: the seconds that it took at most, where no worker has sent them.
    """
    facts: dict[str, Any] = {"seconds": seconds} if result is None else _facts_of(result)
    end_attempt(session, trial, at, status=status, reason=reason, **facts)
    trial.lease_expires_at = None
    trial.verdict, trial.rungs, trial.curve = "undetermined", [], None  # nothing is compared with a part of a trial
    if trial.attempt >= MAX_ATTEMPTS:
        trial.status = "failed"
        trial.reason = f"{trial.attempt} attempts at it were lost or incomplete; the last one: {reason}"
    else:
        trial.status, trial.reason = "queued", None


def _facts_of(result: TrialResult) -> dict[str, Any]:
    """Return what a result has of an attempt's process, as `end_attempt` takes it."""
    return {
        "exit_code": result.exit_code,
        "output": result.output,
        "environment": result.environment,
        "seconds": result.seconds,
    }


def _store_passed_rungs(
    session: Session, rerun: models.Rerun, trials: Sequence[models.Trial], trial: models.Trial, run: models.Run
) -> None:
    """Store what a trial is compared by at each rung that it has passed since the last call: as its control is."""
    passed = [step for step in rungs_of(steps_of(rerun, trial.candidate)) if step <= (run.last_step or 0) + 1]
    missing = passed[len(trial.rungs) :]
    if not missing:
        return
    training = TRAINING.validate_python(run.details.training)
    level = None if training is None or training.loss is None else training.loss.constant_level
    objective = _objective_of_control(rerun, trials)
    connection = session.connection()
    values = []
    for step in missing:
        read = _read_values(connection, run, objective, step - 1)
        is_maximized = objective is not None and objective.direction == "maximize"
        values.append(loss_at_rung(-read if is_maximized else read, trial.verdict, level))
    trial.rungs = [*trial.rungs, *without_nonfinite(values)]


def _read_values(
    connection: Connection, run: models.Run, objective: Objective | None, last_step: int
) -> NDArray[np.float64]:
    """Return the values of an objective up to a step, in order: those of its metric, else the losses."""
    if objective is not None and objective.metric is not None:
        return telemetry.read_values(connection, run.id, objective.metric, last_step)
    return telemetry.read_losses(connection, run.id, last_step)


def _objective_of_control(rerun: models.Rerun, trials: Sequence[models.Trial]) -> Objective | None:
    """Return the objective by which the first control was judged; None for the loss, and before its end."""
    place = (experiment.CONTROL, rerun.seeds[0])
    control = next((trial_state(trial) for trial in trials if (trial.candidate, trial.seed) == place), None)
    measure = None if control is None else control.measure
    return None if measure is None or measure.is_loss else parse_objective(measure.judged_by)


def _store_curve(
    session: Session, rerun: models.Rerun, trial: models.Trial, run: models.Run, result: TrialResult
) -> None:
    """Store the verdict, the losses and the measure of a trial that has ended."""
    connection, last_step = session.connection(), steps_of(rerun, trial.candidate) - 1
    losses = telemetry.read_losses(connection, run.id, last_step)
    trial.verdict = run.verdict
    is_control = trial.candidate == design_of(rerun).round_of(trial.candidate).control
    if is_control and run.verdict not in UNHEALTHY_VERDICTS:
        trial.verdict = _verdict_on_same_losses(session, rerun, losses, last_step) or run.verdict
    _store_passed_rungs(session, rerun, reruns.read_trials(session, rerun.id), trial, run)
    training = TRAINING.validate_python(run.details.training)
    judge_by = None if result.judge_by is None else parse_objective(result.judge_by)
    objective = choose_objective(judge_by, training)
    values = _read_values(connection, run, objective, last_step)
    curve = summarize_trial(losses, objective, values, training, result.evaluation, run.learning)
    trial.curve = None if curve is None else without_nonfinite(asdict(curve))


def _verdict_on_same_losses(
    session: Session, rerun: models.Rerun, losses: NDArray[np.float64], last_step: int
) -> str | None:
    """Return the unhealthy verdict on the suspect run, if it had these losses up to a step; else None.

    The suspect run may have sampled fewer steps than its control, or others. This must not decide whether its failure
    is reproduced.
    """
    connection = session.connection()
    suspected = telemetry.read_losses(connection, rerun.run_id, last_step)
    if not len(losses) or not np.array_equal(suspected, losses, equal_nan=True):
        return None
    verdict = telemetry.read_verdict_at(connection, rerun.run_id, last_step)
    return verdict if verdict in UNHEALTHY_VERDICTS else None


def _reason_to_stop(rerun: models.Rerun, trial: models.Trial, trials: Sequence[models.Trial], steps: int) -> str | None:
    """Return why a running trial should stop, compared with the rerun's others; None if it should go on."""
    states = {other.id: trial_state(other) for other in trials}
    design = design_of(rerun)
    control_place = (design.round_of(trial.candidate).control, rerun.seeds[0])
    control = next((state for state in states.values() if (state.candidate, state.seed) == control_place), None)
    if control is None:
        return None
    others = [state for id, state in states.items() if id != trial.id]
    return experiment.reason_to_stop(states[trial.id], others, control, design, steps)
