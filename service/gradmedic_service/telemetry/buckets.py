"""Series for a picture: many steps become few buckets, and nothing that matters is averaged away.

One idea: a bucket keeps minimum, mean and maximum of its finite values and counts the others, so that one NaN among a
million steps is still there. Buckets are equal ranges of steps; those without a stored step are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from gradmedic import wire
from gradmedic_service.telemetry.chunks import Chunk


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

    def add(self, chunk: Chunk) -> None:
        """Add the steps of a chunk that are in the range."""
        steps = chunk.steps
        bucket = (steps - self._first) // self._width
        inside = (steps >= self._first) & (steps <= self._last)
        if not inside.any():
            return
        self._note_steps(bucket[inside], steps[inside])
        selection = self._selection
        layer_count = len(selection.layers)
        if selection.statistics and chunk.sampled.any():
            rows = inside[chunk.sampled]
            positions = np.array([position for _, position in selection.layers], dtype=np.int64)
            known = np.flatnonzero(positions < chunk.present.shape[0])
            present = chunk.present[positions[known]][:, rows]
            for index, name in enumerate(selection.statistics):
                values = chunk.statistic(name)[positions[known]][:, rows].astype(np.float64)
                self._accumulate(index * layer_count + known, bucket[chunk.sampled][rows], values, present)
        offset = len(selection.statistics) * layer_count
        for index, name in enumerate(selection.series):
            series = chunk.series.get(name) or chunk.metrics.get(name)
            if series is not None:
                row = np.array([offset + index])
                self._accumulate(row, bucket[inside], series.values[None, inside], series.present[None, inside])

    def result(self, run_id: UUID) -> wire.SeriesResult:
        """Return the buckets that hold a step."""
        kept = np.flatnonzero(self._first_step >= 0)
        names: list[tuple[str, str | None]] = [
            (statistic, layer) for statistic in self._selection.statistics for layer, _ in self._selection.layers
        ]
        names += [(series, None) for series in self._selection.series]
        return wire.SeriesResult(
            run_id=run_id,
            first_step=self._first_step[kept].tolist(),
            last_step=self._last_step[kept].tolist(),
            series=[self._series(row, kept, *name) for row, name in enumerate(names)],
        )

    def _note_steps(self, bucket: NDArray[np.int64], steps: NDArray[np.int64]) -> None:
        buckets, starts = np.unique(bucket, return_index=True)
        ends = np.append(starts[1:], len(bucket)) - 1
        unseen = self._first_step[buckets] < 0
        self._first_step[buckets[unseen]] = steps[starts[unseen]]
        self._last_step[buckets] = steps[ends]

    def _accumulate(
        self,
        rows: NDArray[np.int64],
        bucket: NDArray[np.int64],
        values: NDArray[np.float64],
        present: NDArray[np.bool_],
    ) -> None:
        """Add `values[series, step]`, where present, to the buckets of the steps, which ascend."""
        if not values.size:
            return
        buckets, starts = np.unique(bucket, return_index=True)
        finite = present & np.isfinite(values)
        at = np.ix_(rows, buckets)
        self._count[at] += np.add.reduceat(present, starts, axis=1, dtype=np.int64)
        self._finite[at] += np.add.reduceat(finite, starts, axis=1, dtype=np.int64)
        with np.errstate(over="ignore", invalid="ignore"):
            self._sum[at] += np.add.reduceat(np.where(finite, values, 0.0), starts, axis=1)
        lowest = np.minimum.reduceat(np.where(finite, values, np.inf), starts, axis=1)
        highest = np.maximum.reduceat(np.where(finite, values, -np.inf), starts, axis=1)
        self._min[at] = np.minimum(self._min[at], lowest)
        self._max[at] = np.maximum(self._max[at], highest)

    def _series(self, row: int, kept: NDArray[np.int64], statistic: str, layer: str | None) -> wire.Series:
        count, finite = self._count[row, kept], self._finite[row, kept]
        lowest, highest = self._min[row, kept], self._max[row, kept]
        # A sum of numbers near the largest may overflow; their mean is still between the lowest and the highest.
        mean = np.clip(self._sum[row, kept] / np.maximum(finite, 1), lowest, highest)
        return wire.Series(
            statistic=statistic,
            layer=layer,
            min=_where(finite > 0, lowest),
            mean=_where(finite > 0, mean),
            max=_where(finite > 0, highest),
            count=count.tolist(),
            nonfinite=(count - finite).tolist(),
        )


def _where(mask: NDArray[np.bool_], values: NDArray[np.float64]) -> list[Any]:
    return [value if is_there else None for value, is_there in zip(values.tolist(), mask.tolist(), strict=True)]
