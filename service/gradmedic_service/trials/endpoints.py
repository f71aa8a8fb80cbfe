"""Routes of trials: the workers' side of a rerun, and what a trial has printed."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import Path, Query, Response, status

from gradmedic.protocol.reruns import RerunDetail
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
from gradmedic_service.access.authorization import MayFollowRerun, MayIngest, MayRedeem, MayWork
from gradmedic_service.http.dependencies import DatabaseDependency, LimitsDependency, TrialLeaseDependency
from gradmedic_service.http.errors import BODY_ERRORS, InvalidRequest, documented
from gradmedic_service.http.json_bodies import json_body
from gradmedic_service.http.routers import api_router
from gradmedic_service.trials import claims, service, tickets
from gradmedic_service.trials.errors import StaleAttempt, TrialNotFound

router = api_router(prefix="/trials")

TrialId = Annotated[UUID, Path(description="Id of the trial.", examples=["0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f52"])]

CLAIM_EXAMPLES: dict[str, Any] = {
    "claim": {"summary": "Any trial of one trainable", "value": {"worker": "gpu-7", "trainables": ["train"]}}
}
HEARTBEAT_EXAMPLES: dict[str, Any] = {
    "alive": {"summary": "The process is running", "value": {"attempt": 1, "output": "step 100: 2.31\n"}}
}
TICKET_EXAMPLES: dict[str, Any] = {
    "ticket": {
        "summary": "A ticket for ten minutes",
        "value": {"attempt": 1, "ticket": "gradmedic_" + 43 * "A", "seconds": 600},
    }
}
REDEEM_EXAMPLES: dict[str, Any] = {"redeem": {"summary": "The attempt of the ticket", "value": {"attempt": 1}}}
RESULT_EXAMPLES: dict[str, Any] = {
    "done": {"summary": "The script ran to its end", "value": {"attempt": 1, "status": "done", "exit_code": 0}},
    "judged": {
        "summary": "The operator has named a metric, and the SDK has evaluated the model",
        "value": {
            "attempt": 1,
            "status": "done",
            "exit_code": 0,
            "judge_by": "maximize val_accuracy",
            "evaluation": {"batches": 4, "training_loss": 0.31, "loss": 0.29},
        },
    },
    "failed": {
        "summary": "The script crashed",
        "value": {"attempt": 1, "status": "failed", "exit_code": 1, "reason": "exit code 1", "output": "KeyError"},
    },
}


@router.get(
    "/{trial_id}/output",
    operation_id="trials.output",
    tags=["reruns"],
    response_model=TrialOutput,
    responses=documented(TrialNotFound, InvalidRequest),
)
def read_output(
    trial_id: TrialId,
    principal: MayFollowRerun,
    database: DatabaseDependency,
    attempt: Annotated[
        int | None,
        Query(description="Number of the attempt. Without it, the latest attempt is read.", ge=1, le=2**31 - 1),
    ] = None,
) -> TrialOutput:
    """Return the end of what an attempt at a trial has printed."""
    with database.reading() as session:
        return service.read_output(session, principal, trial_id, attempt)


@router.post(
    "/claim",
    operation_id="trials.claim",
    tags=["workers"],
    response_model=ClaimedTrial,
    responses={204: {"description": "No trial for this worker is waiting"}, **documented(*BODY_ERRORS)},
)
def claim_trial(
    principal: MayWork,
    body: Annotated[TrialClaim, json_body(TrialClaim, CLAIM_EXAMPLES)],
    database: DatabaseDependency,
    limits: LimitsDependency,
    lease: TrialLeaseDependency,
) -> Any:
    """Claim a trial to run. Without a heartbeat for as long as the lease, the trial goes to another worker."""
    with database.writing() as session:
        claimed = claims.claim(session, principal, body, limits, lease)
    return Response(status_code=status.HTTP_204_NO_CONTENT) if claimed is None else claimed


@router.post(
    "/{trial_id}/heartbeat",
    operation_id="trials.heartbeat",
    tags=["workers"],
    response_model=HeartbeatResult,
    responses=documented(TrialNotFound, StaleAttempt, *BODY_ERRORS),
)
def renew_lease(
    trial_id: TrialId,
    principal: MayWork,
    body: Annotated[TrialHeartbeat, json_body(TrialHeartbeat, HEARTBEAT_EXAMPLES)],
    database: DatabaseDependency,
    lease: TrialLeaseDependency,
) -> HeartbeatResult:
    """Renew the lease of an attempt. The answer's field `stop` is true if the worker must stop the attempt."""
    with database.writing() as session:
        return service.renew_lease(session, principal, trial_id, body, lease)


@router.post(
    "/{trial_id}/ticket",
    operation_id="trials.issue_ticket",
    tags=["workers"],
    response_model=TrialLease,
    responses=documented(TrialNotFound, StaleAttempt, *BODY_ERRORS),
)
def issue_ticket(
    trial_id: TrialId,
    principal: MayWork,
    body: Annotated[TrialTicket, json_body(TrialTicket, TICKET_EXAMPLES)],
    database: DatabaseDependency,
) -> TrialLease:
    """Store a one-time ticket for a waiting attempt. Its process exchanges the ticket for the key of its run."""
    with database.writing() as session:
        return tickets.issue_ticket(session, principal, trial_id, body)


@router.post(
    "/{trial_id}/redeem",
    operation_id="trials.redeem_ticket",
    tags=["workers"],
    response_model=ClaimedTrial,
    responses=documented(TrialNotFound, StaleAttempt, *BODY_ERRORS),
)
def redeem_ticket(
    trial_id: TrialId,
    principal: MayRedeem,
    body: Annotated[TrialRedemption, json_body(TrialRedemption, REDEEM_EXAMPLES)],
    database: DatabaseDependency,
    lease: TrialLeaseDependency,
) -> ClaimedTrial:
    """Exchange a ticket, sent as the API key, for what its attempt needs. The ticket is void afterwards."""
    with database.writing() as session:
        return tickets.redeem_ticket(session, principal, trial_id, body, lease)


@router.get(
    "/{trial_id}/lease",
    operation_id="trials.lease",
    tags=["workers"],
    response_model=TrialLease,
    responses=documented(TrialNotFound, StaleAttempt, InvalidRequest),
)
def read_lease(
    trial_id: TrialId,
    principal: MayIngest,
    database: DatabaseDependency,
    attempt: Annotated[int, Query(description="Number of the attempt.", ge=1, le=2**31 - 1)],
) -> TrialLease:
    """Return the lease of a running attempt. The attempt's own process reads it, with the attempt's key."""
    with database.reading() as session:
        return tickets.read_lease(session, principal, trial_id, attempt)


@router.post(
    "/{trial_id}/result",
    operation_id="trials.publish_result",
    tags=["workers"],
    response_model=RerunDetail,
    responses=documented(TrialNotFound, StaleAttempt, *BODY_ERRORS),
)
def publish_result(
    trial_id: TrialId,
    principal: MayWork,
    body: Annotated[TrialResult, json_body(TrialResult, RESULT_EXAMPLES)],
    database: DatabaseDependency,
) -> RerunDetail:
    """Publish the result of an attempt. It counts once, and the rerun goes on with its next trials."""
    with database.writing() as session:
        return service.publish_result(session, principal, trial_id, body)
