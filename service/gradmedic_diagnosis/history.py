"""What causes and advice need to know of a run beyond the detectors' state: a few running numbers.

One idea: thresholds that advice proposes come from this run's own quantiles, taken from the calm part of its life.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from gradmedic_diagnosis.block import Block
from gradmedic_diagnosis.measurements import Measurements
from gradmedic_diagnosis.state import Persistent

CALM_WINDOW = 64
"""Gradient norms kept for quantiles: the first ones, then the most recent calm ones in turn."""
REFRESH = 8
"""Calm norms after which the level that they are judged against is worked out again."""
CALM_FACTOR = 10.0
"""A norm beyond this many times the median so far is not calm and does not shape a clipping threshold."""


@dataclass(slots=True)
class RunHistory(Persistent):
    """Running numbers of a whole run."""

    calm_norms: list[float] = field(default_factory=list)
    """Network-wide gradient norms, at most `CALM_WINDOW`."""
    calm_count: int = 0
    calm_level: float = math.inf
    """Typical calm norm, as of the last refresh."""
    calm_ratios: list[float] = field(default_factory=list)
    """Network-wide update over weight, beside `calm_norms`."""
    first_ratio: float = math.nan
    largest_ratio: float = 0.0
    learning_rate: float = math.nan
    """Largest so far."""
    first_learning_rate: float = math.nan
    last_learning_rate: float = math.nan
    clipped_steps: int = 0
    first_loss: float = math.nan
    loss_scale: float = math.nan

    def take(self, block: Block, measurements: Measurements) -> None:
        """Take the next block."""
        for row in range(len(measurements)):
            self._take_norm(float(measurements.total_gradient[row]), float(measurements.update_ratio[row]))
        for name, series in block.series.items():
            values = series.values[series.present]
            values = values[np.isfinite(values)]
            if values.size == 0:
                continue
            if name == "learning_rate":
                self.learning_rate = float(np.fmax(self.learning_rate, np.abs(values).max()))
                if math.isnan(self.first_learning_rate):
                    self.first_learning_rate = float(values[0])
                self.last_learning_rate = float(values[-1])
            elif name == "clip_coefficient":
                self.clipped_steps += int(np.count_nonzero(values < 1))
            elif name == "loss_scale":
                self.loss_scale = float(values[-1])
            elif name == "loss" and math.isnan(self.first_loss):
                self.first_loss = float(values[0])

    def _take_norm(self, norm: float, ratio: float) -> None:
        if math.isfinite(ratio):
            if math.isnan(self.first_ratio):
                self.first_ratio = ratio
            self.largest_ratio = max(self.largest_ratio, ratio)
        if not math.isfinite(norm):
            return
        if norm > CALM_FACTOR * self.calm_level:
            return
        if len(self.calm_norms) < CALM_WINDOW:
            self.calm_norms.append(norm)
            self.calm_ratios.append(ratio)
        else:
            self.calm_norms[self.calm_count % CALM_WINDOW] = norm
            self.calm_ratios[self.calm_count % CALM_WINDOW] = ratio
        self.calm_count += 1
        if self.calm_count <= REFRESH or self.calm_count % REFRESH == 0:
            self.calm_level = self.typical_norm()

    def typical_norm(self) -> float:
        """Return the median calm gradient norm; NaN before the first."""
        if not self.calm_norms:
            return math.nan
        ordered = sorted(self.calm_norms)
        return ordered[len(ordered) // 2]

    def typical_ratio(self) -> float:
        """Return the median calm update-to-weight ratio; NaN where it is not known."""
        known = sorted(r for r in self.calm_ratios if math.isfinite(r))
        return known[len(known) // 2] if known else math.nan
