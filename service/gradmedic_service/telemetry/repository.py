"""Chunks, diagnosis states and verdict changes in the database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast
from uuid import UUID

from sqlalchemy import Table, delete, func, insert, select, update
from sqlalchemy.orm import Session

from gradmedic_service import diagnosis, models

CHUNKS_READ_AT_ONCE = 16

_RUNS = cast("Table", models.Run.__table__)
_STATES = cast("Table", models.DiagnosisState.__table__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What an append and a reading need of a run's row, and its diagnostician's state."""

    id: UUID
    generation: int
    revision: int
    last_step: int | None
    verdict: str
    since_step: int | None
    statistics: list[str]
    metrics: list[str]
    layer_counts: list[int]
    facts_digest: bytes
    diagnostician: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """What an append makes of a run."""

    revision: int
    last_step: int
    verdict: str
    score: float
    since_step: int | None
    metrics: list[str]
    diagnostician: bytes
    changes: Sequence[diagnosis.VerdictChange]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkExtent:
    """Where a chunk lies, without its data."""

    first_step: int
    last_step: int
    step_count: int


_STATE_COLUMNS = (
    models.Run.id,
    models.Run.generation,
    models.Run.revision,
    models.Run.last_step,
    models.Run.verdict,
    models.Run.since_step,
    models.Run.statistics,
    models.Run.metrics,
    models.Run.layer_counts,
    models.Run.facts_digest,
    models.DiagnosisState.state,
)
_STATE = select(*_STATE_COLUMNS).outerjoin(models.DiagnosisState, models.DiagnosisState.run_id == models.Run.id)


def read_state(session: Session, run_id: UUID, *, is_locked: bool = False) -> RunState | None:
    """Read a run's state; locked, nobody else appends to it until the transaction ends."""
    query = _STATE.where(models.Run.id == run_id)
    if is_locked:
        query = query.with_for_update(of=models.Run)
    row = session.execute(query).one_or_none()
    if row is None:
        return None
    *columns, diagnostician = row
    names = [column.key for column in _STATE_COLUMNS[:-1]]
    return RunState(**dict(zip(names, columns, strict=True)), diagnostician=diagnostician)


def advance(session: Session, run_id: UUID, to: Advance, *, is_first: bool) -> None:
    """Write what an append made of a run."""
    session.execute(
        update(_RUNS)
        .where(_RUNS.c.id == run_id)
        .values(
            revision=to.revision,
            last_step=to.last_step,
            verdict=to.verdict,
            score=to.score,
            since_step=to.since_step,
            metrics=to.metrics,
            updated_at=datetime.now(UTC),
        )
    )
    if is_first:
        session.execute(insert(models.DiagnosisState), {"run_id": run_id, "state": to.diagnostician})
    else:
        session.execute(update(_STATES).where(_STATES.c.run_id == run_id).values(state=to.diagnostician))
    if to.changes:
        session.execute(
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


def verdict_changes(session: Session, run_id: UUID) -> Sequence[models.VerdictChange]:
    """Read every change of a run's verdict, oldest first."""
    change = models.VerdictChange
    return session.scalars(select(change).where(change.run_id == run_id).order_by(change.step, change.id)).all()


def tail(session: Session, run_id: UUID, count: int) -> list[ChunkExtent]:
    """Read where the last chunks of a run lie, last one first."""
    chunk = models.TelemetryChunk
    rows = session.execute(
        select(chunk.first_step, chunk.last_step, chunk.step_count)
        .where(chunk.run_id == run_id)
        .order_by(chunk.first_step.desc())
        .limit(count)
    )
    return [ChunkExtent(first_step=first, last_step=last, step_count=count) for first, last, count in rows]


def take_from(session: Session, run_id: UUID, first_step: int) -> list[bytes]:
    """Remove the chunks that begin at a step or later and return their data in order."""
    chunk = models.TelemetryChunk
    rows = session.execute(
        delete(chunk)
        .where(chunk.run_id == run_id, chunk.first_step >= first_step)
        .returning(chunk.first_step, chunk.data)
    )
    return [data for _, data in sorted(rows, key=lambda row: int(row[0]))]


def add_chunk(session: Session, run_id: UUID, extent: ChunkExtent, data: bytes) -> None:
    """Store a chunk."""
    session.execute(
        insert(models.TelemetryChunk),
        {
            "run_id": run_id,
            "first_step": extent.first_step,
            "last_step": extent.last_step,
            "step_count": extent.step_count,
            "data": data,
        },
    )


def chunks(session: Session, run_id: UUID, from_step: int, to_step: int) -> Iterator[bytes]:
    """Read the data of the chunks that touch a range of steps, in order, a few at a time."""
    chunk = models.TelemetryChunk
    rows = session.execute(
        select(chunk.data)
        .where(chunk.run_id == run_id, chunk.last_step >= from_step, chunk.first_step <= to_step)
        .order_by(chunk.first_step)
        .execution_options(yield_per=CHUNKS_READ_AT_ONCE)
    )
    for (data,) in rows:
        yield data


def first_step(session: Session, run_id: UUID) -> int | None:
    """Read the first stored step of a run."""
    chunk = models.TelemetryChunk
    return session.scalar(select(func.min(chunk.first_step)).where(chunk.run_id == run_id))


def layer_names(session: Session, run_id: UUID) -> list[str]:
    """Read the names of a run's layers."""
    layers = session.scalar(select(models.RunDetails.layers).where(models.RunDetails.run_id == run_id))
    return [layer["name"] for layer in layers or []]
