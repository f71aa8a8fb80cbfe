"""Chunks, diagnosis states and verdict changes in the database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, bindparam, delete, func, insert, select, update

from gradmedic_diagnosis import VerdictChange
from gradmedic_service.database import models
from gradmedic_service.runs.stalling import Patience

CHUNKS_READ_AT_ONCE = 16

_PROJECTS = cast("Table", models.Project.__table__)
_RUNS = cast("Table", models.Run.__table__)
_STATES = cast("Table", models.DiagnosisState.__table__)
_SNAPSHOTS = cast("Table", models.DiagnosisSnapshot.__table__)
_CHUNKS = cast("Table", models.TelemetryChunk.__table__)
_ROLLUPS = cast("Table", models.TelemetryRollup.__table__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What an append and a reading need of a run's row."""

    id: UUID
    project: str
    status: str
    created_at: datetime
    generation: int
    revision: int
    last_step: int | None
    verdict: str
    since_step: int | None
    statistics: list[str]
    metrics: list[str]
    layer_counts: list[int]
    facts_digest: bytes
    muted_by_run: list[str] | None
    muted_by_project: list[str] | None
    rewound_to: int | None
    stop_after: int | None
    patience: float | None
    stalls_at: datetime | None

    @property
    def muted(self) -> frozenset[str]:
        """Ids of the detectors that are not to be heard."""
        return frozenset((*(self.muted_by_run or ()), *(self.muted_by_project or ())))


@dataclass(frozen=True, slots=True)
class StoredState:
    """Where the diagnostician of a run stood some steps ago, or stands."""

    state: bytes
    steps_since_snapshot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A diagnostician's state after a step."""

    step: int
    state: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAppend:
    """What an append makes of a run."""

    revision: int
    last_step: int
    verdict: str
    score: float
    since_step: int | None
    metrics: list[str]
    state: StoredState | None
    """None where the stored one is to stay."""
    snapshots: Sequence[Snapshot]
    changes: Sequence[VerdictChange]
    at: datetime
    patience: Patience | None
    """None where the run has not spoken."""
    ends_stall: bool = False
    """Whether the run was stalled, and is running again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRewindUpdate:
    """What a rewind makes of a run."""

    generation: int
    revision: int
    rewound_to: int
    last_step: int | None
    verdict: str
    score: float
    since_step: int | None
    state: StoredState | None
    """None where no step is left."""
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkExtent:
    """Where a chunk lies, without its data."""

    first_step: int
    last_step: int
    step_count: int
    position: int | None
    """Chunks of the run before it, where it is known."""


# Statements of the append path are built once, over tables: building them anew costs more than running them.
_STATE_COLUMNS = (
    _RUNS.c.id,
    _RUNS.c.project,
    _RUNS.c.status,
    _RUNS.c.created_at,
    _RUNS.c.generation,
    _RUNS.c.revision,
    _RUNS.c.last_step,
    _RUNS.c.verdict,
    _RUNS.c.since_step,
    _RUNS.c.statistics,
    _RUNS.c.metrics,
    _RUNS.c.layer_counts,
    _RUNS.c.facts_digest,
    _RUNS.c.muted_detectors.label("muted_by_run"),
    _PROJECTS.c.muted_detectors.label("muted_by_project"),
    _RUNS.c.rewound_to,
    _RUNS.c.stop_after,
    _RUNS.c.patience,
    _RUNS.c.stalls_at,
)
_READ_STATE = (
    select(*_STATE_COLUMNS)
    .select_from(_RUNS.outerjoin(_PROJECTS, _PROJECTS.c.name == _RUNS.c.project))
    .where(_RUNS.c.id == bindparam("run_id"))
)
_READ_STATE_LOCKED = _READ_STATE.with_for_update(of=_RUNS)
_READ_STORED_STATE = select(_STATES.c.state, _STATES.c.steps_since_snapshot).where(
    _STATES.c.run_id == bindparam("run_id")
)
_ADVANCE_RUN = update(_RUNS).where(_RUNS.c.id == bindparam("run_id"))
_ADVANCE_STATE = update(_STATES).where(_STATES.c.run_id == bindparam("id"))
_READ_TAIL = (
    select(_CHUNKS.c.first_step, _CHUNKS.c.last_step, _CHUNKS.c.step_count, _CHUNKS.c.position)
    .where(_CHUNKS.c.run_id == bindparam("run_id"))
    .order_by(_CHUNKS.c.first_step.desc())
    .limit(bindparam("count"))
)
_TAKE_FROM = (
    delete(_CHUNKS)
    .where(_CHUNKS.c.run_id == bindparam("run_id"), _CHUNKS.c.first_step >= bindparam("first_step"))
    .returning(_CHUNKS.c.first_step, _CHUNKS.c.data)
)
_ADD_CHUNK = insert(_CHUNKS)
_ADD_STATE = insert(_STATES)


def read_state(connection: Connection, run_id: UUID, *, is_locked: bool = False) -> RunState | None:
    """Read a run's row; locked, nobody else appends to it until the transaction ends.

    What belongs to the row is read by statements after this one. Where PostgreSQL has waited for the lock, it reads the
    locked row anew, but a row joined to it as it was before the wait.
    """
    statement = _READ_STATE_LOCKED if is_locked else _READ_STATE
    row = connection.execute(statement, {"run_id": run_id}).one_or_none()
    return None if row is None else RunState(**row._mapping)


def read_stored_state(connection: Connection, run_id: UUID) -> StoredState | None:
    """Read the diagnostician of a run as it was stored last; None before its first step."""
    row = connection.execute(_READ_STORED_STATE, {"run_id": run_id}).one_or_none()
    return None if row is None else StoredState(row.state, row.steps_since_snapshot or 0)


def advance(connection: Connection, run_id: UUID, to: RunAppend) -> None:
    """Write what an append made of a run."""
    connection.execute(
        _ADVANCE_RUN,
        {
            "run_id": run_id,
            "revision": to.revision,
            "last_step": to.last_step,
            "verdict": to.verdict,
            "score": to.score,
            "since_step": to.since_step,
            "metrics": to.metrics,
            "updated_at": to.at,
            **({} if to.patience is None else {"patience": to.patience.seconds, "stalls_at": to.patience.stalls_at}),
            **({"status": "running"} if to.ends_stall else {}),
        },
    )
    if to.state is not None:
        _write_state(connection, run_id, to.state)
    if to.snapshots:
        rows = [{"run_id": run_id, "step": snapshot.step, "state": snapshot.state} for snapshot in to.snapshots]
        connection.execute(insert(_SNAPSHOTS), rows)
    if to.changes:
        connection.execute(
            insert(models.VerdictChange),
            [
                {
                    "run_id": run_id,
                    "step": change.step,
                    "verdict": change.verdict,
                    "score": change.score,
                    "finding": change.finding,
                }
                for change in to.changes
            ],
        )


def retreat(connection: Connection, run_id: UUID, to: RunRewindUpdate) -> None:
    """Write what a rewind made of a run, whose later steps are gone."""
    patience = Patience.at_start(to.at)
    connection.execute(
        _ADVANCE_RUN,
        {
            "run_id": run_id,
            "generation": to.generation,
            "revision": to.revision,
            "rewound_to": to.rewound_to,
            "last_step": to.last_step,
            "verdict": to.verdict,
            "score": to.score,
            "since_step": to.since_step,
            "status": "running",
            "updated_at": to.at,
            "patience": patience.seconds,
            "stalls_at": patience.stalls_at,
        },
    )
    if to.state is None:
        connection.execute(delete(_STATES).where(_STATES.c.run_id == run_id))
    else:
        _write_state(connection, run_id, to.state)


def _write_state(connection: Connection, run_id: UUID, to: StoredState) -> None:
    state = {"state": to.state, "steps_since_snapshot": to.steps_since_snapshot}
    if connection.execute(_ADVANCE_STATE, {"id": run_id, **state}).rowcount == 0:
        connection.execute(_ADD_STATE, {"run_id": run_id, **state})


def remove_steps_after(connection: Connection, run_id: UUID, step: int) -> list[bytes]:
    """Remove the chunks that hold a step behind one, with what was concluded from it; return those that hold both."""
    connection.execute(delete(_SNAPSHOTS).where(_SNAPSHOTS.c.run_id == run_id, _SNAPSHOTS.c.step > step))
    change = models.VerdictChange
    connection.execute(delete(change).where(change.run_id == run_id, change.step > step))
    connection.execute(delete(_ROLLUPS).where(_ROLLUPS.c.run_id == run_id, _ROLLUPS.c.last_step > step))
    connection.execute(delete(_CHUNKS).where(_CHUNKS.c.run_id == run_id, _CHUNKS.c.first_step > step))
    straddling = delete(_CHUNKS).where(_CHUNKS.c.run_id == run_id, _CHUNKS.c.last_step > step)
    return list(connection.scalars(straddling.returning(_CHUNKS.c.data)))


def last_snapshot(connection: Connection, run_id: UUID, at_step: int) -> Snapshot | None:
    """Read the last snapshot of a run's diagnosis at or before a step."""
    row = connection.execute(
        select(_SNAPSHOTS.c.step, _SNAPSHOTS.c.state)
        .where(_SNAPSHOTS.c.run_id == run_id, _SNAPSHOTS.c.step <= at_step)
        .order_by(_SNAPSHOTS.c.step.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else Snapshot(step=row.step, state=row.state)


def forget_diagnosis(connection: Connection, run_id: UUID) -> None:
    """Remove the snapshots and the verdict changes of a run."""
    connection.execute(delete(_SNAPSHOTS).where(_SNAPSHOTS.c.run_id == run_id))
    connection.execute(delete(models.VerdictChange).where(models.VerdictChange.run_id == run_id))


def run_ids(connection: Connection) -> list[UUID]:
    """Read the ids of every run, oldest first."""
    return list(connection.scalars(select(models.Run.id).order_by(models.Run.created_at, models.Run.id)))


def verdict_changes(connection: Connection, run_id: UUID) -> Sequence[Row[int, str, float, str | None]]:
    """Read every change of a run's verdict, oldest first: step, verdict, score, finding."""
    change = models.VerdictChange
    query = select(change.step, change.verdict, change.score, change.finding)
    return connection.execute(query.where(change.run_id == run_id).order_by(change.step, change.id)).all()


def tail(connection: Connection, run_id: UUID, count: int) -> list[ChunkExtent]:
    """Read where the last chunks of a run lie, last one first."""
    rows = connection.execute(_READ_TAIL, {"run_id": run_id, "count": count})
    return [ChunkExtent(**row._mapping) for row in rows]


def take_from(connection: Connection, run_id: UUID, first_step: int) -> list[bytes]:
    """Remove the chunks that begin at a step or later and return their data in order."""
    rows = connection.execute(_TAKE_FROM, {"run_id": run_id, "first_step": first_step})
    return [data for _, data in sorted(rows, key=lambda row: int(row[0]))]


def add_chunk(connection: Connection, run_id: UUID, extent: ChunkExtent, data: bytes) -> None:
    """Store a chunk."""
    connection.execute(
        _ADD_CHUNK,
        {
            "run_id": run_id,
            "first_step": extent.first_step,
            "last_step": extent.last_step,
            "step_count": extent.step_count,
            "position": extent.position,
            "data": data,
        },
    )


def chunks(connection: Connection, run_id: UUID, from_step: int, to_step: int) -> Iterator[bytes]:
    """Read the data of the chunks that touch a range of steps, in order, a few at a time."""
    chunk = models.TelemetryChunk
    rows = connection.execute(
        select(chunk.data)
        .where(chunk.run_id == run_id, chunk.last_step >= from_step, chunk.first_step <= to_step)
        .order_by(chunk.first_step)
        .execution_options(yield_per=CHUNKS_READ_AT_ONCE)
    )
    for (data,) in rows:
        yield data


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPart:
    """A chunk (level 0) or a rollup row, and its place among those of its level."""

    position: int | None
    last_step: int
    data: bytes


def last_parts(connection: Connection, run_id: UUID, level: int, count: int) -> list[StoredPart]:
    """Read the last rows of a level, 0 being the chunks, in order."""
    if level == 0:
        table, condition = _CHUNKS, _CHUNKS.c.run_id == run_id
    else:
        table, condition = _ROLLUPS, and_(_ROLLUPS.c.run_id == run_id, _ROLLUPS.c.level == level)
    query = select(table.c.position, table.c.last_step, table.c.data).where(condition)
    rows = connection.execute(query.order_by(table.c.first_step.desc()).limit(count)).all()
    return [StoredPart(**row._mapping) for row in reversed(rows)]


def add_rollup(
    connection: Connection, run_id: UUID, *, level: int, first_step: int, last_step: int, position: int, data: bytes
) -> None:
    """Store a rollup row."""
    row = {"level": level, "first_step": first_step, "last_step": last_step, "position": position, "data": data}
    connection.execute(insert(_ROLLUPS), {"run_id": run_id, **row})


def top_level(connection: Connection, run_id: UUID) -> int:
    """Return the highest level of rollups that a run has; 0 where it has none."""
    return connection.scalar(select(func.max(_ROLLUPS.c.level)).where(_ROLLUPS.c.run_id == run_id)) or 0


def rollup_extent(
    connection: Connection, run_id: UUID, level: int, from_step: int, to_step: int
) -> tuple[int, int, int]:
    """Count the rows of a level that lie within a range of steps; return also its first and its last step."""
    found = connection.execute(
        select(func.count(), func.min(_ROLLUPS.c.first_step), func.max(_ROLLUPS.c.last_step)).where(
            *_within(run_id, level, from_step, to_step)
        )
    ).one()
    return (found[0], found[1], found[2]) if found[0] else (0, to_step + 1, to_step)


def rollups(connection: Connection, run_id: UUID, level: int, from_step: int, to_step: int) -> Iterator[bytes]:
    """Read the rows of a level that lie within a range of steps, in order, a few at a time."""
    rows = connection.execute(
        select(_ROLLUPS.c.data)
        .where(*_within(run_id, level, from_step, to_step))
        .order_by(_ROLLUPS.c.first_step)
        .execution_options(yield_per=CHUNKS_READ_AT_ONCE)
    )
    for (data,) in rows:
        yield data


def _within(run_id: UUID, level: int, from_step: int, to_step: int) -> tuple[ColumnElement[bool], ...]:
    # The last condition follows from the one before for every row but one, and lets the index end the search.
    return (
        _ROLLUPS.c.run_id == run_id,
        _ROLLUPS.c.level == level,
        _ROLLUPS.c.first_step >= from_step,
        _ROLLUPS.c.last_step <= to_step,
        _ROLLUPS.c.first_step <= to_step,
    )


def first_chunks(connection: Connection, run_id: UUID, from_step: int, to_step: int, count: int) -> list[bytes]:
    """Read the data of the first chunks that touch a range of steps, in order."""
    query = select(_CHUNKS.c.data).where(
        _CHUNKS.c.run_id == run_id, _CHUNKS.c.last_step >= from_step, _CHUNKS.c.first_step <= to_step
    )
    return list(connection.scalars(query.order_by(_CHUNKS.c.first_step).limit(count)))


def first_step(connection: Connection, run_id: UUID) -> int | None:
    """Read the first stored step of a run."""
    chunk = models.TelemetryChunk
    return connection.scalar(select(func.min(chunk.first_step)).where(chunk.run_id == run_id))


def layer_names(connection: Connection, run_id: UUID) -> list[str]:
    """Read the names of a run's layers."""
    layers = connection.scalar(select(models.RunDetails.layers).where(models.RunDetails.run_id == run_id))
    return [layer["name"] for layer in layers or []]
