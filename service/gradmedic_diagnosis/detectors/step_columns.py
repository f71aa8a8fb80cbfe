"""The steps of a block as columns: what a detector reads to pass over steps at which nothing happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.runs import Training
from gradmedic_diagnosis.architecture import Architecture
from gradmedic_diagnosis.block import Block
from gradmedic_diagnosis.layer_averages import DepthProfile
from gradmedic_diagnosis.measurements import Measurements
from gradmedic_diagnosis.probes import Probes


@dataclass(frozen=True, eq=False, kw_only=True)
class StepColumns:
    """The steps of a block before the walk. A position is that of a step in the block, a row that of a sampled step."""

    block: Block
    measurements: Measurements
    depth_profile: DepthProfile
    architecture: Architecture
    training: Training
    probes: Sequence[Probes]
    """The probes of each step."""
    has_one_stream: bool
    """Whether all steps of the block belong to the only stream of losses that the run has."""

    def __len__(self) -> int:
        return len(self.block)

    @cached_property
    def rows_before(self) -> list[int]:
        """`[position]`: number of rows before a step; one more entry for the end of the block."""
        counts: list[int] = np.concatenate(([0], np.cumsum(self.block.sampled))).tolist()
        return counts

    @cached_property
    def is_row_skipped(self) -> NDArray[np.bool_]:
        """`[row]`: whether a loss scaler or a guard skipped the step."""
        return self.block.skipped[self.block.sampled]

    @cached_property
    def has_row_statistics(self) -> NDArray[np.bool_]:
        """`[row]`: whether the step carries statistics of at least one layer, as `StepView.has_statistics`."""
        measurements = self.measurements
        return ~np.isnan(measurements.total_gradient_norm) | (measurements.total_nonfinite_count > 0)

    @cached_property
    def first_nonfinite(self) -> int:
        """The first position whose loss, gradients, weights or updates are not finite; the length without one."""
        measurements = self.measurements
        first = self.first_row((measurements.total_nonfinite_count > 0) | measurements.has_nonfinite_weights)
        loss = self.block.series.get("loss")
        return first if loss is None else min(first, self.first_step(loss.present & ~np.isfinite(loss.values)))

    @cached_property
    def has_loss(self) -> NDArray[np.bool_]:
        """`[position]`: whether the step has a loss."""
        loss = self.block.series.get("loss")
        return np.zeros(len(self.block), dtype=np.bool_) if loss is None else loss.present

    def first_step(self, matches: NDArray[np.bool_]) -> int:
        """Return the first position that matches; the length of the block without one."""
        position = int(matches.argmax()) if len(matches) else 0
        return position if len(matches) and matches[position] else len(self.block)

    def first_row(self, matches: NDArray[np.bool_]) -> int:
        """Return the position of the first row that matches; the length of the block without one."""
        row = int(matches.argmax()) if len(matches) else 0
        return int(self._row_positions[row]) if len(matches) and matches[row] else len(self.block)

    def first_probe(self, name: str) -> int:
        """Return the first position with a probe; the length of the block without one."""
        if self.first_with_probes == len(self.block):
            return len(self.block)
        return next((position for position, probes in enumerate(self.probes) if name in probes), len(self.block))

    @cached_property
    def first_with_probes(self) -> int:
        """The first position with any probe; the length of the block without one."""
        return next((position for position, probes in enumerate(self.probes) if probes), len(self.block))

    def present_values(self, series_name: str, stop: int) -> NDArray[np.float64]:
        """Return the values of a series of the first `stop` steps; absent ones are left out."""
        series = self.block.series.get(series_name)
        return np.zeros(0) if series is None else series.values[:stop][series.present[:stop]]

    @cached_property
    def _row_positions(self) -> NDArray[Any]:
        return np.flatnonzero(self.block.sampled)
