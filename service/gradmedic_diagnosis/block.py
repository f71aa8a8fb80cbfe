"""A block: consecutive steps of one run, as arrays.

Only the masks show that something is absent. A NaN in `values` or in a series is a NaN that the training job computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class StepSeries:
    """One number per step. `values[step]` (float64) counts only where `present[step]` is true."""

    values: NDArray[np.float64]
    present: NDArray[np.bool_]

    def to_list(self, absent: T) -> list[float | T]:
        """Return the values as Python floats, `absent` where a step has none."""
        pairs = zip(self.values.tolist(), self.present.tolist(), strict=True)
        return [value if present else absent for value, present in pairs]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Consecutive steps of one run.

    `steps`, `sampled` and `skipped` have one entry a step; `values` and `present` one row a *sampled* step, in order.
    """

    steps: NDArray[np.int64]
    """Step numbers, strictly increasing."""
    sampled: NDArray[np.bool_]
    """Whether the step carries statistics."""
    skipped: NDArray[np.bool_]
    """Whether a loss scaler or a guard skipped the step."""
    statistics: tuple[str, ...]
    """Names of the statistics, in the order of the last axis of `values`."""
    values: NDArray[np.float32]
    """The statistics, `[sampled step, layer, statistic]`."""
    present: NDArray[np.bool_]
    """`[sampled step, layer]`: whether an optimizer touched the layer in that step. `values` is 0 where none did."""
    series: Mapping[str, StepSeries] = field(default_factory=dict)
    """The series that were sent, of `gradmedic.protocol.statistics.SERIES`, by name."""
    metrics: Mapping[str, StepSeries] = field(default_factory=dict)
    """The user's own metrics and the probes, by name."""

    def __len__(self) -> int:
        return len(self.steps)

    def cut(self, start: int, stop: int) -> Block:
        """Return the block of the steps at positions `start` to `stop` (as in slicing) of this one."""
        rows_before = int(np.count_nonzero(self.sampled[:start]))
        rows = slice(rows_before, rows_before + int(np.count_nonzero(self.sampled[start:stop])))

        def cut_series(series: Mapping[str, StepSeries]) -> dict[str, StepSeries]:
            return {
                name: StepSeries(part.values[start:stop], part.present[start:stop]) for name, part in series.items()
            }

        return Block(
            steps=self.steps[start:stop],
            sampled=self.sampled[start:stop],
            skipped=self.skipped[start:stop],
            statistics=self.statistics,
            values=self.values[rows],
            present=self.present[rows],
            series=cut_series(self.series),
            metrics=cut_series(self.metrics),
        )
