"""Rollups that this process has decoded, so that a picture which is read again decodes only what is new.

A stored rollup never changes: it is written when it is complete, and a rewind, which removes some, begins a new
generation. So an entry is right for ever under its run, the run's generation and its first step. A run that was deleted
and created again has another time of creation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from gradmedic_service.bounded_cache import BoundedCache
from gradmedic_service.telemetry.rollups import AGGREGATE_NAMES, Aggregates, Rollup

MAX_BYTES = 32 * 2**20
"""Bytes of all entries together: heatmaps of a dozen runs of 100 layers."""
MAX_ENTRY_BYTES = 2**19
"""Bytes of the largest entry. A larger one would leave no place for the others of its picture."""
ENTRY_BYTES = 1024
"""Bytes of the objects of an entry, without the numbers of its arrays."""
EVERY_LAYER = slice(None)


@dataclass(frozen=True, slots=True)
class RunKey:
    """What the rollups of a run depend on."""

    run_id: UUID
    created_at: datetime
    generation: int


@dataclass(frozen=True, slots=True, eq=False)
class DecodedPart:
    """One statistic or series of a rollup.

    Attributes:
        first_step: first step of each bucket.
        last_step: last step of each bucket.
        layer_count: number of layers that the rollup has.
        aggregates: `[layer, bucket]` of a statistic, `[1, bucket]` of a series; None if the rollup lacks the series.
        size: bytes of memory.
    """

    first_step: NDArray[np.int64]
    last_step: NDArray[np.int64]
    layer_count: int
    aggregates: Aggregates | None
    size: int

    def of_layers(self, rows: slice | NDArray[np.int64]) -> DecodedPart:
        """Return the part of a statistic with these layers only."""
        if self.aggregates is None or rows is EVERY_LAYER:
            return self
        chosen = Aggregates(*(getattr(self.aggregates, name)[rows] for name in AGGREGATE_NAMES))
        if self.size > MAX_ENTRY_BYTES:  # a view would keep all layers in memory
            chosen = Aggregates(*(getattr(chosen, name).copy() for name in AGGREGATE_NAMES))
        return replace(self, aggregates=chosen)


def decode_part(rollup: Rollup, name: str) -> DecodedPart:
    """Return one statistic, of every layer, or one series of a rollup. Raises CorruptChunk."""
    aggregates: Aggregates | None = None
    size = ENTRY_BYTES
    if name in rollup.statistics:
        aggregates = _with_small_counts(rollup.read_statistic(name))
    elif name in rollup.series_names:
        aggregates = _with_small_counts(rollup.series[name].as_row())
    if aggregates is not None:
        arrays = (getattr(aggregates, field) for field in AGGREGATE_NAMES)
        size += sum(array.nbytes if array.strides[-1] else array.itemsize for array in arrays)
    return DecodedPart(rollup.first_step, rollup.last_step, rollup.layer_count, aggregates, size)


def _with_small_counts(aggregates: Aggregates) -> Aggregates:
    """Return the same aggregates; counts that are all equal, as they nearly always are, take the memory of one."""
    counts = (_shrink(getattr(aggregates, name)) for name in ("count", "nonfinite", "infinite"))
    return Aggregates(aggregates.low, aggregates.mean, aggregates.high, *counts)


def _shrink(counts: NDArray[np.uint32]) -> NDArray[np.uint32]:
    if counts.size and (counts == counts.flat[0]).all():
        return _constant_counts(int(counts.flat[0]), counts.shape)
    return counts


@lru_cache(maxsize=256)
def _constant_counts(value: int, shape: tuple[int, ...]) -> NDArray[np.uint32]:
    """Return an array that has the memory of one number."""
    return np.broadcast_to(np.uint32(value), shape)


class RollupCache:
    """The decoded rollups, the one that was read longest ago first. Threads may share it.

    Args:
        max_bytes: memory of all entries together.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._parts: BoundedCache[tuple[RunKey, int, int, str], DecodedPart] = BoundedCache(max_bytes)

    @property
    def size(self) -> int:
        """Bytes of all entries together."""
        return self._parts.size

    def find(self, run: RunKey, level: int, first_step: int, names: tuple[str, ...]) -> list[DecodedPart] | None:
        """Return the parts of these names of a rollup, or None if one of them is not here."""
        return self._parts.get_all([(run, level, first_step, name) for name in names])

    def add(self, run: RunKey, level: int, first_step: int, name: str, part: DecodedPart) -> None:
        """Add a part of a rollup unless it is too large; remove the oldest parts where the cache is full."""
        if part.size <= MAX_ENTRY_BYTES:
            self._parts.add((run, level, first_step, name), part, part.size)
