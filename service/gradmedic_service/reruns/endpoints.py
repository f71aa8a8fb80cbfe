"""Routes of reruns."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import Path, Query, Response, status

from gradmedic.protocol.reruns import RERUN_STATUSES, RerunCreate, RerunDetail, RerunList, RerunPlan
from gradmedic.protocol.service import API_PATH
from gradmedic_service.access.authorization import MayFollowRerun, MayRerun
from gradmedic_service.http.dependencies import (
    DatabaseDependency,
    FactsDependency,
    LimitsDependency,
    MaxResults,
    PageToken,
    check_max_results,
)
from gradmedic_service.http.errors import BodyTooLarge, InvalidRequest, MalformedBody, UnsupportedMediaType, documented
from gradmedic_service.http.json_bodies import json_body
from gradmedic_service.http.routers import api_router
from gradmedic_service.reruns import service
from gradmedic_service.reruns.errors import NotRerunnable, RerunExists, RerunNotFound
from gradmedic_service.reruns.repository import RerunQuery
from gradmedic_service.runs.errors import RunNotFound
from gradmedic_service.trainables.errors import TrainableUnknown

router = api_router(tags=["reruns"])

RunId = Annotated[UUID, Path(description="Id of the run.", examples=["0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50"])]
RerunId = Annotated[UUID, Path(description="Id of the rerun.", examples=["0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f51"])]

CREATE_EXAMPLES: dict[str, Any] = {
    "advice": {"summary": "Race the run's advice", "value": {}},
    "remedies": {
        "summary": "Race named remedies on one seed",
        "value": {
            "remedies": [
                [{"id": "clip_grad_norm", "parameters": {"max_norm": 1.0}}],
                [
                    {"id": "scale_learning_rate", "parameters": {"factor": 0.1}},
                    {"id": "warm_up", "parameters": {"steps": 100}},
                ],
            ],
            "seeds": 1,
            "budget": {"steps": 500, "seconds": 600, "trials": 10, "rounds": 1},
        },
    },
    "locate": {"summary": "Find the operation that made the first NaN", "value": {"kind": "locate"}},
}


@router.post(
    "/runs/{run_id}/reruns",
    operation_id="reruns.create",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=RerunDetail,
    responses={
        200: {"model": RerunDetail, "description": "The rerun that an earlier request with the same id has made"},
        **documented(
            RunNotFound,
            RerunExists,
            NotRerunnable,
            TrainableUnknown,
            MalformedBody,
            BodyTooLarge,
            UnsupportedMediaType,
            InvalidRequest,
        ),
    },
)
def create_rerun(
    run_id: RunId,
    principal: MayRerun,
    body: Annotated[RerunCreate, json_body(RerunCreate, CREATE_EXAMPLES)],
    database: DatabaseDependency,
    facts: FactsDependency,
    limits: LimitsDependency,
    response: Response,
) -> RerunDetail:
    """Race remedies on a run's trainable. Without named remedies, the run's advice is raced.

    With the kind `locate`, the unchanged script runs to the step at which the run was not finite, and each operation is
    checked there. The origin is published on the run's diagnosis.

    The answer 202 means that the rerun is stored and survives any crash.
    """
    with database.writing() as session:
        rerun, is_new = service.create(session, principal, facts, limits, run_id, body)
    response.status_code = status.HTTP_202_ACCEPTED if is_new else status.HTTP_200_OK
    response.headers["Location"] = f"{API_PATH}/reruns/{rerun.id}"
    return rerun


@router.post(
    "/runs/{run_id}/reruns/plan",
    operation_id="reruns.plan",
    response_model=RerunPlan,
    responses=documented(
        RunNotFound,
        NotRerunnable,
        TrainableUnknown,
        MalformedBody,
        BodyTooLarge,
        UnsupportedMediaType,
        InvalidRequest,
    ),
)
def plan_rerun(
    run_id: RunId,
    principal: MayRerun,
    body: Annotated[RerunCreate, json_body(RerunCreate, CREATE_EXAMPLES)],
    database: DatabaseDependency,
    facts: FactsDependency,
    limits: LimitsDependency,
) -> RerunPlan:
    """Return the expected trials, steps and seconds of a rerun that the same body creates. Nothing is stored."""
    with database.reading() as session:
        return service.plan(session, principal, facts, limits, run_id, body)


@router.get("/reruns", operation_id="reruns.list", response_model=RerunList, responses=documented(InvalidRequest))
def list_reruns(
    principal: MayFollowRerun,
    database: DatabaseDependency,
    limits: LimitsDependency,
    project: Annotated[str | None, Query(description="Name of the project whose reruns are listed.")] = None,
    run_id: Annotated[UUID | None, Query(description="Id of the suspect run whose reruns are listed.")] = None,
    status: Annotated[
        str | None, Query(description=f"Status of the reruns: one of {', '.join(RERUN_STATUSES)}.")
    ] = None,
    max_results: MaxResults = 100,
    page_token: PageToken = None,
) -> RerunList:
    """List reruns, newest first."""
    check_max_results(max_results, limits)
    if status is not None and status not in RERUN_STATUSES:
        raise InvalidRequest.at("status", f"{status!r} is not one of {', '.join(RERUN_STATUSES)}")
    query = RerunQuery(project=project, run_id=run_id, status=status)
    with database.reading() as session:
        return service.list_page(session, principal, query, page_token, max_results)


@router.get(
    "/reruns/{rerun_id}",
    operation_id="reruns.get",
    response_model=RerunDetail,
    responses=documented(RerunNotFound, InvalidRequest),
)
def get_rerun(rerun_id: RerunId, principal: MayFollowRerun, database: DatabaseDependency) -> RerunDetail:
    """Return a rerun with its candidates, its trials and all attempts at them."""
    with database.reading() as session:
        return service.get(session, principal, rerun_id)


@router.post(
    "/reruns/{rerun_id}/cancel",
    operation_id="reruns.cancel",
    response_model=RerunDetail,
    responses=documented(RerunNotFound, InvalidRequest),
)
def cancel_rerun(rerun_id: RerunId, principal: MayRerun, database: DatabaseDependency) -> RerunDetail:
    """End a rerun and its running trials. Their workers stop them within seconds."""
    with database.writing() as session:
        return service.cancel(session, principal, rerun_id)
