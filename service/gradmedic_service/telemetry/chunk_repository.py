"""Chunks and rollups in the database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast
from uuid import UUID

from sqlalchemy import Connection, Table, and_, bindparam, delete, func, insert, select

from gradmedic_service.database import models
from gradmedic_service.database.prepared import PreparedStatement

ROWS_READ_AT_ONCE = 16

_CHUNKS = cast("Table", models.TelemetryChunk.__table__)
_ROLLUPS = cast("Table", models.TelemetryRollup.__table__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkExtent:
    """The steps that a chunk covers, without its data."""

    first_step: int
    last_step: int
    step_count: int
    position: int | None
    """Number of chunks of the run before this one; None where a version that wrote no rollups wrote the chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """A chunk (level 0) or a rollup."""

    position: int | None
    """Number of rows of the level before this one."""
    data: bytes


@dataclass(frozen=True, slots=True)
class RollupExtent:
    """The steps that a rollup covers, without its data."""

    first_step: int
    last_step: int


# These statements are built once, over tables: building them anew costs more than running them.
_READ_LAST_EXTENTS = (
    select(_CHUNKS.c.first_step, _CHUNKS.c.last_step, _CHUNKS.c.step_count, _CHUNKS.c.position)
    .where(_CHUNKS.c.run_id == bindparam("run_id"))
    .order_by(_CHUNKS.c.first_step.desc())
    .limit(bindparam("count"))
)
_REMOVE_CHUNKS_FROM = (
    delete(_CHUNKS)
    .where(_CHUNKS.c.run_id == bindparam("run_id"), _CHUNKS.c.first_step >= bindparam("first_step"))
    .returning(_CHUNKS.c.first_step, _CHUNKS.c.data)
)
_ADD_CHUNK = PreparedStatement(insert(_CHUNKS))
_READ_FIRST_STEP = select(func.min(_CHUNKS.c.first_step)).where(_CHUNKS.c.run_id == bindparam("run_id"))
_READ_CHUNKS = (
    select(_CHUNKS.c.step_count, _CHUNKS.c.data)
    .where(
        _CHUNKS.c.run_id == bindparam("run_id"),
        _CHUNKS.c.last_step >= bindparam("from_step"),
        _CHUNKS.c.first_step <= bindparam("to_step"),
    )
    .order_by(_CHUNKS.c.first_step)
    .execution_options(yield_per=ROWS_READ_AT_ONCE)
)
_READ_HIGHEST_LEVEL = select(func.max(_ROLLUPS.c.level)).where(_ROLLUPS.c.run_id == bindparam("run_id"))
# The last condition follows from the others; the database needs it to end its search in the index.
_WITHIN = (
    _ROLLUPS.c.run_id == bindparam("run_id"),
    _ROLLUPS.c.level == bindparam("level"),
    _ROLLUPS.c.first_step >= bindparam("from_step"),
    _ROLLUPS.c.last_step <= bindparam("to_step"),
    _ROLLUPS.c.first_step <= bindparam("to_step"),
)
_COUNT_ROLLUPS = select(func.count()).where(*_WITHIN)
_READ_ROLLUP_EXTENTS = (
    select(_ROLLUPS.c.first_step, _ROLLUPS.c.last_step).where(*_WITHIN).order_by(_ROLLUPS.c.first_step)
)
_READ_ROLLUPS = (
    select(_ROLLUPS.c.data)
    .where(*_WITHIN)
    .order_by(_ROLLUPS.c.first_step)
    .execution_options(yield_per=ROWS_READ_AT_ONCE)
)


def read_last_extents(connection: Connection, run_id: UUID, count: int) -> list[ChunkExtent]:
    """Read the extents of the last chunks of a run, the last one first."""
    rows = connection.execute(_READ_LAST_EXTENTS, {"run_id": run_id, "count": count})
    return [ChunkExtent(**row._mapping) for row in rows]


def remove_chunks_from(connection: Connection, run_id: UUID, first_step: int) -> list[bytes]:
    """Remove the chunks that begin at `first_step` or later; return their data in order."""
    rows = connection.execute(_REMOVE_CHUNKS_FROM, {"run_id": run_id, "first_step": first_step})
    return [data for _, data in sorted(rows, key=lambda row: int(row[0]))]


def add_chunk(connection: Connection, run_id: UUID, extent: ChunkExtent, data: bytes) -> None:
    """Store a chunk."""
    _ADD_CHUNK.execute(
        connection,
        {
            "run_id": run_id,
            "first_step": extent.first_step,
            "last_step": extent.last_step,
            "step_count": extent.step_count,
            "position": extent.position,
            "data": data,
        },
    )


def read_chunks(connection: Connection, run_id: UUID, from_step: int, to_step: int) -> Iterator[tuple[int, bytes]]:
    """Read the number of steps and the data of the chunks that touch a range of steps, in order, a few at a time."""
    with connection.execute(_READ_CHUNKS, _range_of(run_id, from_step, to_step)) as rows:
        for row in rows:
            yield row.step_count, row.data


def count_steps(connection: Connection, run_id: UUID, from_step: int, to_step: int) -> int:
    """Count the steps of the chunks that touch a range of steps."""
    chunk = models.TelemetryChunk
    touches = (chunk.run_id == run_id, chunk.last_step >= from_step, chunk.first_step <= to_step)
    return int(connection.scalar(select(func.sum(chunk.step_count)).where(*touches)) or 0)


def remove_steps_after(connection: Connection, run_id: UUID, step: int) -> list[bytes]:
    """Remove the chunks and rollups with a step after `step`; return the chunks that also hold steps up to `step`."""
    connection.execute(delete(_ROLLUPS).where(_ROLLUPS.c.run_id == run_id, _ROLLUPS.c.last_step > step))
    connection.execute(delete(_CHUNKS).where(_CHUNKS.c.run_id == run_id, _CHUNKS.c.first_step > step))
    straddling = delete(_CHUNKS).where(_CHUNKS.c.run_id == run_id, _CHUNKS.c.last_step > step)
    return list(connection.scalars(straddling.returning(_CHUNKS.c.data)))


def read_last_rows(connection: Connection, run_id: UUID, level: int, count: int) -> list[StoredRow]:
    """Read the last rows of a level, in order; level 0 are the chunks."""
    if level == 0:
        table, condition = _CHUNKS, _CHUNKS.c.run_id == run_id
    else:
        table, condition = _ROLLUPS, and_(_ROLLUPS.c.run_id == run_id, _ROLLUPS.c.level == level)
    query = select(table.c.position, table.c.data).where(condition)
    rows = connection.execute(query.order_by(table.c.first_step.desc()).limit(count)).all()
    return [StoredRow(**row._mapping) for row in reversed(rows)]


def add_rollup(
    connection: Connection, run_id: UUID, *, level: int, first_step: int, last_step: int, position: int, data: bytes
) -> None:
    """Store a rollup."""
    row = {"level": level, "first_step": first_step, "last_step": last_step, "position": position, "data": data}
    connection.execute(insert(_ROLLUPS), {"run_id": run_id, **row})


def read_highest_level(connection: Connection, run_id: UUID) -> int:
    """Read the highest level of rollups that a run has; 0 where it has none."""
    return connection.scalar(_READ_HIGHEST_LEVEL, {"run_id": run_id}) or 0


def count_rollups(connection: Connection, run_id: UUID, level: int, from_step: int, to_step: int) -> int:
    """Count the rollups of a level that lie within a range of steps."""
    return int(connection.scalar(_COUNT_ROLLUPS, _range_of(run_id, from_step, to_step, level=level)) or 0)


def read_rollup_extents(
    connection: Connection, run_id: UUID, level: int, from_step: int, to_step: int
) -> list[RollupExtent]:
    """Read the first and the last step of each rollup of a level that lies within a range of steps, in order."""
    rows = connection.execute(_READ_ROLLUP_EXTENTS, _range_of(run_id, from_step, to_step, level=level))
    return [RollupExtent(first_step, last_step) for first_step, last_step in rows]


def read_rollups(connection: Connection, run_id: UUID, level: int, from_step: int, to_step: int) -> Iterator[bytes]:
    """Read the data of the rollups of a level that lie within a range of steps, in order, a few at a time."""
    with connection.execute(_READ_ROLLUPS, _range_of(run_id, from_step, to_step, level=level)) as rows:
        for (data,) in rows:
            yield data


def _range_of(run_id: UUID, from_step: int, to_step: int, **further: int) -> dict[str, UUID | int]:
    return {"run_id": run_id, "from_step": from_step, "to_step": to_step, **further}


def read_first_chunks(connection: Connection, run_id: UUID, from_step: int, to_step: int, count: int) -> list[bytes]:
    """Read the data of the first chunks that touch a range of steps, in order."""
    query = select(_CHUNKS.c.data).where(
        _CHUNKS.c.run_id == run_id, _CHUNKS.c.last_step >= from_step, _CHUNKS.c.first_step <= to_step
    )
    return list(connection.scalars(query.order_by(_CHUNKS.c.first_step).limit(count)))


def read_first_step(connection: Connection, run_id: UUID) -> int | None:
    """Read the first stored step of a run."""
    first_step: int | None = connection.scalar(_READ_FIRST_STEP, {"run_id": run_id})
    return first_step
