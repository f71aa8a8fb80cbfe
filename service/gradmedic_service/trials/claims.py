"""Claiming: handing a queued trial to a worker, as a new attempt with a lease and a key."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from gradmedic.protocol.ids import new_id
from gradmedic.protocol.names import name_error
from gradmedic.protocol.reruns import EXECUTORS, EXECUTORS_WITH_TICKETS
from gradmedic.protocol.service import Limits
from gradmedic.protocol.trials import ClaimedTrial, TrialClaim
from gradmedic_service.access import service as access
from gradmedic_service.access.principal import Principal
from gradmedic_service.database import models
from gradmedic_service.database.clock import database_time
from gradmedic_service.database.engine import Session
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.projects import repository as stored_projects
from gradmedic_service.projects import service as projects
from gradmedic_service.reruns import repository as reruns
from gradmedic_service.reruns.advancing import (
    MIN_SECONDS,
    SECONDS_SPENT,
    advance,
    cancel_queued,
    seconds_left,
    touch_suspect_run,
)
from gradmedic_service.reruns.candidates import parameters_of_candidate, remedies_for_sdk
from gradmedic_service.reruns.outcomes import CANDIDATES
from gradmedic_service.reruns.repository import ACTIVE_STATUSES
from gradmedic_service.reruns.stored_plan import plan_of, steps_of
from gradmedic_service.trainables import repository as trainables
from gradmedic_service.trainables.service import owner_of, parameters_of
from gradmedic_service.trials import repository

MAX_SEARCHED_RERUNS = 50
"""Number of reruns that a claim searches for a trial."""
KEY_LEASES = 10
"""Number of leases by which the key of an attempt outlives the time that the attempt may take."""


def claim(
    session: Session, principal: Principal, body: TrialClaim, limits: Limits, lease: float
) -> ClaimedTrial | None:
    """Start a new attempt at a queued trial; None if there is no trial for the worker now. Raises InvalidRequest.

    Args:
        session: a session of the transaction that starts the attempt.
        principal: the worker.
        body: the worker's name, its executor and the trainables that it can run.
        limits: the limits of the service.
        lease: seconds after which the attempt is lost without a heartbeat.
    """
    _check_claim(body, limits)
    at = database_time(session)
    waiting_reruns = repository.list_reruns_with_queued_trials(
        session, owner_of(principal), principal.project, body.trainables, body.executor, MAX_SEARCHED_RERUNS
    )
    for rerun_id, project_name in waiting_reruns:
        # The lock on the project keeps two claims at the same time from exceeding its cap.
        stored_projects.find(session, project_name, is_locked=True)
        caps = projects.rerun_caps(session, project_name)
        if repository.count_running(session, project_name) >= caps.concurrent_trials:
            continue
        rerun = reruns.lock_rerun(session, rerun_id, skips_locked=True)
        if rerun is None or rerun.status not in ACTIVE_STATUSES or rerun.executor not in (None, body.executor):
            continue
        trials = reruns.read_trials(session, rerun_id)
        trial = next((trial for trial in trials if trial.status == "queued"), None)
        if trial is None:
            continue
        seconds = seconds_for_another_trial(session, rerun, trials, at)
        if seconds < MIN_SECONDS:
            cancel_queued(trials, SECONDS_SPENT)
            advance(session, rerun, at)
            continue
        rerun.executor = body.executor
        return _start_attempt(session, principal, rerun, trial, body.worker, at, lease, seconds)
    return None


def seconds_for_another_trial(
    session: Session, rerun: models.Rerun, trials: Sequence[models.Trial], at: datetime
) -> float:
    """Return how long one more trial may run beside the running ones: all of them share what is left of the budget."""
    running = sum(trial.status == "running" for trial in trials)
    return seconds_left(session, rerun, trials, at) / (running + 1)


def create_attempt_key(
    session: Session, principal: Principal, rerun: models.Rerun, attempt: models.Attempt, expires_at: datetime
) -> str | None:
    """Create the key that an attempt streams its run with, and return its secret; None where no keys are needed."""
    if principal.key_id is None:
        return None
    key, secret = access.create_key(
        session,
        project=rerun.project,
        name=f"trial {attempt.trial_id} attempt {attempt.number}",
        scopes=["ingest"],
        run_id=attempt.run_id,
        expires_at=expires_at,
        by=principal,
    )
    attempt.key_id = key.id
    return secret


def describe_claimed_trial(
    rerun: models.Rerun,
    trial: models.Trial,
    attempt: models.Attempt,
    trainable: models.Trainable | None,
    lease: float,
    seconds: float,
    secret: str | None,
) -> ClaimedTrial:
    """Return what the process of an attempt needs."""
    parameters = parameters_of(trainable)
    remedies = CANDIDATES.validate_python(rerun.candidates)[trial.candidate]
    return ClaimedTrial(
        trial_id=trial.id,
        attempt=attempt.number,
        rerun_id=rerun.id,
        run_id=attempt.run_id,
        parent_id=rerun.run_id,
        project=rerun.project,
        candidate=trial.candidate,
        trainable=rerun.trainable,
        parameters=parameters_of_candidate(rerun.parameters, remedies, parameters),
        seed=trial.seed,
        remedies=remedies_for_sdk(remedies, parameters),
        steps=steps_of(rerun, trial.candidate),
        seconds=seconds,
        lease_seconds=lease,
        api_key=secret,
        locate_from=plan_of(rerun).locate_from,
    )


def key_expiry(at: datetime, seconds: float, lease: float) -> datetime:
    """Return when the key of an attempt expires that may run for some seconds from a moment on."""
    return at + timedelta(seconds=seconds + KEY_LEASES * lease)


def _check_claim(body: TrialClaim, limits: Limits) -> None:
    if (message := name_error(body.worker, limits.max_name_length)) is not None:
        raise InvalidRequest.at("worker", message)
    if len(body.trainables) > limits.max_trainables:
        count = len(body.trainables)
        raise InvalidRequest.at("trainables", f"has {count}; at most {limits.max_trainables} are allowed")
    if body.executor not in EXECUTORS:
        raise InvalidRequest.at("executor", f"{body.executor!r} is not one of {', '.join(EXECUTORS)}")


def _start_attempt(
    session: Session,
    principal: Principal,
    rerun: models.Rerun,
    trial: models.Trial,
    worker: str,
    at: datetime,
    lease: float,
    seconds: float,
) -> ClaimedTrial:
    is_waiting = rerun.executor in EXECUTORS_WITH_TICKETS
    trial.attempt += 1
    trial.status, trial.reason, trial.reason_to_stop = "running", None, None
    trial.lease_expires_at = at + timedelta(seconds=lease)
    trial.rungs, trial.curve, trial.origin, trial.verdict = [], None, None, "undetermined"
    attempt = models.Attempt(
        trial_id=trial.id,
        number=trial.attempt,
        run_id=new_id(),
        worker=worker,
        status="running",
        reason=None,
        exit_code=None,
        started_at=at,
        ended_at=None,
        environment={},
        key_id=None,
        is_waiting=is_waiting,
        output="",
    )
    repository.add_attempt(session, attempt)
    if rerun.status == "queued":
        rerun.status, rerun.started_at = "running", at
        touch_suspect_run(session, rerun)
    trainable = trainables.find(session, rerun.owner, rerun.trainable)
    timeout = seconds if trainable is None else min(seconds, trainable.timeout)
    expires_at = key_expiry(at, timeout, lease)
    secret = None if is_waiting else create_attempt_key(session, principal, rerun, attempt, expires_at)
    return describe_claimed_trial(rerun, trial, attempt, trainable, lease, timeout, secret)
