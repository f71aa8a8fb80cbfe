"""Routes of reruns, and the workers' side of them."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Path, Query, Response, status

from gradmedic.protocol.reruns import RERUN_STATUSES, RerunCreate, RerunDetail, RerunList
from gradmedic.protocol.service import API_PATH
from gradmedic.protocol.trainables import Trainables, TrainablesOffer
from gradmedic.protocol.trials import (
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
from gradmedic_service.access.authorization import MayFollowRerun, MayIngest, MayRedeem, MayRerun, MayWork
from gradmedic_service.http.dependencies import (
    DatabaseDependency,
    FactsDependency,
    LimitsDependency,
    TrialLeaseDependency,
    WorkerPatienceDependency,
    check_max_results,
    json_only,
)
from gradmedic_service.http.errors import BodyTooLarge, InvalidRequest, MalformedBody, UnsupportedMediaType, documented
from gradmedic_service.reruns import service
from gradmedic_service.reruns.errors import NotRerunnable, RerunExists, RerunNotFound
from gradmedic_service.reruns.repository import RerunQuery
from gradmedic_service.runs.errors import RunNotFound
from gradmedic_service.trainables.errors import TrainableTaken, TrainableUnknown
from gradmedic_service.trials.errors import StaleAttempt, TrialNotFound

router = APIRouter(tags=["reruns"])
workers_router = APIRouter(tags=["workers"])

RunId = Annotated[UUID, Path(description="Id of the run.", examples=["0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50"])]
RerunId = Annotated[UUID, Path(description="Id of the rerun.", examples=["0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f51"])]
TrialId = Annotated[UUID, Path(description="Id of the trial.", examples=["0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f52"])]
BODY_ERRORS = (MalformedBody, BodyTooLarge, UnsupportedMediaType, InvalidRequest)

CREATE_EXAMPLES: dict[str, Any] = {
    "advice": {"summary": "Race the run's advice", "value": {}},
    "remedies": {
        "summary": "Race these, on one seed",
        "value": {
            "remedies": [
                [{"id": "clip_grad_norm", "parameters": {"max_norm": 1.0}}],
                [
                    {"id": "scale_learning_rate", "parameters": {"factor": 0.1}},
                    {"id": "warm_up", "parameters": {"steps": 100}},
                ],
            ],
            "seeds": 1,
            "budget": {"steps": 500, "seconds": 600, "trials": 10},
        },
    },
}
TRAINABLES_EXAMPLES: dict[str, Any] = {
    "one": {
        "summary": "A script whose learning rate may be set",
        "value": {
            "items": [
                {
                    "name": "train",
                    "parameters": [{"name": "lr", "type": "float", "minimum": 1e-6, "maximum": 10.0}],
                    "gpus": 1,
                    "timeout": 3600,
                }
            ],
            "worker": "gpu-7",
        },
    }
}
CLAIM_EXAMPLES: dict[str, Any] = {
    "claim": {"summary": "Anything of one trainable", "value": {"worker": "gpu-7", "trainables": ["train"]}}
}
HEARTBEAT_EXAMPLES: dict[str, Any] = {
    "alive": {"summary": "Still at it", "value": {"attempt": 1, "output": "step 100: 2.31\n"}}
}
TICKET_EXAMPLES: dict[str, Any] = {
    "ticket": {"summary": "For ten minutes", "value": {"attempt": 1, "ticket": "gradmedic_" + 43 * "A", "seconds": 600}}
}
REDEEM_EXAMPLES: dict[str, Any] = {"redeem": {"summary": "What the ticket is for", "value": {"attempt": 1}}}
RESULT_EXAMPLES: dict[str, Any] = {
    "done": {"summary": "It ran to its end", "value": {"attempt": 1, "status": "done", "exit_code": 0}},
    "failed": {
        "summary": "It crashed",
        "value": {"attempt": 1, "status": "failed", "exit_code": 1, "reason": "exit code 1", "output": "KeyError"},
    },
}


@router.post(
    "/runs/{run_id}/reruns",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=RerunDetail,
    dependencies=[Depends(json_only)],
    responses={
        200: {"model": RerunDetail, "description": "The same request made this rerun before"},
        **documented(RunNotFound, RerunExists, NotRerunnable, TrainableUnknown, *BODY_ERRORS),
    },
)
def create_rerun(
    run_id: RunId,
    principal: MayRerun,
    body: Annotated[RerunCreate, Body(openapi_examples=CREATE_EXAMPLES)],
    database: DatabaseDependency,
    facts: FactsDependency,
    limits: LimitsDependency,
    response: Response,
) -> RerunDetail:
    """Race remedies on a run's trainable; without any named, the run's advice. A 202 means that this is durable."""
    with database.writing() as session:
        rerun, is_new = service.create(session, principal, facts, limits, run_id, body)
    response.status_code = status.HTTP_202_ACCEPTED if is_new else status.HTTP_200_OK
    response.headers["Location"] = f"{API_PATH}/reruns/{rerun.id}"
    return rerun


@router.get("/reruns", response_model=RerunList, responses=documented(InvalidRequest))
def list_reruns(
    principal: MayFollowRerun,
    database: DatabaseDependency,
    limits: LimitsDependency,
    project: str | None = None,
    run_id: UUID | None = None,
    status: Annotated[str | None, Query(description=f"One of {', '.join(RERUN_STATUSES)}.")] = None,
    max_results: Annotated[int, Query(description="Items of a page, at most what `/limits` says.")] = 100,
    page_token: Annotated[str | None, Query(description="`next_page_token` of the page before.")] = None,
) -> RerunList:
    """List reruns, newest first."""
    check_max_results(max_results, limits)
    if status is not None and status not in RERUN_STATUSES:
        raise InvalidRequest.at("status", f"{status!r} is not one of {', '.join(RERUN_STATUSES)}")
    query = RerunQuery(project=project, run_id=run_id, status=status)
    with database.reading() as session:
        return service.list_page(session, principal, query, page_token, max_results)


@router.get("/reruns/{rerun_id}", response_model=RerunDetail, responses=documented(RerunNotFound, InvalidRequest))
def get_rerun(
    rerun_id: RerunId, principal: MayFollowRerun, database: DatabaseDependency, patience: WorkerPatienceDependency
) -> RerunDetail:
    """Return a rerun with its candidates, its trials and every attempt at them."""
    with database.reading() as session:
        rerun = service.get(session, principal, rerun_id)
        has_no_worker = service.has_no_worker(session, rerun_id, patience)
    if not has_no_worker:
        return rerun
    with database.writing() as session:  # there may be no worker whose claims would show it
        service.give_up(session, patience)
    with database.reading() as session:
        return service.get(session, principal, rerun_id)


@router.post(
    "/reruns/{rerun_id}/cancel",
    response_model=RerunDetail,
    responses=documented(RerunNotFound, InvalidRequest),
)
def cancel_rerun(rerun_id: RerunId, principal: MayRerun, database: DatabaseDependency) -> RerunDetail:
    """End a rerun and everything that runs for it; its workers know within seconds."""
    with database.writing() as session:
        return service.cancel(session, principal, rerun_id)


@router.get(
    "/trials/{trial_id}/output", response_model=TrialOutput, responses=documented(TrialNotFound, InvalidRequest)
)
def read_output(
    trial_id: TrialId,
    principal: MayFollowRerun,
    database: DatabaseDependency,
    attempt: Annotated[int | None, Query(description="The latest, unless given.", ge=1, le=2**31 - 1)] = None,
) -> TrialOutput:
    """Return the end of what an attempt at a trial has printed."""
    with database.reading() as session:
        return service.output(session, principal, trial_id, attempt)


@workers_router.post(
    "/trials/claim",
    response_model=ClaimedTrial,
    dependencies=[Depends(json_only)],
    responses={204: {"description": "Nothing waits for this worker now"}, **documented(*BODY_ERRORS)},
)
def claim_trial(
    principal: MayWork,
    body: Annotated[TrialClaim, Body(openapi_examples=CLAIM_EXAMPLES)],
    database: DatabaseDependency,
    limits: LimitsDependency,
    lease: TrialLeaseDependency,
    patience: WorkerPatienceDependency,
) -> Any:
    """Take a trial to run. Without a heartbeat for as long as the lease, another attempt is made elsewhere."""
    with database.writing() as session:
        has_changed = service.give_up(session, patience)
        claimed = None if has_changed else service.claim(session, principal, body, limits, lease)
    if has_changed:
        with database.writing() as session:
            claimed = service.claim(session, principal, body, limits, lease)
    return Response(status_code=status.HTTP_204_NO_CONTENT) if claimed is None else claimed


@workers_router.post(
    "/trials/{trial_id}/heartbeat",
    response_model=HeartbeatResult,
    dependencies=[Depends(json_only)],
    responses=documented(TrialNotFound, StaleAttempt, *BODY_ERRORS),
)
def renew_lease(
    trial_id: TrialId,
    principal: MayWork,
    body: Annotated[TrialHeartbeat, Body(openapi_examples=HEARTBEAT_EXAMPLES)],
    database: DatabaseDependency,
    lease: TrialLeaseDependency,
) -> HeartbeatResult:
    """Renew the lease of an attempt, and ask whether it is worth going on."""
    with database.writing() as session:
        return service.heartbeat(session, principal, trial_id, body, lease)


@workers_router.post(
    "/trials/{trial_id}/ticket",
    response_model=TrialLease,
    dependencies=[Depends(json_only)],
    responses=documented(TrialNotFound, StaleAttempt, *BODY_ERRORS),
)
def issue_ticket(
    trial_id: TrialId,
    principal: MayWork,
    body: Annotated[TrialTicket, Body(openapi_examples=TICKET_EXAMPLES)],
    database: DatabaseDependency,
) -> TrialLease:
    """Let whoever presents a ticket first, within seconds, have what a waiting attempt needs: its key for one run."""
    with database.writing() as session:
        return service.issue_ticket(session, principal, trial_id, body)


@workers_router.post(
    "/trials/{trial_id}/redeem",
    response_model=ClaimedTrial,
    dependencies=[Depends(json_only)],
    responses=documented(TrialNotFound, StaleAttempt, *BODY_ERRORS),
)
def redeem_ticket(
    trial_id: TrialId,
    principal: MayRedeem,
    body: Annotated[TrialRedemption, Body(openapi_examples=REDEEM_EXAMPLES)],
    database: DatabaseDependency,
    lease: TrialLeaseDependency,
) -> ClaimedTrial:
    """Exchange a ticket, sent as the API key, for what its attempt needs. It is worth nothing afterwards."""
    with database.writing() as session:
        return service.redeem(session, principal, trial_id, body, lease)


@workers_router.get(
    "/trials/{trial_id}/lease",
    response_model=TrialLease,
    responses=documented(TrialNotFound, StaleAttempt, InvalidRequest),
)
def read_lease(
    trial_id: TrialId,
    principal: MayIngest,
    database: DatabaseDependency,
    attempt: Annotated[int, Query(description="Of the process that asks.", ge=1, le=2**31 - 1)],
) -> TrialLease:
    """Say to the process of an attempt, which bears the attempt's key, whether anybody still waits for it."""
    with database.reading() as session:
        return service.lease_of(session, principal, trial_id, attempt)


@workers_router.post(
    "/trials/{trial_id}/result",
    response_model=RerunDetail,
    dependencies=[Depends(json_only)],
    responses=documented(TrialNotFound, StaleAttempt, *BODY_ERRORS),
)
def publish_result(
    trial_id: TrialId,
    principal: MayWork,
    body: Annotated[TrialResult, Body(openapi_examples=RESULT_EXAMPLES)],
    database: DatabaseDependency,
) -> RerunDetail:
    """Publish how an attempt ended, once; the rerun goes on from there."""
    with database.writing() as session:
        return service.finish(session, principal, trial_id, body)


@workers_router.get("/trainables", response_model=Trainables)
def list_trainables(principal: MayFollowRerun, database: DatabaseDependency) -> Trainables:
    """List what may be rerun."""
    with database.reading() as session:
        return service.list_trainables(session, principal)


@workers_router.put(
    "/trainables",
    response_model=Trainables,
    dependencies=[Depends(json_only)],
    responses=documented(TrainableTaken, *BODY_ERRORS),
)
def register_trainables(
    principal: MayWork,
    body: Annotated[TrainablesOffer, Body(openapi_examples=TRAINABLES_EXAMPLES)],
    database: DatabaseDependency,
    limits: LimitsDependency,
) -> Trainables:
    """Say what may be rerun, and with which parameters. A name belongs to the key that registered it.

    A worker says so again every ten seconds. What it offered before and, for a minute, nobody has offered since is
    withdrawn: reruns of it end, and say why.
    """
    with database.writing() as session:
        return service.register(session, principal, body, limits)
