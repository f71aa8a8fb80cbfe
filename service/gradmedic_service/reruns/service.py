"""Reruns: what asking for one, working on one and ending one means.

One idea: the experiment is a function of the rows (`experiment.plan`), and it is asked after every change of them, in
the transaction that makes the change, with the rerun's row held. Whoever crashes, the next request finds rows that say
what is to be done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from pydantic import TypeAdapter

from gradmedic.protocol.diagnosis import Advice, Diagnosis, Outcome, Tried
from gradmedic.protocol.encoding import encode_json, without_nonfinite
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.names import name_error
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.reruns import (
    EXECUTORS,
    Attempt,
    Candidate,
    RerunBudget,
    RerunCreate,
    RerunDetail,
    RerunList,
    RerunSummary,
    Trial,
)
from gradmedic.protocol.service import FieldError, Limits
from gradmedic.protocol.trainables import Trainable, TrainableParameter, Trainables, TrainablesOffer
from gradmedic.protocol.trials import (
    RESULT_STATUSES,
    ClaimedTrial,
    HeartbeatResult,
    TrialClaim,
    TrialHeartbeat,
    TrialLease,
    TrialOutput,
    TrialRedemption,
    TrialResult,
    TrialTicket,
)
from gradmedic_service.access import repository as keys
from gradmedic_service.access import service as access
from gradmedic_service.access.principal import OPERATOR, TICKET, Principal
from gradmedic_service.access.secrets import is_secret
from gradmedic_service.database import models
from gradmedic_service.database.engine import Connection, Session
from gradmedic_service.http.errors import InvalidRequest, ServiceError
from gradmedic_service.http.paging import cut_page, position_of
from gradmedic_service.projects import repository as stored_projects
from gradmedic_service.projects import service as projects
from gradmedic_service.reruns import experiment, repository
from gradmedic_service.reruns.candidates import (
    candidates_of_advice,
    check_candidates,
    control_parameters,
    of_the_optimizer,
    trainable_errors,
    with_remedies,
)
from gradmedic_service.reruns.errors import NotRerunnable, RerunExists, RerunNotFound
from gradmedic_service.reruns.experiment import Budget, CandidateOutcome, Curve, Design
from gradmedic_service.reruns.repository import LIVING, RerunQuery
from gradmedic_service.runs import repository as runs
from gradmedic_service.runs.errors import RunNotFound
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.telemetry import service as telemetry
from gradmedic_service.trainables.errors import TrainableTaken, TrainableUnknown
from gradmedic_service.trials.errors import StaleAttempt, TrialNotFound

DEFAULT_SEEDS = 3
MAX_SEEDS = 10
MAX_CANDIDATES = 50
DEFAULT_SECONDS = 3600.0
LEAST_STEPS = 200
"""Steps that a trial gets at least, unless it was said otherwise."""
BEYOND_FAILURE = 1.5
"""A trial gets so many times the steps after which the suspect run had failed: a repaired one must be seen to learn."""
MAX_ATTEMPTS = 3
"""Of one trial that may be lost before it is given up: then it is the trial that loses them."""
MAX_TICKET_SECONDS = 86_400.0
"""For which a ticket may be good; the attempt's lease is what ends it as a rule."""
LEAST_SECONDS = 1.0
"""No trial is started with less time than this."""
WAITS_FOR_PLACE = "it waits for a place on the cluster"
SECONDS_SPENT = "the rerun's budget of seconds is spent"
MAX_OUTPUT = 64 * 1024
"""Characters kept of what an attempt prints: the last."""
OFFER_LAPSE = timedelta(seconds=60)
"""After which a trainable that was not offered again is not offered now: workers say so every ten seconds."""
MAX_CLAIM_SEARCH = 50
MAX_TRAINABLES = 1_000
MAX_REASON = 2_000
FINAL = ("done", "not_reproduced", "failed", "cancelled")

REMEDIES = TypeAdapter(list[list[Remedy]])
PARAMETERS = TypeAdapter(list[TrainableParameter])
CURVE = TypeAdapter(Curve)
OUTCOMES = TypeAdapter(list[CandidateOutcome])

_logger = structlog.get_logger("gradmedic.reruns")


# --- trainables -------------------------------------------------------------------------------------------------------


def register(session: Session, principal: Principal, body: TrainablesOffer, limits: Limits) -> Trainables:
    """Store what a worker offers, and withdraw what it, and nobody else, offered before.

    Raises InvalidRequest, and TrainableTaken where a name is another key's.
    """
    errors = []
    if body.worker is not None and (message := name_error(body.worker, limits.max_name_length)) is not None:
        raise InvalidRequest.at("worker", message)
    if len(body.items) > MAX_TRAINABLES:
        raise InvalidRequest.at("items", f"has {len(body.items)}; at most {MAX_TRAINABLES} are allowed")
    for index, item in enumerate(body.items):
        path = f"items[{index}]"
        if (message := name_error(item.name, limits.max_name_length)) is not None:
            errors.append(FieldError(path=f"{path}.name", message=message))
        errors += trainable_errors(item, path)
    if errors:
        raise InvalidRequest(errors)
    owner, at = _owner(principal), repository.now(session)
    known = repository.lock_trainables(session, owner, [item.name for item in body.items])
    for item in body.items:
        _register(session, principal, item, known.pop(item.name, None), body.worker, at)
    if body.worker is not None:
        for one in known.values():  # a worker of the same name that has it would have said so by now
            if one.worker == body.worker and one.withdrawn_at is None and at - one.updated_at >= OFFER_LAPSE:
                one.withdrawn_at = at
    return Trainables(items=body.items)


def _register(
    session: Session,
    principal: Principal,
    item: Trainable,
    existing: models.Trainable | None,
    worker: str | None,
    at: datetime,
) -> None:
    owner = _owner(principal)
    described: dict[str, Any] = {
        "owner": owner,
        "project": principal.project,
        "gpus": item.gpus,
        "timeout": item.timeout,
        "parameters": PARAMETERS.dump_python(item.parameters, exclude_defaults=True),
        "updated_at": at,
        "worker": worker,
        "withdrawn_at": None,
    }
    if existing is None:
        if repository.add_trainable(session, models.Trainable(name=item.name, **described)):
            return
        existing = repository.find_trainable(session, item.name)  # whoever stored it meanwhile has committed
    if existing is None or (existing.owner != owner and not _is_free(session, existing.owner, at)):
        raise TrainableTaken(f"The trainable {item.name!r} belongs to the key that registered it; choose another name.")
    for name, value in described.items():
        setattr(existing, name, value)


def _owner(principal: Principal) -> str:
    return "" if principal.key_id is None else principal.key_id.hex


def _is_free(session: Session, owner: str, at: datetime) -> bool:
    """Whether a name's owner can no longer use it: it was registered without a key, or with one that is dead."""
    if not owner:
        return True
    key = keys.find(session, UUID(hex=owner))
    return key is None or key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= at)


def list_trainables(session: Session, principal: Principal) -> Trainables:
    """Return the trainables that a principal's runs may name."""
    return Trainables(
        items=[
            Trainable(
                name=one.name,
                parameters=PARAMETERS.validate_python(one.parameters),
                gpus=one.gpus,
                timeout=one.timeout,
            )
            for one in repository.trainables(session, principal.project)
        ]
    )


# --- asking -----------------------------------------------------------------------------------------------------------


def create(
    session: Session, principal: Principal, facts: FactsCache, limits: Limits, run_id: UUID, body: RerunCreate
) -> tuple[RerunDetail, bool]:
    """Store a rerun and its first trial, or find the one that the same request stored; the flag says if it is new.

    Raises RunNotFound, RerunExists, NotRerunnable, TrainableUnknown, InvalidRequest.
    """
    run = runs.find(session, run_id, is_locked=True)
    if run is None or not principal.reaches_run(run_id, run.project):
        raise RunNotFound(f"There is no run {run_id}.")
    if body.id is not None:
        existing = repository.find_rerun(session, body.id)
        if existing is not None:
            if existing.run_id != run_id:
                raise RerunExists(f"The id {body.id} is taken; leave it out to be given one.")
            return _detail(session, existing), False
    rerun = _new_rerun(session, facts, limits, run, body)
    if not repository.add_rerun(session, rerun):
        raise RerunExists(f"The id {rerun.id} is taken; leave it out to be given one.")
    access.record(session, principal, "create_rerun", rerun.id, run.project)
    runs.touch(run)
    _advance(session, rerun, rerun.created_at)
    return _detail(session, rerun), True


def start_automatically(
    session: Session, principal: Principal, facts: FactsCache, limits: Limits, run_id: UUID
) -> None:
    """Rerun a run that has just turned unhealthy, if its project wants that, its key may, and it was not yet."""
    if not principal.has_scope("rerun"):
        return
    run = runs.find(session, run_id)
    if run is None or run.trainable is None or run.parent_id is not None:
        return
    project = stored_projects.find(session, run.project)
    if project is None or not project.rerun_automatically or repository.has_rerun(session, run_id):
        return
    try:
        rerun = _new_rerun(session, facts, limits, run, RerunCreate(), is_automatic=True)
    except ServiceError as error:
        _logger.warning("not rerun automatically", run_id=str(run_id), reason=error.detail)
        return
    if repository.add_rerun(session, rerun):
        access.record(session, principal, "create_rerun", rerun.id, run.project)
        _advance(session, rerun, rerun.created_at)


def _new_rerun(
    session: Session,
    facts: FactsCache,
    limits: Limits,
    run: models.Run,
    body: RerunCreate,
    *,
    is_automatic: bool = False,
) -> models.Rerun:
    if run.parent_id is not None:
        raise NotRerunnable("The run is an attempt at a trial of a rerun itself.")
    if run.trainable is None:
        raise NotRerunnable("The run names no trainable: give gradmedic.init(trainable=...) the name of one.")
    trainable = repository.find_trainable(session, run.trainable)
    if trainable is None or trainable.withdrawn_at is not None or trainable.project not in (None, run.project):
        raise TrainableUnknown(
            f"No worker offers the trainable {run.trainable!r} for project {run.project!r}: "
            "start `gradmedic worker` with a worker.toml that has it."
        )
    parameters = PARAMETERS.validate_python(trainable.parameters)
    seeds, seconds, trials = _checked_budget(body, limits, projects.rerun_caps(session, run.project).seconds)
    if body.remedies is None:
        diagnosis = telemetry.diagnose(session.connection(), OPERATOR, facts, run.id, None)
        advice = [(one.remedy.id, one.remedy.parameters) for one in diagnosis.advice]
        candidates = candidates_of_advice(advice, parameters)
        if not candidates:
            raise NotRerunnable(
                f"The run is {run.verdict}, and nothing of its advice can be tried automatically: name remedies."
            )
    else:
        check_candidates(body.remedies, parameters)
        candidates = body.remedies
    if len(candidates) > MAX_CANDIDATES:
        raise InvalidRequest.at("remedies", f"has {len(candidates)} candidates; at most {MAX_CANDIDATES} are allowed")
    return models.Rerun(
        id=body.id or new_id(),
        run_id=run.id,
        project=run.project,
        trainable=trainable.name,
        owner=trainable.owner,
        executor=body.executor,
        is_automatic=is_automatic,
        status="queued",
        reason=None,
        candidates=without_nonfinite(REMEDIES.dump_python([[], *candidates])),
        parameters=control_parameters(run.details.config, parameters),
        seeds=list(range(seeds)),
        steps=body.budget.steps or min(_steps_for(run), limits.max_rerun_steps),
        seconds=seconds,
        max_trials=trials,
        outcomes=None,
        created_at=repository.now(session),
        started_at=None,
        ended_at=None,
    )


def _steps_for(run: models.Run) -> int:
    failed_after = (run.since_step or 0) + 1
    return max(LEAST_STEPS, math.ceil(BEYOND_FAILURE * failed_after) + LEAST_STEPS // 2)


def _checked_budget(body: RerunCreate, limits: Limits, cap: float) -> tuple[int, float, int]:
    """Return seeds, seconds and trials. Raises InvalidRequest naming every one that cannot be."""
    seeds = DEFAULT_SEEDS if body.seeds is None else body.seeds
    seconds = min(DEFAULT_SECONDS, cap) if body.budget.seconds is None else body.budget.seconds
    trials = limits.max_rerun_trials if body.budget.trials is None else body.budget.trials
    steps = 1 if body.budget.steps is None else body.budget.steps
    errors = []
    if not 1 <= seeds <= MAX_SEEDS:
        errors.append(FieldError(path="seeds", message=f"must be from 1 to {MAX_SEEDS}"))
    if not 1 <= steps <= limits.max_rerun_steps:
        errors.append(FieldError(path="budget.steps", message=f"must be from 1 to {limits.max_rerun_steps}"))
    if not LEAST_SECONDS <= seconds <= cap:
        errors.append(FieldError(path="budget.seconds", message=f"must be from {LEAST_SECONDS:g} to {cap:g}"))
    if not 1 <= trials <= limits.max_rerun_trials:
        errors.append(FieldError(path="budget.trials", message=f"must be from 1 to {limits.max_rerun_trials}"))
    if body.executor is not None and body.executor not in EXECUTORS:
        errors.append(FieldError(path="executor", message=_no_executor(body.executor)))
    if body.id is not None and body.id.version != 7:
        errors.append(FieldError(path="id", message=f"must be a UUID of version 7, not {body.id.version}"))
    if errors:
        raise InvalidRequest(errors)
    return seeds, seconds, trials


def _no_executor(name: str) -> str:
    return f"{name!r} is not one of {', '.join(EXECUTORS)}"


def get(session: Session, principal: Principal, rerun_id: UUID) -> RerunDetail:
    """Return a rerun with its candidates, trials and attempts. Raises RerunNotFound."""
    return _detail(session, _reached(principal, repository.find_rerun(session, rerun_id), rerun_id))


def list_page(
    session: Session, principal: Principal, query: RerunQuery, page_token: str | None, max_results: int
) -> RerunList:
    """Return a page of reruns, newest first. Raises InvalidRequest for a token of another list."""
    query = replace(query, reachable_project=principal.project)
    digest = encode_json([query.reachable_project, query.project, str(query.run_id), query.status]).decode()
    if page_token is not None:
        moment, rerun_id = position_of(page_token, digest, 2)
        try:
            query = replace(query, after=(datetime.fromisoformat(moment), UUID(hex=rerun_id)))
        except ValueError:
            raise InvalidRequest.at("page_token", "is not a token of this list") from None
    found = repository.page(session, query, max_results + 1)
    page, token = cut_page(found, max_results, digest, lambda rerun: [rerun.created_at.isoformat(), rerun.id.hex])
    return RerunList(items=[RerunSummary(**_summary_fields(rerun)) for rerun in page], next_page_token=token)


def cancel(session: Session, principal: Principal, rerun_id: UUID) -> RerunDetail:
    """End a rerun and everything that runs for it; once is enough. Raises RerunNotFound."""
    rerun = _reached(principal, repository.lock_rerun(session, rerun_id), rerun_id)
    if rerun.status not in FINAL:
        at = repository.now(session)
        for trial in repository.trials_of(session, rerun.id):
            if trial.status == "running":
                _end_attempt(session, trial, at, status="cancelled", reason="the rerun was cancelled")
            if trial.status in LIVING:
                trial.status, trial.reason, trial.lease_expires_at = "cancelled", "the rerun was cancelled", None
        rerun.status, rerun.reason, rerun.ended_at = "cancelled", f"cancelled by {principal.name}", at
        access.record(session, principal, "cancel_rerun", rerun.id, rerun.project)
        _touch_suspect(session, rerun)
    return _detail(session, rerun)


# --- working ----------------------------------------------------------------------------------------------------------


def has_no_worker(session: Session, rerun_id: UUID, patience: float) -> bool:
    """Whether nobody works on a rerun, and nobody has offered its trainable for that long, or ever will."""
    at = repository.now(session)
    return bool(repository.without_worker(session, at, at - timedelta(seconds=patience), rerun_id))


def give_up(session: Session, patience: float) -> bool:
    """Queue the trials again whose worker was lost, and end the reruns that are forsaken; False if there are none.

    A transaction of its own: it holds what a claim takes in another order.
    """
    at = repository.now(session)
    forsaken = repository.without_worker(session, at, at - timedelta(seconds=patience))
    concerned = {*repository.with_expired_trials(session, at), *forsaken}
    for rerun_id in sorted(concerned):
        rerun = repository.lock_rerun(session, rerun_id, skips_locked=True)
        if rerun is None:
            continue
        _queue_lost(session, rerun, at)
        silent = f"no worker has offered the trainable {rerun.trainable!r} for {patience:g} seconds"
        _advance(session, rerun, at, silent if rerun_id in forsaken else None)
    return bool(concerned)


def claim(
    session: Session, principal: Principal, body: TrialClaim, limits: Limits, lease: float
) -> ClaimedTrial | None:
    """Hand a queued trial to a worker, as a new attempt with a lease; None if there is none for it now."""
    if (message := name_error(body.worker, limits.max_name_length)) is not None:
        raise InvalidRequest.at("worker", message)
    if len(body.trainables) > MAX_TRAINABLES:
        raise InvalidRequest.at("trainables", f"has {len(body.trainables)}; at most {MAX_TRAINABLES} are allowed")
    if body.executor not in EXECUTORS:
        raise InvalidRequest.at("executor", _no_executor(body.executor))
    at = repository.now(session)
    waiting = repository.with_queued_trials(
        session, _owner(principal), principal.project, body.trainables, body.executor, MAX_CLAIM_SEARCH
    )
    for rerun_id, project_name in waiting:
        stored_projects.find(session, project_name, is_locked=True)  # so that two claims do not exceed its cap
        if (
            repository.running_in_project(session, project_name)
            >= projects.rerun_caps(session, project_name).concurrent_trials
        ):
            continue
        rerun = repository.lock_rerun(session, rerun_id, skips_locked=True)
        if rerun is None or rerun.status not in LIVING or rerun.executor not in (None, body.executor):
            continue
        trials = repository.trials_of(session, rerun_id)
        trial = next((one for one in trials if one.status == "queued"), None)
        if trial is None:
            continue
        seconds = _seconds_for_one_more(session, rerun, trials, at)
        if seconds < LEAST_SECONDS:
            _cancel_queued(trials, SECONDS_SPENT)
            _advance(session, rerun, at)
            continue
        rerun.executor = body.executor
        return _start(session, principal, rerun, trial, body.worker, at, lease, seconds)
    return None


def _start(
    session: Session,
    principal: Principal,
    rerun: models.Rerun,
    trial: models.Trial,
    worker: str,
    at: datetime,
    lease: float,
    seconds: float,
) -> ClaimedTrial:
    is_waiting = rerun.executor != EXECUTORS[0]
    trial.attempt += 1
    trial.status, trial.reason, trial.reason_to_stop = "running", None, None
    trial.lease_expires_at = repository.lease_end(at, lease)
    trial.rungs, trial.curve, trial.verdict = [], None, "undetermined"
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
        _touch_suspect(session, rerun)
    trainable = repository.find_trainable(session, rerun.trainable)
    timeout = seconds if trainable is None else min(seconds, trainable.timeout)
    secret = None if is_waiting else _give_key(session, principal, rerun, attempt, at, timeout + 10 * lease)
    return _claimed(rerun, trial, attempt, trainable, lease, timeout, secret)


def _give_key(
    session: Session, principal: Principal, rerun: models.Rerun, attempt: models.Attempt, at: datetime, seconds: float
) -> str | None:
    """Make the key that an attempt streams with, and return its secret; None where there are no keys."""
    if principal.key_id is None:
        return None
    key, secret = access.create_key(
        session,
        project=rerun.project,
        name=f"trial {attempt.trial_id} attempt {attempt.number}",
        scopes=["ingest"],
        run_id=attempt.run_id,
        expires_at=at + timedelta(seconds=seconds),
        by=principal,
    )
    attempt.key_id = key.id
    return secret


def _claimed(
    rerun: models.Rerun,
    trial: models.Trial,
    attempt: models.Attempt,
    trainable: models.Trainable | None,
    lease: float,
    seconds: float,
    secret: str | None,
) -> ClaimedTrial:
    parameters = [] if trainable is None else PARAMETERS.validate_python(trainable.parameters)
    remedies = REMEDIES.validate_python(rerun.candidates)[trial.candidate]
    return ClaimedTrial(
        trial_id=trial.id,
        attempt=attempt.number,
        rerun_id=rerun.id,
        run_id=attempt.run_id,
        parent_id=rerun.run_id,
        project=rerun.project,
        candidate=trial.candidate,
        trainable=rerun.trainable,
        parameters=with_remedies(rerun.parameters, remedies, parameters),
        seed=trial.seed,
        remedies=of_the_optimizer(remedies, parameters),
        steps=rerun.steps,
        seconds=seconds,
        lease_seconds=lease,
        api_key=secret,
    )


def issue_ticket(session: Session, principal: Principal, trial_id: UUID, body: TrialTicket) -> TrialLease:
    """Let a ticket be redeemed once for an attempt that waits; the same again changes nothing.

    Raises TrialNotFound, StaleAttempt, InvalidRequest.
    """
    errors = []
    if not is_secret(body.ticket):
        errors.append(FieldError(path="ticket", message="must have the form of an API key"))
    if not 0 < body.seconds <= MAX_TICKET_SECONDS:
        errors.append(FieldError(path="seconds", message=f"must be above 0 and at most {MAX_TICKET_SECONDS:g}"))
    if errors:
        raise InvalidRequest(errors)
    _, rerun = _worked_on(session, principal, trial_id)
    trial, attempt = _held(session, rerun.id, trial_id, body.attempt)
    at = repository.now(session)
    if not attempt.is_waiting:
        raise StaleAttempt(f"Attempt {attempt.number} at this trial waits for nobody: its ticket was redeemed.")
    if not access.is_secret_of(session, attempt.key_id, body.ticket):
        if access.is_secret_taken(session, body.ticket):
            raise InvalidRequest.at("ticket", "was used before")
        if attempt.key_id is not None:
            access.revoke_key(session, OPERATOR, attempt.key_id)
        ticket, _ = access.create_key(
            session,
            project=rerun.project,
            name=f"ticket of trial {trial_id} attempt {attempt.number}",
            scopes=[TICKET],
            run_id=attempt.run_id,
            expires_at=at + timedelta(seconds=body.seconds),
            secret=body.ticket,
            by=principal,
        )
        attempt.key_id = ticket.id
    return _lease(trial, attempt, at)


def redeem(session: Session, principal: Principal, trial_id: UUID, body: TrialRedemption, lease: float) -> ClaimedTrial:
    """Hand the process of a waiting attempt what it needs, once: from now on its time counts.

    Raises TrialNotFound where the ticket is not this attempt's, StaleAttempt.
    """
    trial = repository.find_trial(session, trial_id)
    if trial is None:
        raise _no_trial(trial_id)
    found = repository.find_attempt(session, trial_id, body.attempt)
    if found is None or principal.run_id != found.run_id:
        raise _no_trial(trial_id)
    trial, attempt = _held(session, trial.rerun_id, trial_id, body.attempt)
    rerun = repository.find_rerun(session, trial.rerun_id)
    at = repository.now(session)
    if not attempt.is_waiting or principal.key_id is None or principal.key_id != attempt.key_id:
        raise StaleAttempt(f"The ticket of attempt {attempt.number} at this trial was redeemed before.")
    if rerun is None or _lease(trial, attempt, at).seconds < 0:
        raise StaleAttempt(f"The worker of attempt {attempt.number} at this trial was not heard of in time.")
    access.revoke_key(session, OPERATOR, principal.key_id)
    trials = repository.trials_of(session, rerun.id)
    seconds = _seconds_for_one_more(session, rerun, [one for one in trials if one.id != trial_id], at)
    trainable = repository.find_trainable(session, rerun.trainable)
    timeout = max(LEAST_SECONDS, seconds if trainable is None else min(seconds, trainable.timeout))
    attempt.is_waiting, attempt.started_at = False, at
    secret = _give_key(session, principal, rerun, attempt, at, timeout + 10 * lease)
    return _claimed(rerun, trial, attempt, trainable, lease, timeout, secret)


def lease_of(session: Session, principal: Principal, trial_id: UUID, number: int) -> TrialLease:
    """Say to the process of an attempt whether its worker still holds it. Raises TrialNotFound, StaleAttempt."""
    trial = repository.find_trial(session, trial_id)
    attempt = None if trial is None else repository.find_attempt(session, trial_id, number)
    rerun = None if trial is None else repository.find_rerun(session, trial.rerun_id)
    if trial is None or attempt is None or rerun is None or not principal.reaches_run(attempt.run_id, rerun.project):
        raise _no_trial(trial_id)
    if trial.attempt != number or trial.status != "running":
        raise _stale(trial, number)
    return _lease(trial, attempt, repository.now(session))


def _held(session: Session, rerun_id: UUID, trial_id: UUID, number: int) -> tuple[models.Trial, models.Attempt]:
    """Hold a rerun and return one of its trials with the attempt that runs. Raises TrialNotFound, StaleAttempt."""
    repository.lock_rerun(session, rerun_id)
    trial = repository.find_trial(session, trial_id)
    attempt = repository.find_attempt(session, trial_id, number, is_fresh=True)
    if trial is None or attempt is None:
        raise _no_trial(trial_id)
    if trial.attempt != number or trial.status != "running":
        raise _stale(trial, number)
    return trial, attempt


def _lease(trial: models.Trial, attempt: models.Attempt, at: datetime) -> TrialLease:
    until = trial.lease_expires_at or at
    return TrialLease(trial_id=trial.id, attempt=attempt.number, seconds=(until - at).total_seconds())


def _no_trial(trial_id: UUID) -> TrialNotFound:
    return TrialNotFound(f"There is no trial {trial_id}.")


def heartbeat(
    session: Session, principal: Principal, trial_id: UUID, body: TrialHeartbeat, lease: float
) -> HeartbeatResult:
    """Renew an attempt's lease and say whether it is worth going on. Raises TrialNotFound, StaleAttempt."""
    trial, rerun = _worked_on(session, principal, trial_id)
    at = repository.now(session)
    if not repository.renew(session, trial_id, body.attempt, repository.lease_end(at, lease)):
        raise _stale(trial, body.attempt)
    trials = repository.trials_of(session, rerun.id)
    trial = next(one for one in trials if one.id == trial_id)
    attempt = repository.find_attempt(session, trial_id, body.attempt)
    if attempt is None:
        raise _stale(trial, body.attempt)
    if body.output is not None:
        attempt.output = _bounded(body.output)
    run = repository.runs_of(session, [attempt.run_id]).get(attempt.run_id)
    if run is not None and trial.reason_to_stop is None:
        trial.verdict = run.verdict
        _pass_rungs(session, rerun, trial, run)
        if trial.rungs or trial.verdict == "exploding":
            trial.reason_to_stop = _reason_to_stop(rerun, trial, trials, (run.last_step or 0) + 1)
    left = _seconds_left(session, rerun, trials, at)
    running = sum(one.status == "running" for one in trials)
    seconds = left / max(1, running)
    if trial.reason_to_stop is None and seconds <= 0:
        trial.reason_to_stop = SECONDS_SPENT
    if trial.reason_to_stop is not None:
        repository.stop_run(session, attempt.run_id, None)
    return HeartbeatResult(
        stop=trial.reason_to_stop is not None,
        reason=trial.reason_to_stop,
        seconds=seconds,
        step=None if run is None else run.last_step,
        verdict=trial.verdict,
    )


def finish(session: Session, principal: Principal, trial_id: UUID, body: TrialResult) -> RerunDetail:
    """Publish what an attempt showed, once, and go on with the experiment.

    The same result again changes nothing. Raises TrialNotFound, StaleAttempt, InvalidRequest.
    """
    if body.seconds is not None and not body.seconds >= 0:
        raise InvalidRequest.at("seconds", f"must not be negative, not {body.seconds!r}")
    if body.status not in RESULT_STATUSES:
        raise InvalidRequest.at("status", f"{body.status!r} is not one of {', '.join(RESULT_STATUSES)}")
    _, rerun = _worked_on(session, principal, trial_id)
    locked = repository.lock_rerun(session, rerun.id)
    if locked is None:
        raise _no_trial(trial_id)
    rerun = locked
    trial = next(one for one in repository.trials_of(session, rerun.id) if one.id == trial_id)
    attempt = repository.find_attempt(session, trial_id, body.attempt)
    if attempt is not None and attempt.ended_at is not None and attempt.status != "cancelled":
        if (attempt.status == "lost") == (body.status == "lost"):
            return _detail(session, rerun)
        raise _stale(trial, body.attempt)
    at = repository.now(session)
    status, reason = body.status, None if body.reason is None else body.reason[:MAX_REASON]
    run = None if attempt is None else repository.runs_of(session, [attempt.run_id]).get(attempt.run_id)
    if trial.reason_to_stop is not None and status != "not_applicable":
        status, reason = "stopped", trial.reason_to_stop
    elif status == "lost":
        if trial.attempt != body.attempt or trial.status != "running":
            raise _stale(trial, body.attempt)
        _lose(session, trial, at, reason or "what hosted it was lost", output=body.output)
        _advance(session, rerun, at)
        return _detail(session, rerun)
    elif status == "done" and (run is None or run.last_step is None):
        status = "failed"
        reason = "the script ended without gradmedic.init()" if run is None else "the script never called run.log()"
    if not repository.end_trial(session, trial_id, body.attempt, status=status, reason=reason):
        raise _stale(trial, body.attempt)
    trial = next(one for one in repository.trials_of(session, rerun.id) if one.id == trial_id)
    if run is not None:
        trial.verdict = run.verdict
        _pass_rungs(session, rerun, trial, run)
        curve = experiment.describe_curve(telemetry.read_losses(session.connection(), run.id, rerun.steps - 1))
        trial.curve = None if curve is None else without_nonfinite(asdict(curve))
    _end_attempt(
        session,
        trial,
        at,
        status=status,
        reason=reason,
        exit_code=body.exit_code,
        output=body.output,
        environment=body.environment,
        seconds=body.seconds,
    )
    _advance(session, rerun, at)
    return _detail(session, rerun)


def output(session: Session, principal: Principal, trial_id: UUID, number: int | None) -> TrialOutput:
    """Return the end of what an attempt, the latest unless another is named, has printed. Raises TrialNotFound."""
    trial = repository.find_trial(session, trial_id)
    rerun = None if trial is None else repository.find_rerun(session, trial.rerun_id)
    if trial is None or rerun is None or not principal.reaches_run(rerun.run_id, rerun.project):
        raise _no_trial(trial_id)
    number = trial.attempt if number is None else number
    attempt = repository.find_attempt(session, trial_id, number)
    if attempt is None:
        raise TrialNotFound(f"There is no attempt {number} at trial {trial_id}.")
    return TrialOutput(trial_id=trial_id, attempt=number, output=attempt.output)


def _worked_on(session: Session, principal: Principal, trial_id: UUID) -> tuple[models.Trial, models.Rerun]:
    """Return a trial that a worker may work on: whose trainable is its own. Raises TrialNotFound."""
    trial = repository.find_trial(session, trial_id)
    rerun = None if trial is None else repository.find_rerun(session, trial.rerun_id)
    if (
        trial is None
        or rerun is None
        or not principal.reaches_project(rerun.project)
        or rerun.owner != _owner(principal)
    ):
        raise _no_trial(trial_id)
    return trial, rerun


def _stale(trial: models.Trial, attempt: int) -> StaleAttempt:
    if trial.attempt != attempt:
        return StaleAttempt(f"Attempt {attempt} at this trial was given up; attempt {trial.attempt} is the latest.")
    return StaleAttempt(f"The trial is {trial.status}: {trial.reason or 'it has ended'}.")


def _bounded(text: str) -> str:
    """Return the end of a text, as a database can store it."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()[-MAX_OUTPUT:]


def _pass_rungs(session: Session, rerun: models.Rerun, trial: models.Trial, run: models.Run) -> None:
    """Note a trial's loss at each rung that it has passed since the last look."""
    passed = [step for step in experiment.rungs_of(rerun.steps) if step <= (run.last_step or 0) + 1]
    missing = passed[len(trial.rungs) :]
    if missing:
        losses = [
            experiment.loss_at_rung(telemetry.read_losses(session.connection(), run.id, step - 1), trial.verdict)
            for step in missing
        ]
        trial.rungs = [*trial.rungs, *without_nonfinite(losses)]


# --- the experiment ---------------------------------------------------------------------------------------------------


def _advance(session: Session, rerun: models.Rerun, at: datetime, closed: str | None = None) -> None:
    """Do what the experiment does now: start trials, unless `closed` says why not, or conclude. The row is held."""
    if rerun.status in FINAL:
        return
    trials = list(repository.trials_of(session, rerun.id))
    closed = _reason_withdrawn(session, rerun) or closed
    if closed is None and _seconds_left(session, rerun, trials, at) < LEAST_SECONDS:
        closed = SECONDS_SPENT
    if closed is not None:
        _cancel_queued(trials, closed)
    environments = {one.trial_id: one.environment for one in repository.attempts_of(session, rerun.id)}  # the latest
    seen = [replace(_seen(trial), environment=environments.get(trial.id, {})) for trial in trials]
    now = experiment.plan(_design(rerun), seen, closed)
    if now.conclusion is not None:
        _conclude(session, rerun, now.conclusion, at)
        return
    repository.add_trials(
        session,
        [
            models.Trial(
                id=new_id(),
                rerun_id=rerun.id,
                position=len(trials) + index,
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
            for index, (candidate, seed) in enumerate(now.start)
        ],
    )


def _design(rerun: models.Rerun) -> Design:
    budget = Budget(steps=rerun.steps, trials=rerun.max_trials)
    return Design(candidates=len(rerun.candidates) - 1, seeds=tuple(rerun.seeds), budget=budget)


def _reason_to_stop(rerun: models.Rerun, trial: models.Trial, trials: Sequence[models.Trial], steps: int) -> str | None:
    seen = {one.id: _seen(one) for one in trials}
    control = next(
        (one for one in seen.values() if (one.candidate, one.seed) == (experiment.CONTROL, rerun.seeds[0])), None
    )
    if control is None:
        return None
    others = [one for id, one in seen.items() if id != trial.id]
    return experiment.reason_to_stop(_seen(trial), others, control, _design(rerun), steps)


def _conclude(session: Session, rerun: models.Rerun, conclusion: experiment.Conclusion, at: datetime) -> None:
    rerun.status, rerun.reason, rerun.ended_at = conclusion.status, conclusion.reason, at
    rerun.outcomes = [without_nonfinite(asdict(outcome)) for outcome in conclusion.outcomes]
    _touch_suspect(session, rerun)


def _touch_suspect(session: Session, rerun: models.Rerun) -> None:
    run = runs.find(session, rerun.run_id, is_locked=True)
    if run is not None:
        runs.touch(run)


def _seen(trial: models.Trial) -> experiment.Trial:
    """Return a trial as the experiment sees it."""
    return experiment.Trial(
        candidate=trial.candidate,
        seed=trial.seed,
        status=trial.status,
        verdict=trial.verdict,
        curve=None if trial.curve is None else CURVE.validate_python(trial.curve),
        rungs=tuple(float(loss) for loss in trial.rungs),
        seconds=trial.seconds,
        reason=trial.reason,
    )


def _seconds_left(session: Session, rerun: models.Rerun, trials: Sequence[models.Trial], at: datetime) -> float:
    """Return what is left of a rerun's seconds, counting what runs as it runs."""
    left = rerun.seconds - sum(trial.seconds for trial in trials)
    for trial in trials:
        if trial.status == "running":
            attempt = repository.find_attempt(session, trial.id, trial.attempt)
            if attempt is not None and not attempt.is_waiting:
                left -= max(0.0, (at - attempt.started_at).total_seconds())
    return left


def _seconds_for_one_more(session: Session, rerun: models.Rerun, trials: Sequence[models.Trial], at: datetime) -> float:
    """Return how long one more trial may run beside those that run: they use up the rest together."""
    running = sum(trial.status == "running" for trial in trials)
    return _seconds_left(session, rerun, trials, at) / (running + 1)


def _cancel_queued(trials: Sequence[models.Trial], reason: str) -> None:
    for trial in trials:
        if trial.status == "queued":
            trial.status, trial.reason = "cancelled", reason


def _queue_lost(session: Session, rerun: models.Rerun, at: datetime) -> None:
    """Queue again the trials whose worker was not heard of in time; those that lost several workers have failed."""
    trials = repository.trials_of(session, rerun.id)
    for trial in trials:
        if trial.status != "running" or trial.lease_expires_at is None or trial.lease_expires_at >= at:
            continue
        left = max(0.0, rerun.seconds - sum(one.seconds for one in trials))  # its launcher has ended it by then
        _lose(session, trial, trial.lease_expires_at, "its worker was not heard of any more", seconds=left)


def _reason_withdrawn(session: Session, rerun: models.Rerun) -> str | None:
    """Say why no worker will ever run a rerun's trainable, if that is so."""
    trainable = repository.find_trainable(session, rerun.trainable)
    if trainable is None or trainable.owner != rerun.owner:
        return f"the trainable {rerun.trainable!r} belongs to another key now"
    if trainable.withdrawn_at is not None:
        return f"the worker {trainable.worker!r} does not offer the trainable {rerun.trainable!r} any more"
    return None


def _lose(
    session: Session,
    trial: models.Trial,
    at: datetime,
    reason: str,
    *,
    output: str | None = None,
    seconds: float | None = None,
) -> None:
    """Give an attempt up and queue its trial again, unless it has lost too many."""
    _end_attempt(session, trial, at, status="lost", reason=reason, output=output, seconds=seconds)
    trial.lease_expires_at = None
    if trial.attempt >= MAX_ATTEMPTS:
        trial.status, trial.reason = "failed", f"{trial.attempt} attempts at it were lost, the last: {reason}"
    else:
        trial.status, trial.reason = "queued", None


def _end_attempt(
    session: Session,
    trial: models.Trial,
    at: datetime,
    *,
    status: str,
    reason: str | None,
    exit_code: int | None = None,
    output: str | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> None:
    """Note the end of a trial's latest attempt: its run takes no further step, its key opens nothing any more."""
    attempt = repository.find_attempt(session, trial.id, trial.attempt)
    if attempt is None:
        return
    attempt.status, attempt.reason, attempt.exit_code, attempt.ended_at = status, reason, exit_code, at
    if output is not None:
        attempt.output = _bounded(output)
    if environment:
        attempt.environment = {str(name)[:64]: str(value)[:256] for name, value in list(environment.items())[:32]}
    if not attempt.is_waiting:
        passed = max(0.0, (at - attempt.started_at).total_seconds())
        trial.seconds += passed if seconds is None else min(passed, seconds)
    attempt.is_waiting = False
    repository.stop_run(session, attempt.run_id, "finished" if status in ("done", "stopped") else "failed")
    if attempt.key_id is not None:
        access.revoke_key(session, OPERATOR, attempt.key_id)


# --- on the wire ------------------------------------------------------------------------------------------------------


def with_outcomes(connection: Connection, diagnosis: Diagnosis) -> Diagnosis:
    """Return a diagnosis with what reruns of its run have shown: what is proven first, by its loss."""
    tried = [
        Tried(
            remedies=REMEDIES.validate_python(rerun.candidates)[outcome.candidate],
            outcome=_outcome(rerun.id, outcome),
            reason=outcome.reason,
        )
        for rerun in repository.concluded(connection, diagnosis.run_id)
        for outcome in OUTCOMES.validate_python(rerun.outcomes)
    ]
    if not tried:
        return diagnosis
    alone = {_key(one.remedies[0]): one.outcome for one in reversed(tried) if len(one.remedies) == 1}
    advice = [replace(one, outcome=alone.get(_key(one.remedy))) for one in diagnosis.advice]
    advice.sort(key=_proof)
    ranked = [replace(one, rank=rank) for rank, one in enumerate(advice, start=1)]
    return replace(diagnosis, advice=ranked, tried=tried)


def _proof(advice: Advice) -> float:
    """Return what to sort by: the loss of a remedy that is verified, infinity for the others."""
    outcome = advice.outcome
    if outcome is None or outcome.state != "verified" or outcome.loss is None:
        return math.inf
    return outcome.loss


def _key(remedy: Remedy) -> bytes:
    return encode_json([remedy.id, sorted(remedy.parameters.items())])


def _outcome(rerun_id: UUID, outcome: CandidateOutcome) -> Outcome:
    return Outcome(
        state=outcome.state,
        rerun_id=rerun_id,
        seeds=outcome.seeds,
        healthy=outcome.healthy,
        loss=outcome.loss,
        control_loss=outcome.control_loss,
        cost_seconds=outcome.cost_seconds,
        environment=dict(outcome.environment),
    )


def _reached(principal: Principal, rerun: models.Rerun | None, rerun_id: UUID) -> models.Rerun:
    if rerun is None or not principal.reaches_run(rerun.run_id, rerun.project):
        raise RerunNotFound(f"There is no rerun {rerun_id}.")
    return rerun


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
    }


def _detail(session: Session, rerun: models.Rerun) -> RerunDetail:
    trials = repository.trials_of(session, rerun.id)
    attempts = repository.attempts_of(session, rerun.id)
    created = repository.runs_of(session, [attempt.run_id for attempt in attempts])
    outcomes = {outcome.candidate: outcome for outcome in OUTCOMES.validate_python(rerun.outcomes or [])}
    return RerunDetail(
        **_summary_fields(rerun) | {"reason": rerun.reason or _reason_to_wait(session, rerun, trials)},
        budget=RerunBudget(steps=rerun.steps, seconds=rerun.seconds, trials=rerun.max_trials),
        seeds=list(rerun.seeds),
        executor=rerun.executor,
        parameters=dict(rerun.parameters),
        candidates=[
            Candidate(
                remedies=remedies,
                outcome=_outcome(rerun.id, outcomes[index]) if index in outcomes else None,
                reason=outcomes[index].reason if index in outcomes else None,
            )
            for index, remedies in enumerate(REMEDIES.validate_python(rerun.candidates))
        ],
        trials=[
            _trial(trial, [attempt for attempt in attempts if attempt.trial_id == trial.id], created)
            for trial in trials
        ],
        cost_seconds=sum(trial.seconds for trial in trials),
    )


def _reason_to_wait(session: Session, rerun: models.Rerun, trials: Sequence[models.Trial]) -> str | None:
    """Say that no worker is there, if that is what a rerun waits for."""
    statuses = {trial.status for trial in trials}
    if rerun.status in FINAL or "running" in statuses or "queued" not in statuses:
        return None
    trainable = repository.find_trainable(session, rerun.trainable)
    if trainable is None or repository.now(session) - trainable.updated_at < OFFER_LAPSE:
        return None
    since = f"{trainable.updated_at:%Y-%m-%d %H:%M:%S} UTC"
    return f"waits for a worker: none has offered the trainable {rerun.trainable!r} since {since}"


def _trial(trial: models.Trial, attempts: Sequence[models.Attempt], created: Mapping[UUID, models.Run]) -> Trial:
    curve = None if trial.curve is None else CURVE.validate_python(trial.curve)
    run = created.get(attempts[-1].run_id) if attempts else None
    is_waiting = trial.status == "running" and attempts and attempts[-1].is_waiting
    return Trial(
        id=trial.id,
        candidate=trial.candidate,
        seed=trial.seed,
        status=trial.status,
        reason=WAITS_FOR_PLACE if is_waiting else trial.reason,
        verdict=trial.verdict if run is None or trial.status != "running" else run.verdict,
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
            )
            for attempt in attempts
        ],
        lease_expires_at=trial.lease_expires_at,
    )
