"""Running averages over the layers, and what they say about depth.

One idea: what a layer's gradient usually is (`baseline`), what it is now (`smooth`), and how often it is exactly zero,
are exponential averages over the steps in which the layer was present; an absent layer keeps its last values. State is
O(layers); every number of a step depends on that step and the ones before it only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradmedic_service.diagnosis.measurements import Architecture, Measurements
from gradmedic_service.diagnosis.state import Persistent

SMOOTH_HORIZON = 10
"""Sampled steps that `smooth` and `zero` look back: short enough to see a change within a block, long enough to be
blind to one odd batch."""
BASELINE_HORIZON = 50
"""Sampled steps that the baseline looks back."""
BASELINE_OUTLIER = 0.5
"""Decades above itself at which the baseline clips what it takes in, so that growth does not hide itself."""
ZERO_FLOOR = -45.0
"""log10 of the smallest float32 above zero, for a gradient that is exactly zero."""
DEAD_SHARE = 0.9
"""A layer is dead when its gradient was exactly zero in (nearly) every one of the last `SMOOTH_HORIZON` steps."""
MAX_GROUPS = 8
"""Presence patterns told apart; beyond that (randomly routed experts) all layers count as one group."""


@dataclass(frozen=True, slots=True, eq=False)
class Depth:
    """What the layers look like along depth, a row a sampled step."""

    smooth: NDArray[np.float64]
    """`[row, layer]` averaged log10 rms."""
    growth: NDArray[np.float64]
    """`[row, layer]` decades of the step's log10 rms above the layer's own baseline; NaN where there is none."""
    gap: NDArray[np.float64]
    """`[row]` decades between the strongest weight matrix and the median of the input-side half; NaN below two."""
    dead_share: NDArray[np.float64]
    """`[row]` share of the weight matrices whose gradient is exactly zero."""
    weakest: NDArray[np.intp]
    """`[row]` the weight matrix with the smallest gradient; -1 where there is none."""


@dataclass(slots=True)
class NetworkAverages(Persistent):
    """The averages; arrays are `[layer]`."""

    smooth: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    baseline: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    zero: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    seen: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    seen_nonzero: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    initial_weight: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    weight: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    update_share: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """Averaged update over weight."""

    def grow(self, layers: int) -> None:
        """Make room for layers that were appended to the run."""
        missing = layers - len(self.seen)
        if missing <= 0:
            return
        for name, fill in (
            ("smooth", ZERO_FLOOR),
            ("baseline", np.nan),
            ("zero", 0.0),
            ("seen", 0),
            ("seen_nonzero", 0),
        ):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.full(missing, fill, dtype=old.dtype)]))
        for name in ("initial_weight", "weight", "update_share"):
            setattr(self, name, np.concatenate([getattr(self, name), np.full(missing, np.nan)]))

    def advance(self, measurements: Measurements, architecture: Architecture) -> Depth:
        """Take the rows in order and return what depth looked like after each."""
        rows, layers = measurements.present.shape
        smooth_rows = np.empty((rows, layers))
        growth_rows = np.empty((rows, layers))
        zero_rows = np.empty((rows, layers))
        known = ~np.isnan(measurements.log_rms)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            shares = measurements.update_norm / measurements.weight_norm
            for row in range(rows):
                log_rms, is_known, present = measurements.log_rms[row], known[row], measurements.present[row]
                self.seen += present
                self.seen_nonzero += is_known
                growth_rows[row] = log_rms - self.baseline
                first = is_known & np.isnan(self.baseline)
                if first.any():
                    self.smooth[first] = self.baseline[first] = log_rms[first]
                weight = np.where(is_known, np.maximum(1 / SMOOTH_HORIZON, 1 / np.maximum(self.seen_nonzero, 1)), 0.0)
                value = np.where(is_known, log_rms, 0.0)
                self.smooth += weight * (value - self.smooth)
                weight = np.where(is_known, np.maximum(1 / BASELINE_HORIZON, 1 / np.maximum(self.seen_nonzero, 1)), 0.0)
                clipped = np.minimum(value, self.baseline + BASELINE_OUTLIER)
                self.baseline = np.where(is_known, self.baseline + weight * (clipped - self.baseline), self.baseline)
                weight = np.where(present, np.maximum(1 / SMOOTH_HORIZON, 1 / np.maximum(self.seen, 1)), 0.0)
                self.zero += weight * (measurements.is_zero[row] - self.zero)
                smooth_rows[row] = self.smooth
                zero_rows[row] = self.zero
                share = shares[row]
                finite = np.isfinite(share)
                fresh = finite & np.isnan(self.update_share)
                self.update_share = np.where(fresh, share, self.update_share)
                self.update_share = np.where(
                    finite, self.update_share + (share - self.update_share) / SMOOTH_HORIZON, self.update_share
                )
                norms = measurements.weight_norm[row]
                has_weight = present & np.isfinite(norms)
                self.weight = np.where(has_weight, norms, self.weight)
                self.initial_weight = np.where(has_weight & np.isnan(self.initial_weight), norms, self.initial_weight)
        gap, dead_share, weakest = self._along_depth(measurements, architecture, smooth_rows, zero_rows)
        return Depth(smooth=smooth_rows, growth=growth_rows, gap=gap, dead_share=dead_share, weakest=weakest)

    @staticmethod
    def _along_depth(
        measurements: Measurements, architecture: Architecture, smooth: NDArray[Any], zero: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
        rows = len(measurements)
        gap, dead_share = np.full(rows, np.nan), np.zeros(rows)
        weakest = np.full(rows, -1, dtype=np.intp)
        path = architecture.order[architecture.is_path[architecture.order]]
        keys = set(measurements.group)
        members: dict[bytes | None, list[int]] = {}
        for row, key in enumerate(measurements.group):
            members.setdefault(key if len(keys) <= MAX_GROUPS else None, []).append(row)
        for group, member_rows in members.items():
            present = np.ones(len(zero[0]), dtype=np.bool_) if group is None else np.frombuffer(group, dtype=np.bool_)
            group_rows = np.array(member_rows, dtype=np.intp)
            layers = path[present[path]]
            if len(layers) == 0:
                continue
            index = np.ix_(group_rows, layers)
            dead = zero[index] > DEAD_SHARE
            level = np.where(dead, ZERO_FLOOR, smooth[index])
            dead_share[group_rows] = dead.mean(axis=1)
            weakest[group_rows] = layers[level.argmin(axis=1)]
            if len(layers) >= 2:
                half = max(1, len(layers) // 2)
                gap[group_rows] = level.max(axis=1) - np.median(level[:, :half], axis=1)
        return gap, dead_share, weakest
