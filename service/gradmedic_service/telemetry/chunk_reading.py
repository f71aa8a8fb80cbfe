"""Reads the stored steps of a run, chunk by chunk.

The last steps of a run that sends few steps at a time lie in many short chunks. They are joined here, so that reading
them costs about as much as reading one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

from gradmedic_service.database.engine import Connection
from gradmedic_service.telemetry import chunk_repository
from gradmedic_service.telemetry.chunk_writer import FULL_CHUNK_STEPS
from gradmedic_service.telemetry.chunks import Chunk, concatenate_blocks, decode_chunk, encode_chunk


def read_chunks(connection: Connection, run_id: UUID, from_step: int, to_step: int) -> Iterator[Chunk]:
    """Read the chunks that touch a range of steps, in order, a few at a time; short ones are joined."""
    short: list[bytes] = []
    steps = 0
    for step_count, data in chunk_repository.read_chunks(connection, run_id, from_step, to_step):
        if short and step_count >= FULL_CHUNK_STEPS:
            yield _join(short)
            short, steps = [], 0
        if step_count >= FULL_CHUNK_STEPS:
            yield Chunk(data)
            continue
        short.append(data)
        steps += step_count
        if steps >= FULL_CHUNK_STEPS:
            yield _join(short)
            short, steps = [], 0
    if short:
        yield _join(short)


def _join(chunks: list[bytes]) -> Chunk:
    if len(chunks) == 1:
        return Chunk(chunks[0])
    return Chunk(encode_chunk(concatenate_blocks([*map(decode_chunk, chunks)]), is_compressed=False))
