"""Series for a picture: many steps become few buckets, and nothing that matters is averaged away.

One idea: a bucket keeps minimum, mean and maximum of its finite values and counts the others, so that one NaN among a
million steps is still there. Buckets are equal ranges of steps; those without a stored step are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
from numpy.typing import NDArray

from gradmedic_service.telemetry.chunks import Chunk
from gradmedic_service.telemetry.rollups import Extremes, Rollup, each_by_itself, joined
from gradmedic_service.telemetry.series_table import SeriesTable

ROWS_AT_ONCE = 64
"""Rollup rows that are added together: adding costs the same for one."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which series: every statistic with every layer, then the series of the steps."""

    statistics: tuple[str, ...]
    layers: tuple[tuple[str, int], ...]
    """Names and positions."""
    series: tuple[str, ...]

    @property
    def series_count(self) -> int:
        """How many series the answer has."""
        return max(1, len(self.statistics) * len(self.layers) + len(self.series))


class Buckets:
    """Accumulates chunks, in order, over the steps `first` to `last`."""

    def __init__(self, selection: Selection, first: int, last: int, max_points: int) -> None:
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

    def add(self, chunk: Chunk) -> None:
        """Add the steps of a chunk that are in the range."""
        steps = chunk.steps
        inside = (steps >= self._first) & (steps <= self._last)
        if not inside.any():
            return
        bucket = (steps - self._first) // self._width
        self._note_steps(bucket[inside], steps[inside], steps[inside])
        selection = self._selection
        if selection.statistics and chunk.sampled.any():
            rows = inside[chunk.sampled]
            known, positions = self._known_layers(chunk.present.shape[0])
            present = chunk.present[positions][:, rows]
            for index, name in enumerate(selection.statistics):
                values = chunk.statistic(name)[positions][:, rows]
                at = index * len(selection.layers) + known
                self._accumulate(at, bucket[chunk.sampled][rows], each_by_itself(values, present))
        for row, name in self._series_rows():
            series = chunk.series.get(name) or chunk.metrics.get(name)
            if series is not None:
                parts = each_by_itself(series.values[None, inside], series.present[None, inside])
                self._accumulate(row, bucket[inside], parts)

    def add_rollups(self, rollups: Iterable[Rollup]) -> None:
        """Add rows that lie in the range; each of their buckets goes where its first step does."""
        for _, alike in groupby(rollups, key=lambda rollup: (rollup.layer_count, rollup.series_names)):
            while rows := list(islice(alike, ROWS_AT_ONCE)):
                self._add_alike(rows)

    def _add_alike(self, rollups: Sequence[Rollup]) -> None:
        first_step = np.concatenate([rollup.first_step for rollup in rollups])
        bucket = (first_step - self._first) // self._width
        self._note_steps(bucket, first_step, np.concatenate([rollup.last_step for rollup in rollups]))
        selection = self._selection
        if selection.statistics:
            count = rollups[0].layer_count
            known, positions = self._known_layers(count)
            chosen = None if np.array_equal(positions, np.arange(count)) else positions
            for index, name in enumerate(selection.statistics):
                parts = joined([rollup.statistic(name, chosen) for rollup in rollups])
                self._accumulate(index * len(selection.layers) + known, bucket, parts)
        for row, name in self._series_rows():
            if name in rollups[0].series_names:
                self._accumulate(row, bucket, joined([rollup.series[name].as_row() for rollup in rollups]))

    def _known_layers(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which of the selected layers are among the first `count` of the run, and their positions there."""
        positions = np.array([position for _, position in self._selection.layers], dtype=np.int64)
        known = np.flatnonzero(positions < count)
        return known, positions[known]

    def _series_rows(self) -> list[tuple[NDArray[np.int64], str]]:
        offset = len(self._selection.statistics) * len(self._selection.layers)
        return [(np.array([offset + index]), name) for index, name in enumerate(self._selection.series)]

    def table(self) -> SeriesTable:
        """Return the buckets that hold a step."""
        kept = np.flatnonzero(self._first_step >= 0)
        names: list[tuple[str, str | None]] = [
            (statistic, layer) for statistic in self._selection.statistics for layer, _ in self._selection.layers
        ]
        names += [(series, None) for series in self._selection.series]
        count, finite = self._count[: len(names), kept], self._finite[: len(names), kept]
        lowest, highest = self._min[: len(names), kept], self._max[: len(names), kept]
        # A sum of numbers near the largest may overflow; their mean is still between the lowest and the highest.
        mean = np.clip(self._sum[: len(names), kept] / np.maximum(finite, 1), lowest, highest)
        return SeriesTable(
            names=names,
            first_step=self._first_step[kept],
            last_step=self._last_step[kept],
            numbers={"min": lowest, "mean": mean, "max": highest},
            count=count,
            nonfinite=count - finite,
            infinite=self._infinite[: len(names), kept],
        )

    def _note_steps(
        self, bucket: NDArray[np.int64], first_step: NDArray[np.int64], last_step: NDArray[np.int64]
    ) -> None:
        buckets, starts = np.unique(bucket, return_index=True)
        ends = np.append(starts[1:], len(bucket)) - 1
        unseen = self._first_step[buckets] < 0
        self._first_step[buckets[unseen]] = first_step[starts[unseen]]
        self._last_step[buckets] = last_step[ends]

    def _accumulate(self, rows: NDArray[np.int64], bucket: NDArray[np.int64], parts: Extremes) -> None:
        """Add `parts[series, part]` to the buckets of the parts, which ascend."""
        if not parts.count.size:
            return
        buckets, starts = np.unique(bucket, return_index=True)
        counted = parts.count.astype(np.int64)
        finite = counted - parts.nonfinite
        at = np.ix_(rows, buckets)
        self._count[at] += np.add.reduceat(counted, starts, axis=1)
        self._finite[at] += np.add.reduceat(finite, starts, axis=1)
        if parts.infinite.any():
            self._infinite[at] += np.add.reduceat(parts.infinite.astype(np.int64), starts, axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            self._sum[at] += np.add.reduceat(parts.mean * finite.astype(np.float64), starts, axis=1)
        is_finite = finite > 0
        lowest = np.minimum.reduceat(np.where(is_finite, parts.low, np.inf), starts, axis=1)
        highest = np.maximum.reduceat(np.where(is_finite, parts.high, -np.inf), starts, axis=1)
        self._min[at] = np.minimum(self._min[at], lowest)
        self._max[at] = np.maximum(self._max[at], highest)
