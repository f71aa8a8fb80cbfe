"""Reruns: creating, reading, listing and ending them."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from gradmedic.protocol.encoding import encode_json, without_nonfinite
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.numbers import LARGEST_INT32
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.reruns import EXECUTORS, RERUN_KINDS, RerunCreate, RerunDetail, RerunList, RerunPlan
from gradmedic.protocol.service import FieldError, Limits
from gradmedic.protocol.trainables import TrainableParameter
from gradmedic_service.access import service as access
from gradmedic_service.access.principal import OPERATOR, Principal
from gradmedic_service.database import models
from gradmedic_service.database.clock import database_time
from gradmedic_service.database.engine import Session
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.http.paging import cut_page, position_id, position_of, position_time
from gradmedic_service.projects import repository as stored_projects
from gradmedic_service.projects import service as projects
from gradmedic_service.reruns import answers, locating, repository
from gradmedic_service.reruns.advancing import MIN_SECONDS, advance, touch_suspect_run
from gradmedic_service.reruns.attempts import end_attempt
from gradmedic_service.reruns.candidates import candidates_of_advice, check_candidates, parameters_of_control
from gradmedic_service.reruns.errors import NotRerunnable, RerunExists, RerunNotFound
from gradmedic_service.reruns.experiment import ExperimentBudget, ExperimentDesign
from gradmedic_service.reruns.forecast import expected_trials
from gradmedic_service.reruns.outcomes import CANDIDATES
from gradmedic_service.reruns.repository import ACTIVE_STATUSES, RerunQuery
from gradmedic_service.reruns.stored_plan import StoredPlan, store_plan
from gradmedic_service.runs import repository as runs
from gradmedic_service.runs.errors import RunNotFound
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.telemetry import service as telemetry
from gradmedic_service.telemetry.failures import find_failed_step
from gradmedic_service.trainables import repository as trainables
from gradmedic_service.trainables.errors import TrainableUnknown
from gradmedic_service.trainables.service import parameters_of

DEFAULT_SEEDS = 3
MAX_SEEDS = 10
MAX_CANDIDATES = 50
MAX_ROUNDS = 5
DEFAULT_ROUNDS = 3
"""Number of rounds of a rerun of the run's advice. One of named remedies has one round."""
DEFAULT_SECONDS = 3600.0
MIN_DEFAULT_STEPS = 200
"""Least number of steps of a trial where the request names none."""
STEPS_BEYOND_FAILURE = 1.5
"""Least number of steps of a trial as a multiple of those after which the suspect run had failed, so that a repaired
one can be seen to learn."""
MARGIN_STEPS = 10
"""Least number of logged steps that a trial of the kind `locate` goes on after the step at which the run failed."""
MARGIN_SHARE = 0.1
"""The same as a share of the steps before the failure."""
FIRST_ROUND_SHARE = 0.5
"""Share of the budget of seconds that the first round may take where the request names no steps. The rest is for
further rounds."""


def create(
    session: Session, principal: Principal, facts: FactsCache, limits: Limits, run_id: UUID, body: RerunCreate
) -> tuple[RerunDetail, bool]:
    """Store a rerun and its first trial, or find the one that the same request has stored; return whether it is new.

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
            return answers.describe(session, existing), False
    rerun = _new_rerun(session, facts, limits, run, body)
    if not repository.add_rerun(session, rerun):
        raise RerunExists(f"The id {rerun.id} is taken; leave it out to be given one.")
    access.record(session, principal, "create_rerun", rerun.id, run.project)
    runs.touch(run)
    advance(session, rerun, rerun.created_at)
    return answers.describe(session, rerun), True


def plan(
    session: Session, principal: Principal, facts: FactsCache, limits: Limits, run_id: UUID, body: RerunCreate
) -> RerunPlan:
    """Return what a rerun would cost that the same request creates. Nothing is stored.

    Raises RunNotFound, NotRerunnable, TrainableUnknown, InvalidRequest.
    """
    run = runs.find(session, run_id)
    if run is None or not principal.reaches_run(run_id, run.project):
        raise RunNotFound(f"There is no run {run_id}.")
    rerun = _new_rerun(session, facts, limits, run, body)
    return answers.describe_plan(rerun, [], rerun.seconds)


def has_automatic_rerun_due(session: Session, run_id: UUID) -> bool:
    """Whether the project of a run wants it to be rerun without a request, and the run has no rerun yet."""
    run = runs.find(session, run_id)
    if run is None or run.trainable is None or run.parent_id is not None:
        return False
    project = stored_projects.find(session, run.project)
    return project is not None and bool(project.rerun_automatically) and not repository.has_rerun(session, run_id)


def start_automatically(
    session: Session, principal: Principal, facts: FactsCache, limits: Limits, run_id: UUID
) -> bool:
    """Rerun a run of `has_automatic_rerun_due`; return False if it is none any more.

    Raises NotRerunnable, TrainableUnknown.
    """
    run = runs.find(session, run_id, is_locked=True)
    if run is None or not has_automatic_rerun_due(session, run_id):
        return False
    rerun = _new_rerun(session, facts, limits, run, RerunCreate(), is_automatic=True)
    repository.add_rerun(session, rerun)
    access.record(session, principal, "create_rerun", rerun.id, run.project)
    advance(session, rerun, rerun.created_at)
    return True


def get(session: Session, principal: Principal, rerun_id: UUID) -> RerunDetail:
    """Return a rerun with its candidates, trials and attempts. Raises RerunNotFound."""
    rerun = _check_reachable(principal, repository.find_rerun(session, rerun_id), rerun_id)
    return answers.describe(session, rerun)


def list_page(
    session: Session, principal: Principal, query: RerunQuery, page_token: str | None, max_results: int
) -> RerunList:
    """Return a page of reruns, newest first. Raises InvalidRequest for a token of another list."""
    query = replace(query, reachable_project=principal.project, reachable_run=principal.run_id)
    digest = encode_json([query.reachable_project, query.project, str(query.run_id), query.status]).decode()
    if page_token is not None:
        moment, rerun_id = position_of(page_token, digest, 2)
        query = replace(query, after=(position_time(moment), position_id(rerun_id)))
    rows = repository.read_page(session, query, max_results + 1)
    reruns, token = cut_page(rows, max_results, digest, lambda rerun: [rerun.created_at.isoformat(), rerun.id.hex])
    return RerunList(items=[answers.summarize(rerun) for rerun in reruns], next_page_token=token)


def cancel(session: Session, principal: Principal, rerun_id: UUID) -> RerunDetail:
    """End a rerun and its running trials; a second call changes nothing. Raises RerunNotFound."""
    rerun = _check_reachable(principal, repository.lock_rerun(session, rerun_id), rerun_id)
    if rerun.status in ACTIVE_STATUSES:
        at, reason = database_time(session), "the rerun was cancelled"
        for trial in repository.read_trials(session, rerun.id):
            if trial.status == "running":
                end_attempt(session, trial, at, status="cancelled", reason=reason)
            if trial.status in ACTIVE_STATUSES:
                trial.status, trial.reason, trial.lease_expires_at = "cancelled", reason, None
        rerun.status, rerun.reason, rerun.ended_at = "cancelled", f"cancelled by {principal.name}", at
        access.record(session, principal, "cancel_rerun", rerun.id, rerun.project)
        touch_suspect_run(session, rerun)
    return answers.describe(session, rerun)


def list_without_worker(session: Session, worker_patience: float, limit: int) -> list[UUID]:
    """Return the ids of active reruns that no worker runs, and whose trainable no worker has offered for some seconds.

    Reruns whose trainable was withdrawn, or belongs to another key now, are among them at once.
    """
    at = database_time(session)
    return repository.list_without_worker(session, at, at - timedelta(seconds=worker_patience), limit)


def end_without_worker(session: Session, rerun_id: UUID, worker_patience: float) -> bool:
    """End a rerun of `list_without_worker`; return False if it is none any more, or if another transaction holds it."""
    rerun = repository.lock_rerun(session, rerun_id, skips_locked=True)
    at = database_time(session)
    if rerun is None or not repository.has_no_worker(session, rerun_id, at, at - timedelta(seconds=worker_patience)):
        return False
    advance(
        session, rerun, at, f"no worker has offered the trainable {rerun.trainable!r} for {worker_patience:g} seconds"
    )
    return True


def _check_reachable(principal: Principal, rerun: models.Rerun | None, rerun_id: UUID) -> models.Rerun:
    if rerun is None or not principal.reaches_run(rerun.run_id, rerun.project):
        raise RerunNotFound(f"There is no rerun {rerun_id}.")
    return rerun


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
    trainable = trainables.find_offered(session, run.project, run.trainable)
    if trainable is None:
        raise TrainableUnknown(
            f"No worker offers the trainable {run.trainable!r} for project {run.project!r}: "
            "start `gradmedic worker` with a worker.toml that has it."
        )
    parameters = parameters_of(trainable)
    if body.kind == "locate":
        return _new_locating_rerun(session, facts, limits, run, body, trainable)
    seeds, seconds, trials = _checked_budget(body, limits, projects.rerun_caps(session, run.project).seconds)
    candidates = _candidates(session, facts, run, body, parameters)
    step_seconds = run.duration / run.last_step if run.duration and run.last_step else None
    steps = body.budget.steps or min(
        _default_steps(run, len(candidates), seeds, trials, seconds, step_seconds), limits.max_rerun_steps
    )
    rerun = _queued(
        session,
        run,
        trainable,
        body,
        is_automatic=is_automatic,
        candidates=without_nonfinite(CANDIDATES.dump_python([[], *candidates])),
        seeds=list(range(seeds)),
        steps=steps,
        seconds=seconds,
        max_trials=trials,
    )
    plan = StoredPlan(
        first_round=len(candidates),
        max_rounds=body.budget.rounds or (DEFAULT_ROUNDS if body.remedies is None else 1),
        max_steps=body.budget.steps or min(max(_steps_of(run), steps), limits.max_rerun_steps),
        step_seconds=step_seconds,
    )
    store_plan(rerun, plan)
    return rerun


def _new_locating_rerun(
    session: Session,
    facts: FactsCache,
    limits: Limits,
    run: models.Run,
    body: RerunCreate,
    trainable: models.Trainable,
) -> models.Rerun:
    """Return a rerun that finds the origin of the first non-finite number of a run."""
    _check_locating(body)
    _, seconds, trials = _checked_budget(body, limits, projects.rerun_caps(session, run.project).seconds)
    failed = find_failed_step(session.connection(), facts, run.id)
    if failed is None:
        raise NotRerunnable(
            "The run has no loss, gradient or weight that is not finite, so that the kind `locate` has nothing to find."
        )
    least = failed.step + 1
    if limits.max_rerun_steps < least:
        raise NotRerunnable(
            f"The run failed at step {failed.step}, and a trial may have {limits.max_rerun_steps} steps at most."
        )
    margin = max(MARGIN_STEPS * failed.interval, math.ceil(MARGIN_SHARE * failed.step))
    steps = body.budget.steps or min(least + margin, limits.max_rerun_steps)
    if steps < least:
        raise InvalidRequest.at(
            "budget.steps", f"must be at least {least}, because the run failed at step {failed.step}"
        )
    seed = run.details.config.get("seed")
    is_seed = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < LARGEST_INT32
    rerun = _queued(
        session,
        run,
        trainable,
        body,
        kind="locate",
        is_automatic=False,
        candidates=[[]],
        seeds=[seed if is_seed else 0],
        steps=steps,
        seconds=seconds,
        max_trials=min(trials, locating.MAX_TRIALS),
    )
    plan = StoredPlan(
        first_round=locating.CANDIDATES - 1,
        max_rounds=1,
        max_steps=steps,
        step_seconds=run.duration / run.last_step if run.duration and run.last_step else None,
        failed_step=failed.step,
        locate_from=failed.start,
    )
    store_plan(rerun, plan)
    return rerun


def _queued(
    session: Session, run: models.Run, trainable: models.Trainable, body: RerunCreate, **values: Any
) -> models.Rerun:
    """Return a rerun that has not begun. `values` are the fields in which the kinds of reruns differ."""
    return models.Rerun(
        id=body.id or new_id(),
        run_id=run.id,
        project=run.project,
        trainable=trainable.name,
        owner=trainable.owner,
        executor=body.executor,
        status="queued",
        reason=None,
        parameters=parameters_of_control(run.details.config, parameters_of(trainable)),
        outcomes=None,
        created_at=database_time(session),
        started_at=None,
        ended_at=None,
        **values,
    )


def _check_locating(body: RerunCreate) -> None:
    """Raise InvalidRequest for each field that only a race of remedies has."""
    given = {"remedies": body.remedies, "seeds": body.seeds, "budget.rounds": body.budget.rounds}
    message = "must be left out for the kind `locate`, which tries no remedies"
    errors = [FieldError(path=path, message=message) for path, value in given.items() if value is not None]
    if errors:
        raise InvalidRequest(errors)


def _candidates(
    session: Session,
    facts: FactsCache,
    run: models.Run,
    body: RerunCreate,
    parameters: list[TrainableParameter],
) -> list[list[Remedy]]:
    """Return the candidates that a request names, or those of the run's advice."""
    if body.remedies is None:
        diagnosis = telemetry.diagnose(session.connection(), OPERATOR, facts, run.id)
        advice = [(entry.remedy.id, entry.remedy.parameters) for entry in diagnosis.advice]
        if not advice and diagnosis.level not in ("attention", "critical"):
            raise NotRerunnable(
                f"The run is {run.verdict} (level {diagnosis.level}) and has no advice to race: name remedies."
            )
        candidates = candidates_of_advice(advice, parameters)
        if not candidates:
            raise NotRerunnable(f"The run is {run.verdict}, and nothing can be tried automatically: name remedies.")
    else:
        check_candidates(body.remedies, parameters)
        candidates = body.remedies
    if len(candidates) > MAX_CANDIDATES:
        raise InvalidRequest.at("remedies", f"has {len(candidates)} candidates; at most {MAX_CANDIDATES} are allowed")
    return candidates


def _default_steps(
    run: models.Run, candidates: int, seeds: int, trials: int, seconds: float, step_seconds: float | None
) -> int:
    """Return the steps of each trial: as many as the suspect run has, where the budget of seconds allows so many.

    They are at least so many that the failure shows again.
    """
    failed_after = (run.since_step or 0) + 1
    least = max(MIN_DEFAULT_STEPS, math.ceil(STEPS_BEYOND_FAILURE * failed_after) + MIN_DEFAULT_STEPS // 2)
    if step_seconds is None:
        return least
    budget = ExperimentBudget(steps=least, trials=trials)
    first_round = ExperimentDesign(candidates=candidates, seeds=tuple(range(seeds)), budget=budget)
    affordable = FIRST_ROUND_SHARE * seconds / (step_seconds * len(expected_trials(first_round, [])))
    return max(least, min(_steps_of(run), math.floor(affordable)))


def _steps_of(run: models.Run) -> int:
    return 0 if run.last_step is None else run.last_step + 1


def _checked_budget(body: RerunCreate, limits: Limits, max_seconds: float) -> tuple[int, float, int]:
    """Return the number of seeds, the seconds and the number of trials. Raises InvalidRequest with all errors."""
    seeds = DEFAULT_SEEDS if body.seeds is None else body.seeds
    seconds = min(DEFAULT_SECONDS, max_seconds) if body.budget.seconds is None else body.budget.seconds
    trials = limits.max_rerun_trials if body.budget.trials is None else body.budget.trials
    steps = 1 if body.budget.steps is None else body.budget.steps
    rounds = 1 if body.budget.rounds is None else body.budget.rounds
    errors = []
    if body.kind not in RERUN_KINDS:
        errors.append(FieldError(path="kind", message=f"{body.kind!r} is not one of {', '.join(RERUN_KINDS)}"))
    if not 1 <= seeds <= MAX_SEEDS:
        errors.append(FieldError(path="seeds", message=f"must be from 1 to {MAX_SEEDS}"))
    if not 1 <= steps <= limits.max_rerun_steps:
        errors.append(FieldError(path="budget.steps", message=f"must be from 1 to {limits.max_rerun_steps}"))
    if not MIN_SECONDS <= seconds <= max_seconds:
        errors.append(FieldError(path="budget.seconds", message=f"must be from {MIN_SECONDS:g} to {max_seconds:g}"))
    if not 1 <= trials <= limits.max_rerun_trials:
        errors.append(FieldError(path="budget.trials", message=f"must be from 1 to {limits.max_rerun_trials}"))
    if not 1 <= rounds <= MAX_ROUNDS:
        errors.append(FieldError(path="budget.rounds", message=f"must be from 1 to {MAX_ROUNDS}"))
    if body.executor is not None and body.executor not in EXECUTORS:
        message = f"{body.executor!r} is not one of {', '.join(EXECUTORS)}"
        errors.append(FieldError(path="executor", message=message))
    if body.id is not None and body.id.version != 7:
        errors.append(FieldError(path="id", message=f"must be a UUID of version 7, not {body.id.version}"))
    if errors:
        raise InvalidRequest(errors)
    return seeds, seconds, trials
