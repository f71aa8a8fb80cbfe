"""Routes of runs."""

from __future__ import annotations

from typing import Annotated, Any, cast
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Path, Query, Response, status

from gradmedic.protocol.runs import STATUSES, RunCreate, RunDetail, RunList, RunUpdate
from gradmedic.protocol.service import API_PATH
from gradmedic.protocol.verdicts import VERDICTS
from gradmedic_service.access.authorization import MayAdminister, MayFollow, MayIngest, MayRead
from gradmedic_service.http.dependencies import DatabaseDependency, LimitsDependency, check_max_results, json_only
from gradmedic_service.http.errors import BodyTooLarge, InvalidRequest, MalformedBody, UnsupportedMediaType, documented
from gradmedic_service.projects.errors import ProjectFull
from gradmedic_service.runs import service
from gradmedic_service.runs.errors import RunExists, RunNotFound
from gradmedic_service.runs.repository import RunQuery, SortKey
from gradmedic_service.runs.schemas import check_create, check_filters, check_update

router = APIRouter(prefix="/runs", tags=["runs"])

RunId = Annotated[UUID, Path(description="Id of the run.", examples=["0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50"])]
BODY_ERRORS = (MalformedBody, BodyTooLarge, UnsupportedMediaType, InvalidRequest)

CREATE_EXAMPLES: dict[str, Any] = {
    "smallest": {
        "summary": "The least there is",
        "value": {"project": "char-lm", "layers": [{"name": "rnn.weight_hh_l0"}]},
    },
    "described": {
        "summary": "With what sharpens the diagnosis",
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
    "finish": {"summary": "The job is done", "value": {"status": "finished"}},
    "grow": {
        "summary": "More layers were found",
        "value": {"append_layers": [{"name": "adapter.weight", "kind": "Linear", "shape": [8, 256]}]},
    },
}


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    response_model=RunDetail,
    dependencies=[Depends(json_only)],
    responses={
        200: {"model": RunDetail, "description": "The same request created this run before"},
        **documented(RunExists, ProjectFull, *BODY_ERRORS),
    },
)
def create_run(
    principal: MayIngest,
    body: Annotated[RunCreate, Body(openapi_examples=CREATE_EXAMPLES)],
    database: DatabaseDependency,
    limits: LimitsDependency,
    response: Response,
) -> RunDetail:
    """Create a run. With an `id` of its own choice a client may send the request again without creating another."""
    check_create(body, limits)
    with database.writing() as session:
        run, is_new = service.create(session, principal, body, limits)
    response.status_code = status.HTTP_201_CREATED if is_new else status.HTTP_200_OK
    response.headers["Location"] = f"{API_PATH}/runs/{run.id}"
    return run


@router.get("", response_model=RunList, responses=documented(InvalidRequest))
def list_runs(
    principal: MayRead,
    database: DatabaseDependency,
    limits: LimitsDependency,
    project: str | None = None,
    verdict: Annotated[str | None, Query(description=f"One of {', '.join(VERDICTS)}.")] = None,
    status: Annotated[str | None, Query(description=f"One of {', '.join(STATUSES)}.")] = None,
    tag: str | None = None,
    parent_id: Annotated[
        UUID | None, Query(description="Runs of the trials of this run's reruns; without it, those are left out.")
    ] = None,
    q: Annotated[str | None, Query(description="Text anywhere in name, group or notes, in any case.")] = None,
    sort: Annotated[str, Query(description=f"One of {', '.join(service.SORTS)}.")] = service.DEFAULT_SORT,
    max_results: Annotated[int, Query(description="Items of a page, at most what `/limits` says.")] = 100,
    page_token: Annotated[str | None, Query(description="`next_page_token` of the page before.")] = None,
) -> RunList:
    """List the runs that the key reaches, newest first unless `sort` says otherwise."""
    check_filters(limits, project=project, verdict=verdict, status=status, tag=tag, q=q)
    if sort not in service.SORTS:
        raise InvalidRequest.at("sort", f"{sort!r} is not one of {', '.join(service.SORTS)}")
    check_max_results(max_results, limits)
    query = RunQuery(
        project=project,
        verdict=verdict,
        status=status,
        tag=tag,
        parent_id=parent_id,
        text=q,
        sort_key=cast("SortKey", sort.removeprefix("-")),
        is_descending=sort.startswith("-"),
    )
    with database.reading() as session:
        return service.list_page(session, principal, query, page_token, max_results)


@router.get("/{run_id}", response_model=RunDetail, responses=documented(RunNotFound, InvalidRequest))
def get_run(run_id: RunId, principal: MayFollow, database: DatabaseDependency) -> RunDetail:
    """Return a run with its layers and configuration."""
    with database.reading() as session:
        return service.get(session, principal, run_id)


@router.patch(
    "/{run_id}",
    response_model=RunDetail,
    dependencies=[Depends(json_only)],
    responses=documented(RunNotFound, *BODY_ERRORS),
)
def update_run(
    run_id: RunId,
    principal: MayIngest,
    body: Annotated[RunUpdate, Body(openapi_examples=UPDATE_EXAMPLES)],
    database: DatabaseDependency,
    limits: LimitsDependency,
) -> RunDetail:
    """Change a run's description or status, or add layers behind those it has."""
    check_update(body, limits)
    with database.writing() as session:
        return service.update(session, principal, run_id, body, limits)


@router.delete(
    "/{run_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    response_class=Response,
    responses=documented(RunNotFound, InvalidRequest),
)
def delete_run(run_id: RunId, principal: MayAdminister, database: DatabaseDependency) -> None:
    """Delete a run and everything of it: steps, diagnosis, history."""
    with database.writing() as session:
        service.remove(session, principal, run_id)
