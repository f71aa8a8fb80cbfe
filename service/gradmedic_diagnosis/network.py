"""Running averages over the layers, and what they say about depth.

One idea: what a layer's gradient usually is (`baseline`), what it is now (`smooth`), and how often it is exactly zero,
are exponential averages over the steps in which the layer was present; an absent layer keeps its last values. State is
O(layers); every number of a step depends on that step and the ones before it only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradmedic_diagnosis.measurements import Architecture, Measurements
from gradmedic_diagnosis.state import Persistent

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
DECAY_ROWS = 50
"""Rows averaged by one product of matrices: what a client sends at once."""
MAX_GROUPS = 8
"""Presence patterns told apart; beyond that (randomly routed experts) all layers count as one group."""


@dataclass(frozen=True, slots=True, eq=False)
class Depth:
    """What the layers look like along depth, a row a sampled step."""

    smooth: NDArray[np.float64]
    """`[row, layer]` averaged log10 rms."""
    rise: NDArray[np.float64]
    """`[row, layer]` decades of `smooth` above the baseline, after the row."""
    zero: NDArray[np.float64]
    """`[row, layer]` averaged share of gradients that are exactly zero."""
    growth: NDArray[np.float64]
    """`[row, layer]` decades of the step's log10 rms above the layer's own baseline; NaN where there is none."""
    typical_growth: NDArray[np.float64]
    """`[row]` median growth of the layers that have one; 0 where none has."""
    gap: NDArray[np.float64]
    """`[row]` decades between the strongest weight matrix and the median of the input-side half; NaN below two."""
    input_excess: NDArray[np.float64]
    """`[row]` decades of the strongest input-side matrix above the median of the output-side half; NaN below two."""
    dead_share: NDArray[np.float64]
    """`[row]` share of the weight matrices whose gradient is exactly zero."""


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

    def grow(self, layers: int) -> None:
        """Make room for layers that were appended to the run."""
        missing = layers - len(self.seen)
        if missing <= 0:
            return
        for name, fill in (
            ("smooth", ZERO_FLOOR),
            ("baseline", 0.0),
            ("zero", 0.0),
            ("seen", 0),
            ("seen_nonzero", 0),
        ):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.full(missing, fill, dtype=old.dtype)]))
        for name in ("initial_weight", "weight"):
            setattr(self, name, np.concatenate([getattr(self, name), np.full(missing, np.nan)]))

    def advance(self, measurements: Measurements, architecture: Architecture) -> Depth:
        """Take the rows in order and return what depth looked like after each."""
        smooth, growth, rise, zero = self._average(measurements)
        self._remember_weights(measurements)
        gap, input_excess, dead_share = self._along_depth(measurements, architecture, smooth, zero)
        return Depth(
            smooth=smooth,
            rise=rise,
            zero=zero,
            growth=growth,
            typical_growth=_median_of_known(growth),
            gap=gap,
            input_excess=input_excess,
            dead_share=dead_share,
        )

    def _average(
        self, measurements: Measurements
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Advance `smooth`, `baseline` and `zero` row by row; return smooth, growth, rise and zero after each row."""
        known, present = ~np.isnan(measurements.log_rms), measurements.present
        values = np.where(known, measurements.log_rms, 0.0)
        counts = self.seen_nonzero + np.cumsum(known, axis=0)
        is_idle: NDArray[np.bool_] = np.logical_not(known.any(axis=0))
        is_steady = known.all(axis=0) & (counts[:1] >= BASELINE_HORIZON).all(axis=0)
        if len(values) and (is_steady | is_idle).all():
            smooth_rows, growth_rows, baseline_rows = self._average_steadily(values, is_idle)
        else:
            smooth_rows, growth_rows, baseline_rows = self._average_one_by_one(values, known, counts)
        self.seen_nonzero = self.seen_nonzero + known.sum(axis=0)

        counts = self.seen + np.cumsum(present, axis=0)
        self.seen = self.seen + present.sum(axis=0)
        zero_rows = np.zeros_like(values)
        if measurements.is_zero.any() or self.zero.any():
            zero_weight = _weights(present, counts, SMOOTH_HORIZON)
            zero = self.zero.copy()
            for row, is_zero in enumerate(measurements.is_zero):
                zero += zero_weight[row] * (is_zero - zero)
                zero_rows[row] = zero
            self.zero = zero
        return smooth_rows, growth_rows, smooth_rows - baseline_rows, zero_rows

    def _average_steadily(
        self, values: NDArray[np.float64], is_idle: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Advance `smooth` and `baseline` where each layer takes part in every row, or in none (`is_idle`).

        The same as `_average_one_by_one` for weights that are the horizons', with as little as can be row by row.
        """
        smooth_rows = _decayed(values, self.smooth, SMOOTH_HORIZON)
        smooth_rows[:, is_idle] = self.smooth[is_idle]
        weight = 1 / BASELINE_HORIZON
        weighted = values * weight
        highest = np.empty_like(self.baseline)
        baseline_rows = np.empty((len(values) + 1, values.shape[1]))
        before = baseline_rows[0] = self.baseline
        for row, taken_in in enumerate(weighted):
            after = baseline_rows[row + 1]
            np.multiply(before, 1 - weight, out=after)
            after += taken_in
            np.add(before, weight * BASELINE_OUTLIER, out=highest)
            np.minimum(after, highest, out=after)
            before = after
        growth_rows: NDArray[np.float64] = values - baseline_rows[:-1]
        growth_rows[:, is_idle] = np.nan
        baseline_rows[:, is_idle] = self.baseline[is_idle]
        self.smooth, self.baseline = smooth_rows[-1].copy(), baseline_rows[-1].copy()
        return smooth_rows, growth_rows, baseline_rows[1:]

    def _average_one_by_one(
        self, values: NDArray[np.float64], known: NDArray[np.bool_], counts: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Advance `smooth` and `baseline` row by row, whoever takes part; return smooth, growth and baseline."""
        first = known & (counts == 1)
        smooth_weight = _weights(known, counts, SMOOTH_HORIZON)
        baseline_weight = _weights(known, counts, BASELINE_HORIZON)
        has_first = first.any(axis=1)
        smooth_rows, growth_rows, baseline_rows = (np.empty_like(values) for _ in range(3))
        smooth, baseline, step = self.smooth.copy(), self.baseline.copy(), np.empty_like(self.smooth)
        for row, (value, begins) in enumerate(zip(values, has_first.tolist(), strict=True)):
            growth = growth_rows[row]
            np.subtract(value, baseline, out=growth)
            if begins:
                smooth[first[row]] = baseline[first[row]] = value[first[row]]
                growth[first[row]] = 0.0
            np.subtract(value, smooth, out=step)
            step *= smooth_weight[row]
            smooth += step
            np.minimum(growth, BASELINE_OUTLIER, out=step)
            step *= baseline_weight[row]
            baseline += step
            smooth_rows[row], baseline_rows[row] = smooth, baseline
        growth_rows[first | ~known] = np.nan  # a layer's first value is its baseline
        self.smooth, self.baseline = smooth, baseline
        return smooth_rows, growth_rows, baseline_rows

    def _remember_weights(self, measurements: Measurements) -> None:
        """Keep each layer's first and last finite weight norm."""
        has_weight = measurements.present & np.isfinite(measurements.weight_norm)
        if not has_weight.any():
            return
        layers = np.flatnonzero(has_weight.any(axis=0))
        norms = measurements.weight_norm[:, layers]
        earliest = norms[has_weight[:, layers].argmax(axis=0), np.arange(len(layers))]
        latest = norms[len(norms) - 1 - has_weight[::-1, layers].argmax(axis=0), np.arange(len(layers))]
        initial, weight = self.initial_weight.copy(), self.weight.copy()
        initial[layers] = np.where(np.isnan(initial[layers]), earliest, initial[layers])
        weight[layers] = latest
        self.initial_weight, self.weight = initial, weight

    @staticmethod
    def _along_depth(
        measurements: Measurements, architecture: Architecture, smooth: NDArray[Any], zero: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        rows = len(measurements)
        gap, input_excess, dead_share = np.full(rows, np.nan), np.full(rows, np.nan), np.zeros(rows)
        path = architecture.order[architecture.is_path[architecture.order]]
        if len(path) == 0:  # embeddings, or vectors alone: there is no depth, but there may be death
            path = architecture.order
        has_zeros = bool(zero.any())
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
            level = smooth[group_rows].take(layers, axis=1)
            if has_zeros:
                dead = zero[group_rows].take(layers, axis=1) > DEAD_SHARE
                level[dead] = ZERO_FLOOR
                dead_share[group_rows] = dead.mean(axis=1)
            if len(layers) >= 2 and architecture.is_path.any():
                half = max(1, len(layers) // 2)
                gap[group_rows] = level.max(axis=1) - _median_of_rows(level[:, :half])
                input_excess[group_rows] = level[:, :half].max(axis=1) - _median_of_rows(level[:, half:])
        return gap, input_excess, dead_share


@lru_cache(maxsize=64)
def _decay(rows: int, horizon: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return `[row, value]` weights of an exponential average's values after each row, and `[row, 1]` of its start."""
    kept = 1 - 1 / horizon
    ages = np.arange(rows)[:, None] - np.arange(rows)
    weights: NDArray[np.float64] = np.where(ages >= 0, kept ** np.maximum(ages, 0) / horizon, 0.0)
    start_weight: NDArray[np.float64] = kept ** np.arange(1, rows + 1, dtype=np.float64)[:, None]
    return weights, start_weight


def _decayed(values: NDArray[np.float64], start: NDArray[np.float64], horizon: int) -> NDArray[np.float64]:
    """Return an exponential average after each row. In pieces: the product costs the square of their length."""
    averages = np.empty_like(values)
    for first in range(0, len(values), DECAY_ROWS):
        piece = values[first : first + DECAY_ROWS]
        weights, start_weight = _decay(len(piece), horizon)
        averages[first : first + DECAY_ROWS] = weights @ piece + start_weight * start
        start = averages[first + len(piece) - 1]
    return averages


def _weights(takes_part: NDArray[np.bool_], counts: NDArray[np.int64], horizon: int) -> Sequence[Any]:
    """Return each row's weights of the new values: 1 / count up to the horizon, 0 for a layer that takes no part."""
    if takes_part.all() and (counts.size == 0 or counts[0].min() >= horizon):
        return [1 / horizon] * len(takes_part)
    weights: Sequence[Any] = np.where(takes_part, np.maximum(1 / horizon, 1 / np.maximum(counts, 1)), 0.0)  # type: ignore[assignment]  # its rows are
    return weights


def _median_of_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median of each row; without the checks for NaN that take numpy's longer than the median itself."""
    low, high = (values.shape[1] - 1) // 2, values.shape[1] // 2
    ordered = np.partition(values, (low, high), axis=1)
    median: NDArray[np.float64] = (ordered[:, low] + ordered[:, high]) / 2
    return median


def _median_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median of each row's numbers that are not NaN, and 0 for a row of none."""
    if values.shape[1] == 0:
        return np.zeros(len(values))
    is_known = ~np.isnan(values)
    if is_known.all():
        return _median_of_rows(values)
    ordered = np.sort(values, axis=1)  # NaN goes last
    known = np.count_nonzero(is_known, axis=1)
    rows = np.arange(len(values))
    low, high = ordered[rows, np.maximum(known - 1, 0) // 2], ordered[rows, np.minimum(known // 2, values.shape[1] - 1)]
    return np.where(known > 0, (low + high) / 2, 0.0)
