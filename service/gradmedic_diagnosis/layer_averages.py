"""Running averages per layer, and how they compare along depth.

Three exponential averages describe a layer: its usual gradient (`baseline_log_rms`), its present gradient
(`smoothed_log_rms`), and how often its gradient is exactly zero (`zero_share`). They run over the steps in which the
layer was present; an absent layer keeps its last values. The state is O(layers). The numbers of a step depend only on
that step and the ones before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradmedic_diagnosis.architecture import Architecture
from gradmedic_diagnosis.measurements import Measurements
from gradmedic_diagnosis.state import Persistent

SMOOTH_HORIZON = 10
"""Sampled steps that `smoothed_log_rms` and `zero_share` look back: short enough to show a change within a block, long
enough that one odd batch does not count."""
BASELINE_HORIZON = 50
"""Sampled steps that the baseline looks back."""
BASELINE_OUTLIER = 0.5
"""Decades above the baseline beyond which a value is clipped before it enters the baseline. Otherwise growth would
raise the baseline that it is compared with."""
ZERO_FLOOR = -45.0
"""Stands for log10 of a gradient that is exactly zero: log10 of the smallest float32 above zero."""
DEAD_SHARE = 0.9
"""A layer is dead when its gradient was exactly zero in (nearly) all of the last `SMOOTH_HORIZON` steps."""
DECAY_ROWS = 50
"""Rows averaged by one matrix product: as many as a client sends at once."""
MAX_GROUPS = 8
"""Largest number of presence patterns. With more of them (randomly routed experts), all layers count as one group."""


@dataclass(frozen=True, slots=True, eq=False)
class DepthProfile:
    """The averages after each sampled step, and how they compare along depth."""

    smoothed_log_rms: NDArray[np.float64]
    """`[row, layer]`: averaged log10 rms."""
    rise: NDArray[np.float64]
    """`[row, layer]`: decades of `smoothed_log_rms` above the baseline, after the row."""
    zero_share: NDArray[np.float64]
    """`[row, layer]`: averaged share of the steps whose gradient is exactly zero."""
    growth: NDArray[np.float64]
    """`[row, layer]`: decades of the step's log10 rms above the layer's baseline; NaN where there is no baseline."""
    typical_growth: NDArray[np.float64]
    """`[row]`: median growth of the layers that have one; 0 where none has."""
    depth_gap: NDArray[np.float64]
    """`[row]`: decades between the strongest stretch of depth and the median one of the input-side half.

    A stretch is a weight matrix, or the strongest one of a residual block. NaN with fewer than two of them.
    """
    depth_growth: NDArray[np.float64]
    """`[row]`: decades of the strongest stretch of the input-side half above the median one of the other half.

    NaN with fewer than two of them.
    """
    dead_share: NDArray[np.float64]
    """`[row]`: share of the weight matrices whose gradient is exactly zero."""


@dataclass(slots=True)
class LayerAverages(Persistent):
    """The averages; arrays are `[layer]`."""

    STORED_KEYS: ClassVar[Mapping[str, str]] = {
        "smoothed_log_rms": "smooth",
        "baseline_log_rms": "baseline",
        "zero_share": "zero",
        "present_count": "seen",
        "nonzero_count": "seen_nonzero",
        "first_weight_norm": "initial_weight",
        "last_weight_norm": "weight",
    }

    smoothed_log_rms: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    baseline_log_rms: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    zero_share: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    present_count: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Steps in which the layer was present."""
    nonzero_count: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Steps with a finite gradient that is not exactly zero."""
    first_weight_norm: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """First finite weight norm; NaN before there is one."""
    last_weight_norm: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def make_room(self, layers: int) -> None:
        """Make room for layers that were appended to the run."""
        missing = layers - len(self.present_count)
        if missing <= 0:
            return
        for name, fill in (
            ("smoothed_log_rms", ZERO_FLOOR),
            ("baseline_log_rms", 0.0),
            ("zero_share", 0.0),
            ("present_count", 0),
            ("nonzero_count", 0),
            ("first_weight_norm", np.nan),
            ("last_weight_norm", np.nan),
        ):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.full(missing, fill, dtype=old.dtype)]))

    def advance(self, measurements: Measurements, architecture: Architecture) -> DepthProfile:
        """Add the rows in order and return the depth profile after each of them."""
        smoothed, growth, rise, zero_share = self._advance_averages(measurements)
        self._keep_weight_norms(measurements)
        depth_gap, depth_growth, dead_share = self._compare_along_depth(
            measurements, architecture, smoothed, zero_share
        )
        return DepthProfile(
            smoothed_log_rms=smoothed,
            rise=rise,
            zero_share=zero_share,
            growth=growth,
            typical_growth=_median_of_known(growth),
            depth_gap=depth_gap,
            depth_growth=depth_growth,
            dead_share=dead_share,
        )

    def _advance_averages(
        self, measurements: Measurements
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Advance the three averages row by row; return smoothed, growth, rise and zero share after each row."""
        present = measurements.present
        known = ~np.isnan(measurements.log_rms)
        known_counts = known.sum(axis=0)
        is_idle = known_counts == 0
        is_complete = known_counts == len(known)
        values = measurements.log_rms if is_complete.all() else np.where(known, measurements.log_rms, 0.0)
        is_steady = is_complete & (self.nonzero_count + 1 >= BASELINE_HORIZON)
        if len(values) and (is_steady | is_idle).all():
            smoothed_rows, growth_rows, baseline_rows = self._average_steady_layers(values, is_idle)
        else:
            counts = self.nonzero_count + np.cumsum(known, axis=0)
            smoothed_rows, growth_rows, baseline_rows = self._average_row_by_row(values, known, counts)
        self.nonzero_count = self.nonzero_count + known_counts
        zero_rows = self._average_zeros(measurements.is_zero, present)
        self.present_count = self.present_count + present.sum(axis=0)
        return smoothed_rows, growth_rows, smoothed_rows - baseline_rows, zero_rows

    def _average_zeros(self, is_zero: NDArray[np.bool_], present: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Advance the share of zero gradients; return it after each row. `present_count` is that before the rows."""
        if not (is_zero.any() or self.zero_share.any()):
            return np.zeros(is_zero.shape)
        if present.all() and (self.present_count + 1 >= SMOOTH_HORIZON).all():
            zero_rows = _average_exponentially(is_zero.astype(np.float64), self.zero_share, SMOOTH_HORIZON)
            self.zero_share = zero_rows[-1].copy() if len(zero_rows) else self.zero_share
            return zero_rows
        zero_rows = np.zeros(is_zero.shape)
        weights = _row_weights(present, self.present_count + np.cumsum(present, axis=0), SMOOTH_HORIZON)
        zero = self.zero_share.copy()
        for row, row_is_zero in enumerate(is_zero):
            zero += weights[row] * (row_is_zero - zero)
            zero_rows[row] = zero
        self.zero_share = zero
        return zero_rows

    def _average_steady_layers(
        self, values: NDArray[np.float64], is_idle: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Advance the first two averages where each layer has a value in every row, or in none (`is_idle`).

        It computes the same as `_average_row_by_row` once every layer's weights are 1 / horizon, but faster. Returns
        smoothed, growth and baseline after each row.
        """
        smoothed_rows = _average_exponentially(values, self.smoothed_log_rms, SMOOTH_HORIZON)
        smoothed_rows[:, is_idle] = self.smoothed_log_rms[is_idle]
        weight = 1 / BASELINE_HORIZON
        weighted = values * weight
        highest = np.empty_like(self.baseline_log_rms)
        baseline_rows = np.empty((len(values) + 1, values.shape[1]))
        before = baseline_rows[0] = self.baseline_log_rms
        for row, weighted_row in enumerate(weighted):
            after = baseline_rows[row + 1]
            np.multiply(before, 1 - weight, out=after)
            after += weighted_row
            np.add(before, weight * BASELINE_OUTLIER, out=highest)
            np.minimum(after, highest, out=after)
            before = after
        growth_rows: NDArray[np.float64] = values - baseline_rows[:-1]
        growth_rows[:, is_idle] = np.nan
        baseline_rows[:, is_idle] = self.baseline_log_rms[is_idle]
        self.smoothed_log_rms, self.baseline_log_rms = smoothed_rows[-1].copy(), baseline_rows[-1].copy()
        return smoothed_rows, growth_rows, baseline_rows[1:]

    def _average_row_by_row(
        self, values: NDArray[np.float64], known: NDArray[np.bool_], counts: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Advance the first two averages for any layers; return smoothed, growth and baseline after each row."""
        first = known & (counts == 1)
        smoothing_weight = _row_weights(known, counts, SMOOTH_HORIZON)
        baseline_weight = _row_weights(known, counts, BASELINE_HORIZON)
        has_first = first.any(axis=1)
        smoothed_rows, growth_rows, baseline_rows = (np.empty_like(values) for _ in range(3))
        smoothed, baseline = self.smoothed_log_rms.copy(), self.baseline_log_rms.copy()
        step = np.empty_like(smoothed)
        for row, (value, row_has_first) in enumerate(zip(values, has_first.tolist(), strict=True)):
            growth = growth_rows[row]
            np.subtract(value, baseline, out=growth)
            if row_has_first:
                smoothed[first[row]] = baseline[first[row]] = value[first[row]]
                growth[first[row]] = 0.0
            np.subtract(value, smoothed, out=step)
            step *= smoothing_weight[row]
            smoothed += step
            np.minimum(growth, BASELINE_OUTLIER, out=step)
            step *= baseline_weight[row]
            baseline += step
            smoothed_rows[row], baseline_rows[row] = smoothed, baseline
        growth_rows[first | ~known] = np.nan  # a layer's first value is its baseline: there is no growth yet
        self.smoothed_log_rms, self.baseline_log_rms = smoothed, baseline
        return smoothed_rows, growth_rows, baseline_rows

    def _keep_weight_norms(self, measurements: Measurements) -> None:
        """Keep each layer's first and last finite weight norm."""
        has_weight = measurements.present & np.isfinite(measurements.weight_norm)
        if len(has_weight) and has_weight.all():
            is_new = np.isnan(self.first_weight_norm)
            self.first_weight_norm = np.where(is_new, measurements.weight_norm[0], self.first_weight_norm)
            self.last_weight_norm = measurements.weight_norm[-1].copy()
            return
        if not has_weight.any():
            return
        layers = np.flatnonzero(has_weight.any(axis=0))
        norms = measurements.weight_norm[:, layers]
        earliest = norms[has_weight[:, layers].argmax(axis=0), np.arange(len(layers))]
        latest = norms[len(norms) - 1 - has_weight[::-1, layers].argmax(axis=0), np.arange(len(layers))]
        first, last = self.first_weight_norm.copy(), self.last_weight_norm.copy()
        first[layers] = np.where(np.isnan(first[layers]), earliest, first[layers])
        last[layers] = latest
        self.first_weight_norm, self.last_weight_norm = first, last

    @staticmethod
    def _compare_along_depth(
        measurements: Measurements, architecture: Architecture, smoothed: NDArray[Any], zero_share: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return depth gap, depth growth and dead share of each row, over the layers present in it."""
        rows = len(measurements)
        depth_gap, depth_growth, dead_share = np.full(rows, np.nan), np.full(rows, np.nan), np.zeros(rows)
        has_zeros = bool(zero_share.any())
        is_grouped = len(set(measurements.presence_keys)) <= MAX_GROUPS
        rows_by_key: dict[bytes | None, list[int]] = {}
        for row, key in enumerate(measurements.presence_keys):
            rows_by_key.setdefault(key if is_grouped else None, []).append(row)
        for group_key, row_indices in rows_by_key.items():
            group_rows = slice(None) if len(row_indices) == rows else np.array(row_indices, dtype=np.intp)
            path = architecture.find_path(group_key)
            layers = path.layers
            if len(layers) == 0:
                continue
            level = smoothed[group_rows].take(layers, axis=1)
            if has_zeros:
                dead = zero_share[group_rows].take(layers, axis=1) > DEAD_SHARE
                level[dead] = ZERO_FLOOR
                dead_share[group_rows] = dead.mean(axis=1)
            if len(path.starts) < 2:
                continue
            if len(path.starts) < len(layers):
                level = np.maximum.reduceat(level[:, path.has_unit], path.starts, axis=1)
            half = len(path.starts) // 2
            depth_gap[group_rows] = level.max(axis=1) - _median_of_rows(level[:, :half])
            depth_growth[group_rows] = level[:, :half].max(axis=1) - _median_of_rows(level[:, half:])
        return depth_gap, depth_growth, dead_share


@lru_cache(maxsize=64)
def _decay_weights(rows: int, horizon: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weights of an exponential average after each row: `[row, value]`, and `[row, 1]` of its start."""
    kept = 1 - 1 / horizon
    ages = np.arange(rows)[:, None] - np.arange(rows)
    weights: NDArray[np.float64] = np.where(ages >= 0, kept ** np.maximum(ages, 0) / horizon, 0.0)
    start_weight: NDArray[np.float64] = kept ** np.arange(1, rows + 1, dtype=np.float64)[:, None]
    return weights, start_weight


def _average_exponentially(
    values: NDArray[np.float64], start: NDArray[np.float64], horizon: int
) -> NDArray[np.float64]:
    """Return an exponential average after each row.

    It works piece by piece, since the cost of the matrix product grows with the square of a piece's length.
    """
    if len(values) == 1:  # a product of matrices costs more than one row
        return values * (1 / horizon) + start * (1 - 1 / horizon)
    averages = np.empty_like(values)
    for first in range(0, len(values), DECAY_ROWS):
        piece = values[first : first + DECAY_ROWS]
        weights, start_weight = _decay_weights(len(piece), horizon)
        averages[first : first + DECAY_ROWS] = weights @ piece + start_weight * start
        start = averages[first + len(piece) - 1]
    return averages


def _row_weights(is_included: NDArray[np.bool_], counts: NDArray[np.int64], horizon: int) -> Sequence[Any]:
    """Return the weight of each row's values: 1 / count up to the horizon, 0 for a layer that is not included."""
    if is_included.all() and (counts.size == 0 or counts[0].min() >= horizon):
        return [1 / horizon] * len(is_included)
    weights: Sequence[Any] = np.where(is_included, np.maximum(1 / horizon, 1 / np.maximum(counts, 1)), 0.0)  # type: ignore[assignment]  # an array is used as a sequence of its rows
    return weights


def _median_of_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median of each row. numpy's own median checks for NaN, which takes longer than the median itself."""
    low, high = (values.shape[1] - 1) // 2, values.shape[1] // 2
    ordered = np.partition(values, (low, high), axis=1)
    median: NDArray[np.float64] = (ordered[:, low] + ordered[:, high]) / 2
    return median


def _median_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median of each row's numbers that are not NaN; 0 for a row without any."""
    if values.shape[1] == 0:
        return np.zeros(len(values))
    is_known = ~np.isnan(values)
    if is_known.all():
        return _median_of_rows(values)
    ordered = np.sort(values, axis=1)  # NaN is sorted last
    known = np.count_nonzero(is_known, axis=1)
    rows = np.arange(len(values))
    low, high = ordered[rows, np.maximum(known - 1, 0) // 2], ordered[rows, np.minimum(known // 2, values.shape[1] - 1)]
    return np.where(known > 0, (low + high) / 2, 0.0)
