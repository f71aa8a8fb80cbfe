"""Routes of runs."""

from __future__ import annotations

import sys
from typing import Annotated, Any
from uuid import UUID

from fastapi import Path, Response, status

from gradmedic.protocol.reviews import Review, ReviewWrite
from gradmedic.protocol.runs import RunCreate, RunDetail, RunUpdate
from gradmedic.protocol.service import API_PATH
from gradmedic_service.access.authorization import MayAdminister, MayFollow, MayIngest
from gradmedic_service.http.dependencies import DatabaseDependency, LimitsDependency
from gradmedic_service.http.errors import BODY_ERRORS, InvalidRequest, documented
from gradmedic_service.http.json_bodies import json_body
from gradmedic_service.http.routers import api_router
from gradmedic_service.projects.errors import ProjectFull
from gradmedic_service.runs import reviewing, service
from gradmedic_service.runs.errors import RunExists, RunNotFound
from gradmedic_service.runs.validation import (
    check_create,
    check_review,
    check_update,
    layer_count_error,
    max_values,
)

router = api_router(prefix="/runs", tags=["runs"])

RunId = Annotated[UUID, Path(description="Id of the run.", examples=["0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50"])]

CREATE_EXAMPLES: dict[str, Any] = {
    "smallest": {
        "summary": "The smallest run",
        "value": {"project": "char-lm", "layers": [{"name": "rnn.weight_hh_l0"}]},
    },
    "described": {
        "summary": "A run with all that the diagnosis uses",
        "value": {
            "project": "char-lm",
            "name": "lr 3e-3",
            "config": {"lr": 0.003, "hidden": 256},
            "tags": ["baseline"],
            "framework": "torch 2.13.0",
            "statistics": ["grad_norm", "weight_norm", "update_norm"],
            "layers": [
                {
                    "name": "rnn.weight_hh_l0",
                    "kind": "RNN",
                    "shape": [256, 256],
                    "role": "recurrent",
                    "fan_in": 256,
                    "fan_out": 256,
                    "activation": "tanh",
                    "initial_rms": 0.036,
                    "spectral_norm": 1.15,
                },
                {"name": "head.weight", "kind": "Linear", "shape": [96, 256], "activation": "linear"},
            ],
            "training": {"optimizers": [{"name": "SGD", "learning_rate": 0.003}], "precision": "float32"},
        },
    },
}
UPDATE_EXAMPLES: dict[str, Any] = {
    "finish": {"summary": "The job has finished", "value": {"status": "finished"}},
    "grow": {
        "summary": "The model has more layers",
        "value": {"append_layers": [{"name": "adapter.weight", "kind": "Linear", "shape": [8, 256]}]},
    },
}
REVIEW_EXAMPLES: dict[str, Any] = {
    "right": {"summary": "The verdict is right", "value": {"answer": "right"}},
    "wrong": {
        "summary": "The verdict is wrong",
        "value": {
            "answer": "wrong",
            "verdict": "healthy",
            "level": "ok",
            "note": "The reward rises: the policy learns.",
            "step": 412,
        },
    },
}
CREATE_BODY = json_body(
    RunCreate,
    CREATE_EXAMPLES,
    max_bytes=sys.maxsize,
    max_values=max_values,
    counts={"layers": layer_count_error},
    check=check_create,
)
UPDATE_BODY = json_body(
    RunUpdate,
    UPDATE_EXAMPLES,
    max_bytes=sys.maxsize,
    max_values=max_values,
    counts={"append_layers": layer_count_error},
    check=check_update,
)
REVIEW_BODY = json_body(ReviewWrite, REVIEW_EXAMPLES, check=check_review)


@router.post(
    "",
    operation_id="runs.create",
    status_code=status.HTTP_201_CREATED,
    response_model=RunDetail,
    responses={
        200: {"model": RunDetail, "description": "The run exists: the same request created it before."},
        **documented(RunExists, ProjectFull, *BODY_ERRORS),
    },
)
def create_run(
    principal: MayIngest,
    body: Annotated[RunCreate, CREATE_BODY],
    database: DatabaseDependency,
    limits: LimitsDependency,
    response: Response,
) -> RunDetail:
    """Create a run. A client that sends an `id` may repeat the request without creating another run."""
    with database.writing() as session:
        run, is_new = service.create(session, principal, body, limits)
    response.status_code = status.HTTP_201_CREATED if is_new else status.HTTP_200_OK
    response.headers["Location"] = f"{API_PATH}/runs/{run.id}"
    return run


@router.get(
    "/{run_id}", operation_id="runs.get", response_model=RunDetail, responses=documented(RunNotFound, InvalidRequest)
)
def get_run(run_id: RunId, principal: MayFollow, database: DatabaseDependency) -> RunDetail:
    """Return a run with its layers and its configuration."""
    with database.reading() as session:
        return service.get(session, principal, run_id)


@router.patch(
    "/{run_id}",
    operation_id="runs.update",
    response_model=RunDetail,
    responses=documented(RunNotFound, *BODY_ERRORS),
)
def update_run(
    run_id: RunId,
    principal: MayIngest,
    body: Annotated[RunUpdate, UPDATE_BODY],
    database: DatabaseDependency,
    limits: LimitsDependency,
) -> RunDetail:
    """Change the description or the status of a run, or add layers after those that it has."""
    with database.writing() as session:
        return service.update(session, principal, run_id, body, limits)


@router.delete(
    "/{run_id}",
    operation_id="runs.delete",
    status_code=status.HTTP_204_NO_CONTENT,
    response_class=Response,
    responses=documented(RunNotFound, InvalidRequest),
)
def delete_run(run_id: RunId, principal: MayAdminister, database: DatabaseDependency) -> None:
    """Delete a run with its steps, its diagnosis and its history."""
    with database.writing() as session:
        service.remove(session, principal, run_id)


@router.put(
    "/{run_id}/review",
    operation_id="runs.review",
    response_model=Review,
    responses=documented(RunNotFound, *BODY_ERRORS),
)
def review_run(
    run_id: RunId,
    principal: MayIngest,
    body: Annotated[ReviewWrite, REVIEW_BODY],
    database: DatabaseDependency,
) -> Review:
    """Confirm or reject the verdict on a run, in place of an earlier review.

    `GET /runs/{id}` answers the review with the run. The key of a trial may not review its run.
    """
    with database.writing() as session:
        return reviewing.review(session, principal, run_id, body)


@router.delete(
    "/{run_id}/review",
    operation_id="runs.take_back_review",
    status_code=status.HTTP_204_NO_CONTENT,
    response_class=Response,
    responses=documented(RunNotFound, InvalidRequest),
)
def take_back_review(run_id: RunId, principal: MayIngest, database: DatabaseDependency) -> None:
    """Take back the review of a run. Nothing changes if there is none."""
    with database.writing() as session:
        reviewing.take_back(session, principal, run_id)
