"""Writes the steps of a run: chunks, and the rollups of full chunks.

While a run goes on, a step is written once, and once more if its chunk is short. A full block becomes a chunk at once.
Short blocks become short chunks, which are folded into a full one when they have enough steps. The buckets of full
chunks are computed while their values are in memory and wait in the `Tail` until they fill a rollup. A process without
the tail reads it from the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID

from gradmedic_diagnosis import Block
from gradmedic_service.database.engine import Connection
from gradmedic_service.telemetry import chunk_repository
from gradmedic_service.telemetry.chunk_repository import ChunkExtent
from gradmedic_service.telemetry.chunks import concatenate_blocks, decode_chunk, encode_chunk
from gradmedic_service.telemetry.rollups import (
    ROLLUP_FACTOR,
    Bucket,
    Rollup,
    bucket_of_block,
    bucket_of_rollup,
    encode_rollup,
)

FULL_CHUNK_STEPS = 50
"""Number of steps from which on a chunk is full and never rewritten. A client sends blocks of this length under load;
they compress as well as longer ones, and reading a few steps decompresses little."""
MAX_TAIL_CHUNKS = FULL_CHUNK_STEPS
"""Largest number of chunks in a tail: short chunks of one step each, and the full chunk before them."""


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """The end of the stored steps of a run: what the next append may rewrite or complete."""

    extents: tuple[ChunkExtent, ...]
    """Extents of the last chunks, the last one first: those that are not full, and the full one before them."""
    buckets: tuple[Bucket, ...] | None
    """Buckets of the full chunks that no rollup holds yet; None where this process has not computed them all."""


def write_block(connection: Connection, run_id: UUID, block: Block, tail: Tail | None = None) -> Tail:
    """Write a block and return the new tail.

    A block that makes a full chunk with the short chunks before it is written together with them, in their place. So a
    step is rewritten at most once, and not at all where blocks are full. Long blocks become several full chunks; each
    of these may complete a rollup.
    """
    if tail is None:
        tail = Tail(tuple(chunk_repository.read_last_extents(connection, run_id, MAX_TAIL_CHUNKS)), None)
    extents, buckets = tail.extents, tail.buckets
    position = _next_position(extents[0]) if extents else 0
    short = [extent for extent in extents if extent.step_count < FULL_CHUNK_STEPS]
    step_count = len(block) + sum(extent.step_count for extent in short)
    if step_count < FULL_CHUNK_STEPS:
        step_count = len(block)
    elif short:
        chunks_before = chunk_repository.remove_chunks_from(connection, run_id, short[-1].first_step)
        block = concatenate_blocks([*map(decode_chunk, chunks_before), block])
        extents, position = extents[len(short) :], short[-1].position
    chunk_count = max(1, step_count // FULL_CHUNK_STEPS)
    for start, stop in pairwise(step_count * index // chunk_count for index in range(chunk_count + 1)):
        part = block if chunk_count == 1 else block.cut(start, stop)
        extent = ChunkExtent(
            first_step=int(part.steps[0]),
            last_step=int(part.steps[-1]),
            step_count=len(part),
            position=position,
        )
        chunk_repository.add_chunk(connection, run_id, extent, encode_chunk(part))
        if len(part) >= FULL_CHUNK_STEPS:
            buckets = _add_bucket(connection, run_id, part, position, buckets)
            extents = (extent,)
        else:
            extents = (extent, *extents)
        position = _next_position(extent)
    return Tail(extents, buckets)


def _next_position(extent: ChunkExtent) -> int | None:
    return None if extent.position is None else extent.position + 1


def _add_bucket(
    connection: Connection, run_id: UUID, block: Block, position: int | None, buckets: tuple[Bucket, ...] | None
) -> tuple[Bucket, ...] | None:
    """Add the bucket of a full chunk to those before it, and write the rollup that it completes, if any.

    Returns the buckets that no rollup holds, or None where some of them are missing.
    """
    if position is None:
        return None  # a version that wrote no rollups wrote the chunks
    index = position % ROLLUP_FACTOR
    before = () if index == 0 else buckets
    buckets = None if before is None or len(before) != index else (*before, bucket_of_block(block))
    if index < ROLLUP_FACTOR - 1:
        return buckets
    _write_rollup(connection, run_id, 1, position, buckets)
    return ()


def _write_rollup(
    connection: Connection, run_id: UUID, level: int, position: int, buckets: tuple[Bucket, ...] | None = None
) -> None:
    """Write the rollup that the row at `position` of the level below completes, and the ones above that it completes.

    Without `buckets`, the rows of the level below are read.
    """
    if buckets is None:
        rows = chunk_repository.read_last_rows(connection, run_id, level - 1, ROLLUP_FACTOR)
        if [row.position for row in rows] != list(range(position + 1 - ROLLUP_FACTOR, position + 1)):
            return  # a version that wrote no rollups wrote some of the rows
        buckets = tuple(
            bucket_of_block(decode_chunk(row.data)) if level == 1 else bucket_of_rollup(Rollup(row.data))
            for row in rows
        )
    rollup_position = position // ROLLUP_FACTOR
    chunk_repository.add_rollup(
        connection,
        run_id,
        level=level,
        first_step=buckets[0].first_step,
        last_step=buckets[-1].last_step,
        position=rollup_position,
        data=encode_rollup(buckets),
    )
    if (rollup_position + 1) % ROLLUP_FACTOR == 0:
        _write_rollup(connection, run_id, level + 1, rollup_position)
