"""A block: consecutive steps of one run, as arrays.

One idea: what was measured and what was absent never mix. A NaN in `values` or in a series is a NaN that the training
job computed; absence is said by the masks alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class StepSeries:
    """A number per step: `values[step]` (float64) counts where `present[step]`."""

    values: NDArray[np.float64]
    present: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Consecutive steps of one run.

    `steps`, `sampled` and `skipped` have one entry a step; `values` and `present` one row a *sampled* step, in order.
    """

    steps: NDArray[np.int64]
    """Strictly increasing."""
    sampled: NDArray[np.bool_]
    """Which steps carry statistics."""
    skipped: NDArray[np.bool_]
    """Which steps a loss scaler skipped."""
    statistics: tuple[str, ...]
    """Names of the last axis of `values`."""
    values: NDArray[np.float32]
    """`[sampled step, layer, statistic]`."""
    present: NDArray[np.bool_]
    """`[sampled step, layer]`: an optimizer touched the layer in that step. `values` is 0 where it did not."""
    series: Mapping[str, StepSeries] = field(default_factory=dict)
    """`loss`, `learning_rate`, `time`, `loss_scale`, `clip_coefficient`; those that were sent."""
    metrics: Mapping[str, StepSeries] = field(default_factory=dict)
    """The user's own, by name."""

    def __len__(self) -> int:
        return len(self.steps)

    def cut(self, start: int, stop: int) -> Block:
        """Return the block of the steps at positions `start` to `stop` (as in slicing) of this one."""
        rows_before = int(np.count_nonzero(self.sampled[:start]))
        rows = slice(rows_before, rows_before + int(np.count_nonzero(self.sampled[start:stop])))

        def cut_series(series: Mapping[str, StepSeries]) -> dict[str, StepSeries]:
            return {name: StepSeries(s.values[start:stop], s.present[start:stop]) for name, s in series.items()}

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
