"""Writing the steps of a run: chunks, and rollups of them.

One idea: what is written is never read again while the run goes on. A full block becomes a chunk, once; the buckets of
its values are taken while it is in memory and wait (`Tail`) until there are enough of them for a row of the rollups.
Who does not have the tail at hand reads it from the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID

from gradmedic_diagnosis import Block
from gradmedic_service.database.engine import Connection
from gradmedic_service.telemetry import repository
from gradmedic_service.telemetry.chunks import concatenate, decode, encode
from gradmedic_service.telemetry.repository import ChunkExtent
from gradmedic_service.telemetry.rollups import FACTOR, Bucket, Rollup, bucket_of
from gradmedic_service.telemetry.rollups import encode as encode_rollup

FULL_CHUNK_STEPS = 50
"""A chunk of this many steps is left alone: it is what a client sends under load, compresses as well as a longer one,
and is small enough that reading a few steps unpacks little."""
MAX_TAIL_CHUNKS = FULL_CHUNK_STEPS.bit_length() + 1
"""Chunks that are not full grow smaller by halves towards the end, so that there are never more."""


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """How the stored steps of a run end."""

    extents: tuple[ChunkExtent, ...]
    """The last chunks, last one first: those that are not full, and the full one before them."""
    buckets: tuple[Bucket, ...] | None
    """Of the full chunks that no row of the rollups holds yet; None where they were not seen."""


def store(connection: Connection, run_id: UUID, block: Block, tail: Tail | None = None) -> Tail:
    """Write a block, together with the chunks before it that are not full and no longer than what follows them.

    As in a binary counter, a step is rewritten only into a chunk at least twice as long as its own: at most
    log2(FULL_CHUNK_STEPS) + 1 times, and not at all where blocks are full. Long blocks become several full chunks, and
    each full chunk may complete a row of the rollups. Returns the tail as it is then.
    """
    if tail is None:
        tail = Tail(tuple(repository.tail(connection, run_id, MAX_TAIL_CHUNKS)), None)
    extents, buckets = tail.extents, tail.buckets
    count, position = len(block), _position_after(extents[0]) if extents else 0
    taken = 0
    for extent in extents:
        if extent.step_count >= FULL_CHUNK_STEPS or extent.step_count > count:
            break
        count += extent.step_count
        position = extent.position
        taken += 1
    if taken:
        parts_before = repository.take_from(connection, run_id, extents[taken - 1].first_step)
        block = concatenate([*map(decode, parts_before), block])
        extents = extents[taken:]
    parts = max(1, count // FULL_CHUNK_STEPS)
    for start, stop in pairwise(count * part // parts for part in range(parts + 1)):
        chunk = block if parts == 1 else block.cut(start, stop)
        extent = ChunkExtent(
            first_step=int(chunk.steps[0]),
            last_step=int(chunk.steps[-1]),
            step_count=len(chunk),
            position=position,
        )
        repository.add_chunk(connection, run_id, extent, encode(chunk))
        if len(chunk) >= FULL_CHUNK_STEPS:
            buckets = _roll_up(connection, run_id, chunk, position, buckets)
            extents = (extent,)
        else:
            extents = (extent, *extents)
        position = _position_after(extent)
    return Tail(extents, buckets)


def _position_after(extent: ChunkExtent) -> int | None:
    return None if extent.position is None else extent.position + 1


def _roll_up(
    connection: Connection, run_id: UUID, chunk: Block, position: int | None, buckets: tuple[Bucket, ...] | None
) -> tuple[Bucket, ...] | None:
    """Take the bucket of a full chunk, and write the row of rollups that it completes, if it does.

    Returns the buckets that no row holds, or None where some of them were not seen.
    """
    if position is None:
        return None  # the chunks are of a version that made no rollups
    place = position % FACTOR
    seen = () if place == 0 else buckets
    buckets = None if seen is None or len(seen) != place else (*seen, bucket_of(chunk))
    if place < FACTOR - 1:
        return buckets
    _write_rows(connection, run_id, 1, position, buckets)
    return ()


def _write_rows(
    connection: Connection, run_id: UUID, level: int, position: int, buckets: tuple[Bucket, ...] | None = None
) -> None:
    """Write the row of a level that the part at a position of the level below completes, and those above it."""
    if buckets is None:
        parts = repository.last_parts(connection, run_id, level - 1, FACTOR)
        if [part.position for part in parts] != list(range(position + 1 - FACTOR, position + 1)):
            return  # some are of a version that made no rollups
        buckets = tuple(bucket_of(decode(part.data) if level == 1 else Rollup(part.data)) for part in parts)
    place = position // FACTOR
    repository.add_rollup(
        connection,
        run_id,
        level=level,
        first_step=buckets[0].first_step,
        last_step=buckets[-1].last_step,
        position=place,
        data=encode_rollup(buckets),
    )
    if (place + 1) % FACTOR == 0:
        _write_rows(connection, run_id, level + 1, place)
