"""Reading the stored steps of a run as they were sent, a page of blocks at a time."""

from __future__ import annotations

import numpy as np

from gradmedic.protocol.packed_blocks import BlockArrays, BlocksResult, PackedBlock, Values, pack_block
from gradmedic_diagnosis import Block
from gradmedic_service.database.engine import Connection
from gradmedic_service.http.answers import AnswerMemory
from gradmedic_service.telemetry import chunk_repository
from gradmedic_service.telemetry.chunks import Chunk, widen_block
from gradmedic_service.telemetry.repository import RunRow

PAGE_VALUES = 2**20
"""Number of values after which an answer takes no further chunk: 4 MiB of statistics. One chunk is always answered."""
VALUE_BYTES = 16
"""Bytes of memory for a value of an answer: in the chunk, in the block, packed, and in the answer's body."""


def read_page(
    connection: Connection, run: RunRow, from_step: int, to_step: int | None, memory: AnswerMemory
) -> BlocksResult:
    """Return the blocks from a step on, until an answer is full, with all layers that the run has now.

    Raises Overloaded if other answers take the memory for it.
    """
    last = -1 if run.last_step is None else run.last_step
    last = last if to_step is None else min(to_step, last)
    layer_count = run.layer_counts[-1]
    blocks: list[PackedBlock] = []
    values = 0
    next_step = from_step
    while next_step <= last:
        stored = chunk_repository.read_first_chunks(connection, run.id, next_step, last, 1)
        if not stored:
            break
        chunk = Chunk(stored[0])
        count = chunk.count_values(layer_count)
        if blocks and values + count > PAGE_VALUES:
            return BlocksResult(generation=run.generation, next_step=next_step, blocks=blocks)
        memory.reserve(min(count * VALUE_BYTES, memory.largest))  # so that any chunk can be read at a quiet time
        values += count
        block = widen_block(chunk.to_block(), layer_count)
        start, stop = np.searchsorted(block.steps, [next_step, last + 1])
        blocks.append(_pack(block.cut(int(start), int(stop))))
        next_step = int(block.steps[-1]) + 1
    return BlocksResult(generation=run.generation, next_step=None, blocks=blocks)


def _pack(block: Block) -> PackedBlock:
    return pack_block(
        BlockArrays(
            steps=block.steps,
            sampled=block.sampled,
            skipped=block.skipped,
            present=block.present,
            statistics={name: block.values[:, :, index] for index, name in enumerate(block.statistics)},
            series={name: Values(series.values, series.present) for name, series in block.series.items()},
            metrics={name: Values(series.values, series.present) for name, series in block.metrics.items()},
        )
    )
