"""Series at the resolution that is asked for: many steps become few buckets.

A bucket of the answer holds minimum, mean and maximum of its finite values and counts the others, so that one NaN among
a million steps still counts. Buckets are equal ranges of steps; a bucket without a stored step is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradmedic_service.telemetry.chunks import Chunk
from gradmedic_service.telemetry.rollup_cache import EVERY_LAYER, DecodedPart
from gradmedic_service.telemetry.rollups import Aggregates, aggregate_each, concatenate_aggregates
from gradmedic_service.telemetry.series_table import SeriesTable

POINT_BYTES = 2 * 6 * 8
"""Bytes of memory that a point of a table takes while it is made: six numbers of eight bytes, copied once where a
bucket has no step."""
ROLLUPS_ADDED_AT_ONCE = 64
"""Number of rollups that are added together: adding that many costs as much as adding one."""
CHUNKS_ADDED_AT_ONCE = 16
"""Number of chunks that are added together; a chunk has three times as many numbers as a rollup."""


@dataclass(frozen=True, slots=True)
class SeriesSelection:
    """The series of an answer: every statistic with every layer, then the series of the steps."""

    statistics: tuple[str, ...]
    layers: tuple[tuple[str, int], ...]
    """Name and position of each layer."""
    series: tuple[str, ...]
    """Names of series and metrics."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the statistics, then of the series."""
        return (*self.statistics, *self.series)

    @property
    def series_count(self) -> int:
        """Number of series in the answer, at least 1."""
        return max(1, len(self.statistics) * len(self.layers) + len(self.series))


class SeriesAccumulator:
    """Accumulates chunks and rollups, in order, into at most `max_points` buckets of the steps `first` to `last`."""

    def __init__(self, selection: SeriesSelection, first: int, last: int, max_points: int) -> None:
        self._selection = selection
        self._selected_layers: dict[int, tuple[NDArray[np.int64], slice | NDArray[np.int64]]] = {}
        """Results of `select_layers`, by its argument."""
        self._first, self._last = first, last
        self._width = -(-(last - first + 1) // max_points)
        count = -(-(last - first + 1) // self._width)
        self._first_step = np.full(count, -1, dtype=np.int64)
        self._last_step = np.full(count, -1, dtype=np.int64)
        shape = (selection.series_count, count)
        self._min = np.full(shape, np.inf)
        self._max = np.full(shape, -np.inf)
        self._sum = np.zeros(shape)
        self._count = np.zeros(shape, dtype=np.int64)
        self._finite = np.zeros(shape, dtype=np.int64)
        self._infinite = np.zeros(shape, dtype=np.int64)

    def add_chunks(self, chunks: Iterable[Chunk]) -> None:
        """Add the steps of chunks that are in the range."""
        for _, same_shape in groupby(chunks, key=lambda chunk: (chunk.layer_count, chunk.series_names)):
            while batch := list(islice(same_shape, CHUNKS_ADDED_AT_ONCE)):
                self._add_chunk_batch(batch)

    def _add_chunk_batch(self, chunks: Sequence[Chunk]) -> None:
        """Add chunks that have the same layers and series."""
        in_range = [(chunk.steps >= self._first) & (chunk.steps <= self._last) for chunk in chunks]
        steps = _join_columns([chunk.steps for chunk in chunks], in_range)
        if not len(steps):
            return
        bucket = (steps - self._first) // self._width
        self._add_steps(bucket, steps, steps)
        selection = self._selection
        sampled = _join_columns([chunk.sampled for chunk in chunks], in_range)
        if selection.statistics and sampled.any():
            rows, layers = self.select_layers(chunks[0].layer_count)
            columns = [chosen[chunk.sampled] for chunk, chosen in zip(chunks, in_range, strict=True)]
            present = _join_columns([chunk.present[layers] for chunk in chunks], columns)
            for index, name in enumerate(selection.statistics):
                values = _join_columns([chunk.read_statistic(name)[layers] for chunk in chunks], columns)
                aggregates = aggregate_each(values, present)
                self._add_aggregates(index * len(selection.layers) + rows, bucket[sampled], aggregates)
        for row, name in enumerate(selection.series, len(selection.statistics) * len(selection.layers)):
            all_series = [chunk.series.get(name) or chunk.metrics.get(name) for chunk in chunks]
            present_series = [series for series in all_series if series is not None]
            if present_series:  # the chunks of a batch have the same series
                values = _join_columns([series.values for series in present_series], in_range)[None]
                present = _join_columns([series.present for series in present_series], in_range)[None]
                self._add_aggregates(np.array([row]), bucket, aggregate_each(values, present))

    def add_rollups(self, rollups: Iterable[Sequence[DecodedPart]]) -> None:
        """Add rollups that lie in the range; each of their buckets counts where its first step lies.

        Args:
            rollups: the parts of each rollup, in the order of the selection's names: of a statistic only the layers
                that `select_layers` returns.
        """
        for _, same_shape in groupby(rollups, key=lambda parts: [(p.layer_count, p.aggregates is None) for p in parts]):
            while batch := list(islice(same_shape, ROLLUPS_ADDED_AT_ONCE)):
                self._add_rollup_batch(batch)

    def _add_rollup_batch(self, rollups: Sequence[Sequence[DecodedPart]]) -> None:
        """Add rollups that have the same layers and series."""
        first_step = np.concatenate([parts[0].first_step for parts in rollups])
        bucket = (first_step - self._first) // self._width
        self._add_steps(bucket, first_step, np.concatenate([parts[0].last_step for parts in rollups]))
        selection = self._selection
        rows, _ = self.select_layers(rollups[0][0].layer_count)
        series_offset = len(selection.statistics) * (len(selection.layers) - 1)
        for index, parts_of_name in enumerate(zip(*rollups, strict=True)):
            parts = [part.aggregates for part in parts_of_name if part.aggregates is not None]
            if parts:  # the rollups of a batch have the same series
                is_statistic = index < len(selection.statistics)
                chosen = index * len(selection.layers) + rows if is_statistic else np.array([series_offset + index])
                self._add_aggregates(chosen, bucket, concatenate_aggregates(parts))

    def select_layers(self, count: int) -> tuple[NDArray[np.int64], slice | NDArray[np.int64]]:
        """Return which of the selected layers are among the first `count` of the run, and their positions there."""
        if count not in self._selected_layers:
            positions = np.array([position for _, position in self._selection.layers], dtype=np.int64)
            selected = np.flatnonzero(positions < count)
            is_every = np.array_equal(positions[selected], np.arange(count))
            layers = EVERY_LAYER if is_every else _as_slice(positions[selected])
            self._selected_layers[count] = selected, layers
        return self._selected_layers[count]

    def to_table(self) -> SeriesTable:
        """Return the buckets that have a stored step. Nothing can be added later: the table has the same memory."""
        used = np.flatnonzero(self._first_step >= 0)
        names: list[tuple[str, str | None]] = [
            (statistic, layer) for statistic in self._selection.statistics for layer, _ in self._selection.layers
        ]
        names += [(series, None) for series in self._selection.series]
        columns = slice(None) if len(used) == len(self._first_step) else used  # a slice copies nothing
        count, finite = self._count[: len(names), columns], self._finite[: len(names), columns]
        lowest, highest = self._min[: len(names), columns], self._max[: len(names), columns]
        # A sum of numbers near the largest may overflow; their mean is still between the lowest and the highest.
        mean = self._sum[: len(names), columns]
        np.divide(mean, np.maximum(finite, 1), out=mean)
        np.clip(mean, lowest, highest, out=mean)
        return SeriesTable(
            names=names,
            first_step=self._first_step[used],
            last_step=self._last_step[used],
            numbers={"min": lowest, "mean": mean, "max": highest},
            count=count,
            nonfinite=np.subtract(count, finite, out=finite),
            infinite=self._infinite[: len(names), columns],
        )

    def _add_steps(
        self, bucket: NDArray[np.int64], first_step: NDArray[np.int64], last_step: NDArray[np.int64]
    ) -> None:
        """Extend the buckets by steps; `bucket` ascends."""
        buckets, starts = np.unique(bucket, return_index=True)
        ends = np.append(starts[1:], len(bucket)) - 1
        is_new = self._first_step[buckets] < 0
        self._first_step[buckets[is_new]] = first_step[starts[is_new]]
        self._last_step[buckets] = last_step[ends]

    def _add_aggregates(self, rows: NDArray[np.int64], bucket: NDArray[np.int64], aggregates: Aggregates) -> None:
        """Add `aggregates[row, part]` to the bucket of each part; `bucket` ascends."""
        if not aggregates.count.size:
            return
        buckets, starts = np.unique(bucket, return_index=True)
        # A picture mostly selects whole ranges; NumPy is several times as fast with slices as with indices.
        row_part, bucket_part = _as_slice(rows), _as_slice(buckets)
        are_slices = isinstance(row_part, slice) and isinstance(bucket_part, slice)
        at = (row_part, bucket_part) if are_slices else np.ix_(rows, buckets)
        is_each_alone = len(buckets) == len(bucket)

        def reduce(ufunc: np.ufunc, numbers: NDArray[Any]) -> NDArray[Any]:
            return numbers if is_each_alone else ufunc.reduceat(numbers, starts, axis=1)

        count = aggregates.count.astype(np.int64)
        finite, low, high = count, aggregates.low, aggregates.high
        if aggregates.nonfinite.any():
            finite = count - aggregates.nonfinite
        if not finite.all():
            low, high = np.where(finite > 0, low, np.inf), np.where(finite > 0, high, -np.inf)
        self._count[at] += reduce(np.add, count)
        self._finite[at] += reduce(np.add, finite)
        if aggregates.infinite.any():
            self._infinite[at] += reduce(np.add, aggregates.infinite.astype(np.int64))
        with np.errstate(over="ignore", invalid="ignore"):
            self._sum[at] += reduce(np.add, aggregates.mean * finite.astype(np.float64))
        self._min[at] = np.minimum(self._min[at], reduce(np.minimum, low))
        self._max[at] = np.maximum(self._max[at], reduce(np.maximum, high))


def _as_slice(positions: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Return positions as a slice if they follow one another, else as they are."""
    count = len(positions)
    if count and np.array_equal(positions, np.arange(positions[0], positions[0] + count)):
        return slice(int(positions[0]), int(positions[0]) + count)
    return positions


def _join_columns(arrays: Sequence[NDArray[Any]], columns: Sequence[NDArray[np.bool_]]) -> NDArray[Any]:
    """Return the chosen columns, which are the last axis, of all arrays in order."""
    parts = [array if chosen.all() else array[..., chosen] for array, chosen in zip(arrays, columns, strict=True)]
    return np.concatenate(parts, axis=-1)
