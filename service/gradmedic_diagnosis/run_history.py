"""Running numbers of a whole run that causes and advice need.

The thresholds that advice proposes come from the run's own quantiles, taken from its calm steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from gradmedic.protocol.probes import name_metric
from gradmedic_diagnosis.block import Block
from gradmedic_diagnosis.measurements import Measurements
from gradmedic_diagnosis.state import Persistent

CALM_WINDOW = 64
"""Number of calm gradient norms that are kept: the first ones at first, later the most recent ones."""
REFRESH_EVERY = 8
"""Number of calm norms after which `calm_level` is computed again."""
RECENT_RATIOS = 20
"""Number of update-to-weight ratios that are kept: what was updated longer ago does not break a run now."""
CALM_FACTOR = 10.0
"""A norm beyond this many times the median so far is not calm, and does not count towards a clipping threshold."""

_TIME_FACTORS = name_metric("time_gradient_factor")


@dataclass(slots=True)
class RunHistory(Persistent):
    """Running numbers of a whole run."""

    STORED_KEYS: ClassVar[Mapping[str, str]] = {
        "calm_update_ratios": "calm_ratios",
        "first_update_ratio": "first_ratio",
        "largest_update_ratio": "largest_ratio",
        "largest_learning_rate": "learning_rate",
        "last_loss_scale": "loss_scale",
    }

    calm_norms: list[float] = field(default_factory=list)
    """Network-wide gradient norms of calm steps, at most `CALM_WINDOW`."""
    calm_count: int = 0
    """Number of calm norms so far."""
    norms: int = 0
    """Number of finite norms so far."""
    large_norms: int = 0
    """Number of those that were not calm."""
    largest_norm: float = math.nan
    """Largest finite norm so far."""
    calm_level: float = math.inf
    """Typical calm norm; computed again every `REFRESH_EVERY` calm norms."""
    calm_update_ratios: list[float] = field(default_factory=list)
    """Network-wide update over weight of the same steps as `calm_norms`."""
    first_update_ratio: float = math.nan
    largest_update_ratio: float = 0.0
    recent_update_ratios: list[float] = field(default_factory=list)
    """The last `RECENT_RATIOS` finite ones."""
    largest_learning_rate: float = math.nan
    """Largest absolute learning rate so far."""
    first_learning_rate: float = math.nan
    last_learning_rate: float = math.nan
    clipped_steps: int = 0
    """Steps whose gradient the script clipped."""
    first_loss: float = math.nan
    last_loss_scale: float = math.nan
    largest_time_factor: float = math.nan
    """Largest factor per time step of a recurrent module that was measured so far."""

    def add(self, block: Block, measurements: Measurements) -> None:
        """Add the next block."""
        norms, ratios = measurements.total_gradient_norm.tolist(), measurements.update_ratio.tolist()
        self._add_ratios([ratio for ratio in ratios if math.isfinite(ratio)])
        for norm, ratio in zip(norms, ratios, strict=True):
            if math.isfinite(norm):
                self._add_norm(norm, ratio)
        for name, series in block.series.items():
            values = series.values[series.present]
            values = values[np.isfinite(values)]
            if values.size == 0:
                continue
            if name == "learning_rate":
                self.largest_learning_rate = float(np.fmax(self.largest_learning_rate, np.abs(values).max()))
                if math.isnan(self.first_learning_rate):
                    self.first_learning_rate = float(values[0])
                self.last_learning_rate = float(values[-1])
            elif name == "clip_coefficient":
                self.clipped_steps += int(np.count_nonzero(values < 1))
            elif name == "loss_scale":
                self.last_loss_scale = float(values[-1])
            elif name == "loss" and math.isnan(self.first_loss):
                self.first_loss = float(values[0])
        self._add_time_factors(block)

    def _add_time_factors(self, block: Block) -> None:
        """Read the measured factors per time step of all recurrent modules."""
        for name, series in block.metrics.items():
            if name.startswith(_TIME_FACTORS):
                values = series.values[series.present]
                largest = values[np.isfinite(values)].max(initial=-math.inf)
                if math.isfinite(largest):
                    self.largest_time_factor = float(np.fmax(self.largest_time_factor, largest))

    def _add_ratios(self, ratios: list[float]) -> None:
        """Add finite update-to-weight ratios."""
        if not ratios:
            return
        if math.isnan(self.first_update_ratio):
            self.first_update_ratio = ratios[0]
        self.largest_update_ratio = max(self.largest_update_ratio, *ratios)
        self.recent_update_ratios = [*self.recent_update_ratios, *ratios][-RECENT_RATIOS:]

    def _add_norm(self, norm: float, update_ratio: float) -> None:
        """Add a finite gradient norm, and the update-to-weight ratio of its step."""
        if not self.largest_norm >= norm:
            self.largest_norm = norm
        self.norms += 1
        if norm > CALM_FACTOR * self.calm_level:
            self.large_norms += 1
            return
        if len(self.calm_norms) < CALM_WINDOW:
            self.calm_norms.append(norm)
            self.calm_update_ratios.append(update_ratio)
        else:
            self.calm_norms[self.calm_count % CALM_WINDOW] = norm
            self.calm_update_ratios[self.calm_count % CALM_WINDOW] = update_ratio
        self.calm_count += 1
        if self.calm_count <= REFRESH_EVERY or self.calm_count % REFRESH_EVERY == 0:
            self.calm_level = self.typical_norm()

    @property
    def recent_update_ratio(self) -> float:
        """Largest of the recent update-to-weight ratios; NaN where none is known."""
        return max(self.recent_update_ratios, default=math.nan)

    def typical_norm(self) -> float:
        """Return the median calm gradient norm; NaN before there is one."""
        if not self.calm_norms:
            return math.nan
        ordered = sorted(self.calm_norms)
        return ordered[len(ordered) // 2]

    def typical_update_ratio(self) -> float:
        """Return the median calm update-to-weight ratio; NaN where it is unknown."""
        known = sorted(r for r in self.calm_update_ratios if math.isfinite(r))
        return known[len(known) // 2] if known else math.nan
