"""Series at the resolution that is asked for: many steps become few buckets.

A bucket of the answer holds minimum, mean and maximum of its finite values and counts the others, so that one NaN among
a million steps still counts. Buckets are equal ranges of steps; a bucket without a stored step is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
from numpy.typing import NDArray

from gradmedic_service.telemetry.chunks import Chunk
from gradmedic_service.telemetry.rollups import Aggregates, Rollup, aggregate_each, concatenate_aggregates
from gradmedic_service.telemetry.series_table import SeriesTable

POINT_BYTES = 2 * 6 * 8
"""Bytes of memory that a point of a table takes while it is made: six numbers of eight bytes, copied once where a
bucket has no step."""
ROLLUPS_ADDED_AT_ONCE = 64
"""Number of rollups that are added together: adding that many costs as much as adding one."""


@dataclass(frozen=True, slots=True)
class SeriesSelection:
    """The series of an answer: every statistic with every layer, then the series of the steps."""

    statistics: tuple[str, ...]
    layers: tuple[tuple[str, int], ...]
    """Name and position of each layer."""
    series: tuple[str, ...]
    """Names of series and metrics."""

    @property
    def series_count(self) -> int:
        """Number of series in the answer, at least 1."""
        return max(1, len(self.statistics) * len(self.layers) + len(self.series))


class SeriesAccumulator:
    """Accumulates chunks and rollups, in order, into at most `max_points` buckets of the steps `first` to `last`."""

    def __init__(self, selection: SeriesSelection, first: int, last: int, max_points: int) -> None:
        self._selection = selection
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

    def add_chunk(self, chunk: Chunk) -> None:
        """Add the steps of a chunk that are in the range."""
        steps = chunk.steps
        in_range = (steps >= self._first) & (steps <= self._last)
        if not in_range.any():
            return
        bucket = (steps - self._first) // self._width
        self._add_steps(bucket[in_range], steps[in_range], steps[in_range])
        selection = self._selection
        if selection.statistics and chunk.sampled.any():
            rows = in_range[chunk.sampled]
            selected, positions = self._select_layers(chunk.present.shape[0])
            present = chunk.present[positions][:, rows]
            for index, name in enumerate(selection.statistics):
                values = chunk.read_statistic(name)[positions][:, rows]
                series = index * len(selection.layers) + selected
                self._add_aggregates(series, bucket[chunk.sampled][rows], aggregate_each(values, present))
        for row, name in self._series_rows():
            step_series = chunk.series.get(name) or chunk.metrics.get(name)
            if step_series is not None:
                aggregates = aggregate_each(step_series.values[None, in_range], step_series.present[None, in_range])
                self._add_aggregates(row, bucket[in_range], aggregates)

    def add_rollups(self, rollups: Iterable[Rollup]) -> None:
        """Add rollups that lie in the range; each of their buckets counts where its first step lies."""
        for _, same_shape in groupby(rollups, key=lambda rollup: (rollup.layer_count, rollup.series_names)):
            while batch := list(islice(same_shape, ROLLUPS_ADDED_AT_ONCE)):
                self._add_batch(batch)

    def _add_batch(self, rollups: Sequence[Rollup]) -> None:
        """Add rollups that have the same layers and series."""
        first_step = np.concatenate([rollup.first_step for rollup in rollups])
        bucket = (first_step - self._first) // self._width
        self._add_steps(bucket, first_step, np.concatenate([rollup.last_step for rollup in rollups]))
        selection = self._selection
        if selection.statistics:
            count = rollups[0].layer_count
            selected, positions = self._select_layers(count)
            layers = None if np.array_equal(positions, np.arange(count)) else positions
            for index, name in enumerate(selection.statistics):
                aggregates = concatenate_aggregates([rollup.read_statistic(name, layers) for rollup in rollups])
                self._add_aggregates(index * len(selection.layers) + selected, bucket, aggregates)
        for row, name in self._series_rows():
            if name in rollups[0].series_names:
                aggregates = concatenate_aggregates([rollup.series[name].as_row() for rollup in rollups])
                self._add_aggregates(row, bucket, aggregates)

    def _select_layers(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which of the selected layers are among the first `count` of the run, and their positions there."""
        positions = np.array([position for _, position in self._selection.layers], dtype=np.int64)
        selected = np.flatnonzero(positions < count)
        return selected, positions[selected]

    def _series_rows(self) -> list[tuple[NDArray[np.int64], str]]:
        """Return row and name of each series of the steps."""
        offset = len(self._selection.statistics) * len(self._selection.layers)
        return [(np.array([offset + index]), name) for index, name in enumerate(self._selection.series)]

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
        count = aggregates.count.astype(np.int64)
        finite = count - aggregates.nonfinite
        at = np.ix_(rows, buckets)
        self._count[at] += np.add.reduceat(count, starts, axis=1)
        self._finite[at] += np.add.reduceat(finite, starts, axis=1)
        if aggregates.infinite.any():
            self._infinite[at] += np.add.reduceat(aggregates.infinite.astype(np.int64), starts, axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            self._sum[at] += np.add.reduceat(aggregates.mean * finite.astype(np.float64), starts, axis=1)
        is_finite = finite > 0
        lowest = np.minimum.reduceat(np.where(is_finite, aggregates.low, np.inf), starts, axis=1)
        highest = np.maximum.reduceat(np.where(is_finite, aggregates.high, -np.inf), starts, axis=1)
        self._min[at] = np.minimum(self._min[at], lowest)
        self._max[at] = np.maximum(self._max[at], highest)
