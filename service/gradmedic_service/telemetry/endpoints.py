"""Routes of a run's steps and its diagnosis."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fastapi import Depends, Header, Path, Query, Response
from fastapi.responses import StreamingResponse

from gradmedic.protocol.diagnosis import Diagnosis, VerdictHistory
from gradmedic.protocol.series import SeriesResult
from gradmedic.protocol.service import JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE, FieldError
from gradmedic.protocol.steps import AppendResult, RewindResult, RunRewind
from gradmedic_service.access.authorization import MayFollow, MayIngest, MayRead
from gradmedic_service.guards.validation import rewind_errors as guard_errors
from gradmedic_service.http.answers import respond_in_parts
from gradmedic_service.http.bodies import JSON_TURN, PACKED_TURN, SentBody, decompressed, read_body
from gradmedic_service.http.dependencies import (
    AnswerMemoryDependency,
    AutomaticRerunsDependency,
    DatabaseDependency,
    DiagnosisCacheDependency,
    FactsDependency,
    LimitsDependency,
    MetricsDependency,
    RollupCacheDependency,
    RunCacheDependency,
    media_type,
)
from gradmedic_service.http.direct_routes import DirectRoute
from gradmedic_service.http.errors import BodyTooLarge, InvalidRequest, MalformedBody, UnsupportedMediaType, documented
from gradmedic_service.http.json_bodies import json_body
from gradmedic_service.http.routers import api_router
from gradmedic_service.reruns.outcomes import add_results
from gradmedic_service.runs.errors import RunNotFound
from gradmedic_service.telemetry import export, service
from gradmedic_service.telemetry.appending import append
from gradmedic_service.telemetry.decoding import LARGEST_GENERATION, LARGEST_STEP, decode_block
from gradmedic_service.telemetry.errors import NotAcceptable, StaleGeneration, UnknownGeneration
from gradmedic_service.telemetry.series_table import NUMBERS

DEFAULT_POINTS = 500
"""About one bucket for each pixel column of a heatmap."""
GZIP_WBITS = 31
GZIP_LEVEL = 1
"""Counts are nearly always alike and shrink to nothing at any level; mantissas hardly shrink at any level."""
VARY = {"Vary": "Accept, Accept-Encoding"}

direct_router = api_router(prefix="/runs/{run_id}", route_class=DirectRoute)
router = api_router(prefix="/runs/{run_id}")


RunId = Annotated[UUID, Path(description="Id of the run.", examples=["0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50"])]

APPEND_EXAMPLE: dict[str, Any] = {
    "steps": [0, 1],
    "loss": [2.31, 2.29],
    "learning_rate": [0.003, 0.003],
    "statistics": {"grad_norm": [[0.51, 0.07], [0.49, None]], "weight_norm": [[9.2, 4.1], [9.2, None]]},
}
APPEND_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/StepsAppend"}, "example": APPEND_EXAMPLE},
            MSGPACK_MEDIA_TYPE: {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "A map with the same fields. A statistic is little-endian float32 bytes.",
                }
            },
        },
    }
}


REWIND_EXAMPLES: dict[str, Any] = {
    "checkpoint": {
        "summary": "The job resumes from the checkpoint of step 4000",
        "value": {"step": 4000, "generation": 0},
    },
    "guard": {
        "summary": "A guard went back to its last good state",
        "value": {
            "step": 320,
            "generation": 0,
            "guard_action": {
                "step": 412,
                "action": "rewind",
                "reason": "nonfinite_loss",
                "numbers": {"loss": "NaN"},
                "explanation": "The loss of step 412 is NaN, so the run goes back to the state after step 320.",
            },
        },
    },
}


DateHeader = Annotated[
    str | None,
    Header(
        description="Time of the request by the client's clock. With the `time` of the last step it shows how long ago "
        "that step was. A header that is no HTTP date is ignored."
    ),
]


def _read_date(date: str | None) -> datetime | None:
    try:
        time = None if date is None else parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return None
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


@direct_router.post(
    "/steps",
    operation_id="steps.append",
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
    body: Annotated[SentBody, Depends(read_body)],
    content_type: Annotated[str, Depends(media_type)],
    database: DatabaseDependency,
    facts: FactsDependency,
    run_cache: RunCacheDependency,
    metrics: MetricsDependency,
    limits: LimitsDependency,
    automatic_reruns: AutomaticRerunsDependency,
    date: DateHeader = None,
) -> Response:
    """Append steps, exactly once. Steps at or below the run's last step are ignored and counted.

    `Content-Encoding` may be `gzip` or `zstd`. A 2xx means that the steps are durable.
    """
    turn = PACKED_TURN if content_type == MSGPACK_MEDIA_TYPE else JSON_TURN
    with decompressed(body, limits.max_body_bytes, turn) as content:
        block = decode_block(content, content_type, limits)
    del content  # during the transaction the block alone is needed
    with database.writing_rows(shares_commit=True) as connection:
        appended = append(connection, principal, facts, run_cache, run_id, block, _read_date(date))
    result = appended.result
    if appended.cached is not None:
        run_cache.add(appended.cached)
    if result.accepted:
        new_verdict = result.verdict if result.verdict != appended.verdict_before else None
        metrics.count_block(result.accepted, block.count_values(result.accepted), new_verdict)
    automatic_reruns.start_after(database, principal, run_id, result)
    return Response(msgspec.json.encode(result), media_type=JSON_MEDIA_TYPE)


@router.post(
    "/rewind",
    operation_id="steps.rewind",
    tags=["steps"],
    response_model=RewindResult,
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
    body: Annotated[RunRewind, json_body(RunRewind, REWIND_EXAMPLES)],
    database: DatabaseDependency,
    facts: FactsDependency,
) -> RewindResult:
    """Rewind a run to a step, because the job resumes from a checkpoint.

    Later steps and their diagnosis are dropped, the run is `running` again, and its generation grows by one. Blocks of
    the old generation that are still on their way are refused. The request may be repeated.
    """
    errors = []
    if not -1 <= body.step <= LARGEST_STEP:
        errors.append(FieldError(path="step", message=f"must be from -1 to {LARGEST_STEP}"))
    if not 0 <= body.generation < LARGEST_GENERATION:
        errors.append(FieldError(path="generation", message=f"must be from 0 to {LARGEST_GENERATION - 1}"))
    errors += guard_errors(body)
    if errors:
        raise InvalidRequest(errors)
    with database.writing_rows() as connection:
        return service.rewind(connection, principal, facts, run_id, body)


SERIES_ANSWER: dict[str, Any] = {
    "description": "Series over buckets of steps (JSON, msgpack), or a table with a row for every step (CSV, Parquet), "
    "as the header `Accept` asks.",
    "content": {
        MSGPACK_MEDIA_TYPE: {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "A map with the fields of the JSON answer. The numbers of a series are little-endian "
                "bytes: float32 of a statistic, float64 of a series of the steps, uint32 of a count. A number is 0 "
                "where its bucket has no finite value.",
            }
        },
        export.CSV_MEDIA_TYPE: {
            "schema": {
                "type": "string",
                "description": "A column `step`, and one for each series. The column of a statistic is named "
                "`grad_norm/layer`. An absent value is empty.",
            }
        },
        export.PARQUET_MEDIA_TYPE: {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "The columns of the CSV answer. An absent value is null.",
            }
        },
    },
}


@direct_router.get(
    "/steps",
    operation_id="steps.read",
    tags=["steps"],
    response_model=SeriesResult,
    responses={200: SERIES_ANSWER, **documented(RunNotFound, NotAcceptable, InvalidRequest)},
)
def read_steps(
    run_id: RunId,
    principal: MayRead,
    database: DatabaseDependency,
    limits: LimitsDependency,
    memory: AnswerMemoryDependency,
    cache: RollupCacheDependency,
    statistic: Annotated[
        list[str],
        Query(
            description="Name of a statistic of the run, a series of its steps (`loss`, ...) or a metric. Repeatable.",
            examples=[["loss"], ["grad_norm", "weight_norm"]],
        ),
    ],
    layer: Annotated[list[str] | None, Query(description="Name of a layer. Repeatable. All layers by default.")] = None,
    from_step: Annotated[int, Query(ge=0, le=LARGEST_STEP, description="First step of the answer.")] = 0,
    to_step: Annotated[
        int | None, Query(ge=0, le=LARGEST_STEP, description="Last step of the answer. By default, that of the run.")
    ] = None,
    max_points: Annotated[
        int, Query(description="Largest number of buckets, at most `max_points` of `/limits`.")
    ] = DEFAULT_POINTS,
    field: Annotated[
        list[str] | None,
        Query(description=f"Number of each bucket to include: {', '.join(NUMBERS)}. Repeatable. All by default."),
    ] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = JSON_MEDIA_TYPE,  # OpenAPI has it as media types
    accept_encoding: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """Read series as buckets of steps: minimum, mean, maximum, and the number of values that are not finite.

    With `Accept: application/vnd.msgpack`, arrays are little-endian bytes: float32 for statistics, float64 for series,
    uint32 for counts. A number is 0 where its bucket has no finite value.

    With `Accept: text/csv` or `application/vnd.apache.parquet`, the answer has a row for every step and ignores
    `max_points`.
    """
    if not 1 <= max_points <= limits.max_points:
        raise InvalidRequest.at("max_points", f"must be from 1 to {limits.max_points}")
    if to_step is not None and to_step < from_step:
        raise InvalidRequest.at("to_step", f"must not be before from_step, {from_step}")
    unknown = next((name for name in field or () if name not in NUMBERS), None)
    if unknown is not None:
        raise InvalidRequest.at("field", f"{unknown!r} is not one of {', '.join(NUMBERS)}")
    export_type = next((media_type for media_type in export.MEDIA_TYPES if media_type in accept.lower()), None)
    if export_type is not None:
        with database.reading_rows() as connection:
            selection, generation, last_step = service.select_for_export(
                connection, principal, run_id, statistic, layer or []
            )
            last_step = last_step if to_step is None else min(to_step, last_step)
            rows = export.count_rows(connection, run_id, from_step, last_step)
        size = export.count_memory(export_type, selection.series_count, rows)
        if size > memory.largest:
            raise InvalidRequest.at(
                "statistic",
                f"{selection.series_count} columns of {rows} steps take {size >> 20} MiB of memory; at most "
                f"{memory.largest >> 20} are allowed: name fewer layers, statistics or steps, or ask for text/csv",
            )
        memory.reserve(size)
        table = export.create_table(export_type, selection, rows)
        parts = export.stream_table(database, run_id, generation, selection, from_step, last_step, table)
        return StreamingResponse(parts, media_type=export_type)
    with database.reading_rows() as connection:
        series_table = service.read_series(
            connection, principal, run_id, statistic, layer or [], from_step, to_step, max_points, memory, cache
        )
    fields = field or NUMBERS
    if MSGPACK_MEDIA_TYPE not in accept.lower():
        return respond_in_parts(series_table.json_parts(run_id, fields), JSON_MEDIA_TYPE, VARY)
    parts = series_table.msgpack_parts(run_id, fields)
    if "gzip" not in accept_encoding.lower():
        return respond_in_parts(parts, MSGPACK_MEDIA_TYPE, VARY)
    return respond_in_parts(_compress(parts), MSGPACK_MEDIA_TYPE, {**VARY, "Content-Encoding": "gzip"})


BLOCKS_ANSWER: dict[str, Any] = {
    "description": "A map with `generation` (number of rewinds), `next_step` (first step of the next request, null at "
    "the end) and `blocks`.",
    "content": {
        MSGPACK_MEDIA_TYPE: {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "Each block has `steps` (int64), the flags `sampled`, `skipped` and `present` "
                "(`[sampled step, layer]`), the number `layers`, `statistics` (float32 `[sampled step, layer]` by "
                "name), and `series` and `metrics` (by name: `values`, float64, and the flags `present`). Arrays are "
                "little-endian bytes. Flags are bits, the first one in the lowest bit.",
            }
        }
    },
}


@router.get(
    "/blocks",
    operation_id="steps.read_blocks",
    tags=["steps"],
    response_class=Response,
    responses={200: BLOCKS_ANSWER, **documented(RunNotFound, InvalidRequest)},
)
def read_blocks(
    run_id: RunId,
    principal: MayRead,
    database: DatabaseDependency,
    memory: AnswerMemoryDependency,
    from_step: Annotated[int, Query(ge=0, le=LARGEST_STEP, description="First step of the answer.")] = 0,
    to_step: Annotated[
        int | None, Query(ge=0, le=LARGEST_STEP, description="Last step of the answer. By default, that of the run.")
    ] = None,
) -> Response:
    """Read all steps of a run at full resolution, in parts, with everything that was sent: every number bit by bit.

    The answer is msgpack. It ends after about a million values. The next request begins at its `next_step`.
    """
    if to_step is not None and to_step < from_step:
        raise InvalidRequest.at("to_step", f"must not be before from_step, {from_step}")
    with database.reading_rows() as connection:
        result = service.read_blocks(connection, principal, run_id, from_step, to_step, memory)
    return Response(msgspec.msgpack.encode(result), media_type=MSGPACK_MEDIA_TYPE)


def _compress(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Yield parts as one gzip stream."""
    stream = zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WBITS)
    for part in parts:
        yield stream.compress(part)
    yield stream.flush()


@direct_router.get(
    "/diagnosis",
    operation_id="diagnosis.get",
    tags=["diagnosis"],
    response_model=Diagnosis,
    responses=documented(RunNotFound, InvalidRequest),
)
def read_diagnosis(
    run_id: RunId,
    principal: MayFollow,
    database: DatabaseDependency,
    facts: FactsDependency,
    cache: DiagnosisCacheDependency,
    at_step: Annotated[
        int | None, Query(ge=0, le=LARGEST_STEP, description="Step of the diagnosis. By default, the run's last step.")
    ] = None,
) -> Response:
    """Return the diagnosis of the run: verdict, findings, causes and advice."""
    with database.reading_rows() as connection:
        diagnosis, has_reruns = service.read_diagnosis(connection, principal, facts, run_id, at_step, cache)
        if has_reruns:
            diagnosis = add_results(connection, diagnosis, is_latest=at_step is None)
    return Response(cache.encode(diagnosis), media_type=JSON_MEDIA_TYPE)


@router.get(
    "/diagnosis/history",
    operation_id="diagnosis.history",
    tags=["diagnosis"],
    response_model=VerdictHistory,
    responses=documented(RunNotFound, InvalidRequest),
)
def read_history(run_id: RunId, principal: MayFollow, database: DatabaseDependency) -> VerdictHistory:
    """Return every change of the run's verdict, with the step whose data changed it."""
    with database.reading_rows() as connection:
        return service.read_verdict_history(connection, principal, run_id)
