"""Routes of a run's steps and its diagnosis."""

from __future__ import annotations

import gzip
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from gradmedic.protocol.diagnosis import Diagnosis, VerdictHistory
from gradmedic.protocol.series import SeriesResult
from gradmedic.protocol.service import JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE, FieldError
from gradmedic.protocol.steps import AppendResult, RewindResult, RunRewind
from gradmedic_service.access.authorization import MayFollow, MayIngest, MayRead
from gradmedic_service.http.dependencies import (
    DatabaseDependency,
    FactsDependency,
    LimitsDependency,
    MetricsDependency,
    RunCacheDependency,
    json_only,
    media_type,
)
from gradmedic_service.http.errors import BodyTooLarge, InvalidRequest, MalformedBody, UnsupportedMediaType, documented
from gradmedic_service.reruns import service as reruns
from gradmedic_service.runs.errors import RunNotFound
from gradmedic_service.telemetry import export, service
from gradmedic_service.telemetry.decoding import LARGEST_GENERATION, LARGEST_STEP, STEPS_APPEND, decode_block
from gradmedic_service.telemetry.errors import NotAcceptable, StaleGeneration, UnknownGeneration
from gradmedic_service.telemetry.series_table import NUMBERS

DEFAULT_POINTS = 500
"""About a pixel column each in a picture."""
GZIP_LEVEL = 1
"""Counts are nearly always alike and shrink to nothing at any level, mantissas hardly at any."""
VARY = {"Vary": "Accept, Accept-Encoding"}

router = APIRouter(prefix="/runs/{run_id}")

RunId = Annotated[UUID, Path(description="Id of the run.", examples=["0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50"])]

APPEND_EXAMPLE = {
    "steps": [0, 1],
    "loss": [2.31, 2.29],
    "learning_rate": [0.003, 0.003],
    "statistics": {"grad_norm": [[0.51, 0.07], [0.49, None]], "weight_norm": [[9.2, 4.1], [9.2, None]]},
}
APPEND_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON_MEDIA_TYPE: {"schema": STEPS_APPEND.json_schema(), "example": APPEND_EXAMPLE},
            MSGPACK_MEDIA_TYPE: {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "A map of the same fields; each of `statistics` is little-endian float32 bytes.",
                }
            },
        },
    }
}


REWIND_EXAMPLES: dict[str, Any] = {
    "checkpoint": {"summary": "Resumed from the checkpoint of step 4000", "value": {"step": 4000, "generation": 0}}
}


async def _body(request: Request) -> bytes:
    return await request.body()


@router.post(
    "/steps",
    tags=["steps"],
    response_model=AppendResult,
    openapi_extra=APPEND_BODY,
    responses=documented(
        RunNotFound,
        StaleGeneration,
        UnknownGeneration,
        MalformedBody,
        BodyTooLarge,
        UnsupportedMediaType,
        InvalidRequest,
    ),
)
def append_steps(
    run_id: RunId,
    principal: MayIngest,
    body: Annotated[bytes, Depends(_body)],
    content_type: Annotated[str, Depends(media_type)],
    database: DatabaseDependency,
    facts: FactsDependency,
    warm: RunCacheDependency,
    metrics: MetricsDependency,
    limits: LimitsDependency,
) -> Response:
    """Append steps, exactly once: those at or below the run's last step are ignored and counted.

    `Content-Encoding` may be `gzip` or `zstd`. A 2xx means that the steps are durable.
    """
    block = decode_block(body, content_type, limits)
    with database.writing_rows() as connection:
        result, advanced = service.append(connection, principal, facts, warm, run_id, block)
        if result.alerts:
            with database.objects(connection) as session:
                reruns.start_automatically(session, principal, facts, limits, run_id)
    if advanced is not None:
        warm.keep(advanced)
        changed_to = result.verdict if result.verdict != advanced.run.verdict else None
        metrics.count_block(result.accepted, block.values_of_last(result.accepted), changed_to)
    return Response(msgspec.json.encode(result), media_type=JSON_MEDIA_TYPE)


@router.post(
    "/rewind",
    tags=["steps"],
    response_model=RewindResult,
    dependencies=[Depends(json_only)],
    responses=documented(
        RunNotFound,
        StaleGeneration,
        UnknownGeneration,
        MalformedBody,
        BodyTooLarge,
        UnsupportedMediaType,
        InvalidRequest,
    ),
)
def rewind_run(
    run_id: RunId,
    principal: MayIngest,
    body: Annotated[RunRewind, Body(openapi_examples=REWIND_EXAMPLES)],
    database: DatabaseDependency,
    facts: FactsDependency,
) -> RewindResult:
    """Go back to a step, as a job does that resumes from a checkpoint.

    Later steps and what was concluded from them are dropped, the run is `running` again, and its generation grows by
    one: blocks of the one before, which may still be on their way, are refused. May be repeated.
    """
    errors = []
    if not -1 <= body.step <= LARGEST_STEP:
        errors.append(FieldError(path="step", message=f"must be from -1 to {LARGEST_STEP}"))
    if not 0 <= body.generation < LARGEST_GENERATION:
        errors.append(FieldError(path="generation", message=f"must be from 0 to {LARGEST_GENERATION - 1}"))
    if errors:
        raise InvalidRequest(errors)
    with database.writing_rows() as connection:
        return service.rewind(connection, principal, facts, run_id, body)


@router.get(
    "/steps",
    tags=["steps"],
    response_model=SeriesResult,
    responses=documented(RunNotFound, NotAcceptable, InvalidRequest),
)
def read_steps(
    run_id: RunId,
    principal: MayRead,
    database: DatabaseDependency,
    limits: LimitsDependency,
    statistic: Annotated[
        list[str],
        Query(
            description="A statistic of the run, a series of its steps (`loss`, ...) or a metric; repeatable.",
            examples=[["loss"], ["grad_norm", "weight_norm"]],
        ),
    ],
    layer: Annotated[list[str] | None, Query(description="A layer; repeatable. Without it, all.")] = None,
    from_step: Annotated[int, Query(ge=0, le=LARGEST_STEP)] = 0,
    to_step: Annotated[int | None, Query(ge=0, le=LARGEST_STEP, description="Inclusive; without it, the last.")] = None,
    max_points: Annotated[int, Query(description="Buckets at most, up to what `/limits` says.")] = DEFAULT_POINTS,
    field: Annotated[
        list[str] | None,
        Query(description=f"What of each bucket beside its counts, of {', '.join(NUMBERS)}; repeatable. All without."),
    ] = None,
    accept: Annotated[
        str, Header(description="`application/json`, `application/vnd.msgpack`, or the form of an export.")
    ] = JSON_MEDIA_TYPE,
    accept_encoding: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """Read series: minimum, mean and maximum over buckets of steps, and how many values were not finite.

    With `Accept: application/vnd.msgpack`: the same with arrays as little-endian bytes, float32 of a statistic, float64
    of a series, uint32 of a count; a number is 0 where its bucket has no finite value.

    With `Accept: text/csv` or `application/vnd.apache.parquet`: every step, a row each, whatever `max_points` says.
    """
    if not 1 <= max_points <= limits.max_points:
        raise InvalidRequest.at("max_points", f"must be from 1 to {limits.max_points}")
    if to_step is not None and to_step < from_step:
        raise InvalidRequest.at("to_step", f"must not be before from_step, {from_step}")
    unknown = next((name for name in field or () if name not in NUMBERS), None)
    if unknown is not None:
        raise InvalidRequest.at("field", f"{unknown!r} is not one of {', '.join(NUMBERS)}")
    wanted = next((kind for kind in export.MEDIA_TYPES if kind in accept.lower()), None)
    if wanted is not None:
        with database.reading_rows() as connection:
            selection, generation, last_step = service.select_for_export(
                connection, principal, run_id, statistic, layer or []
            )
        last_step = last_step if to_step is None else min(to_step, last_step)
        table = export.table_of(wanted, selection)
        parts = export.stream(database, run_id, generation, selection, from_step, last_step, table)
        return StreamingResponse(parts, media_type=wanted)
    with database.reading_rows() as connection:
        series = service.read_series(
            connection, principal, run_id, statistic, layer or [], from_step, to_step, max_points
        )
    fields = field or NUMBERS
    if MSGPACK_MEDIA_TYPE not in accept.lower():
        return Response(series.to_json(run_id, fields), media_type=JSON_MEDIA_TYPE, headers=VARY)
    content = series.to_msgpack(run_id, fields)
    if "gzip" not in accept_encoding.lower():
        return Response(content, media_type=MSGPACK_MEDIA_TYPE, headers=VARY)
    packed = gzip.compress(content, compresslevel=GZIP_LEVEL, mtime=0)
    return Response(packed, media_type=MSGPACK_MEDIA_TYPE, headers={**VARY, "Content-Encoding": "gzip"})


@router.get(
    "/diagnosis",
    tags=["diagnosis"],
    response_model=Diagnosis,
    responses=documented(RunNotFound, InvalidRequest),
)
def read_diagnosis(
    run_id: RunId,
    principal: MayFollow,
    database: DatabaseDependency,
    facts: FactsDependency,
    at_step: Annotated[int | None, Query(ge=0, le=LARGEST_STEP, description="As it was then; without it, now.")] = None,
) -> Diagnosis:
    """Return what is wrong with the run, why, and what fixes it."""
    with database.reading_rows() as connection:
        diagnosis = service.diagnose(connection, principal, facts, run_id, at_step)
        return reruns.with_outcomes(connection, diagnosis)


@router.get(
    "/diagnosis/history",
    tags=["diagnosis"],
    response_model=VerdictHistory,
    responses=documented(RunNotFound, InvalidRequest),
)
def read_history(run_id: RunId, principal: MayFollow, database: DatabaseDependency) -> VerdictHistory:
    """Return every change of the run's verdict, at the step whose data changed it."""
    with database.reading_rows() as connection:
        return service.history(connection, principal, run_id)
