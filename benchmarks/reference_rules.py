"""The rules of other systems, from their published definitions, to compare with.

Each rule reads a recording and returns, for every step, whether it fires. The verdict of a run is `exploding` if an
exploding rule fired at any step, else `vanishing` if a vanishing rule fired, else `healthy`. Where a recording lacks a
quantity, the closest one that it holds is used; each rule's docstring names it.

Amazon SageMaker Debugger, "List of Debugger built-in rules"; Zhang et al., AUTOTRAINER (ICSE 2021), and its code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
"""A recording's arrays, as on disk."""
Fires = NDArray[np.bool_]
"""`[step]`"""

# SageMaker Debugger's default parameters.
VANISHING_MEAN_ABS: Final = 1e-7
UPDATE_RATIO_LARGE: Final = 10.0
UPDATE_RATIO_SMALL: Final = 1e-8
INITIAL_VARIANCE_RATIO: Final = 10.0
INITIAL_GRADIENT_RANGE: Final = 1e-3
INITIAL_STEPS: Final = 10
NOT_DECREASING_SHARE: Final = 0.001
NOT_DECREASING_STEPS: Final = 10

# AUTOTRAINER's.
GRADIENT_RATIO_SMALL: Final = 1e-3
FIRST_GRADIENT_SMALL: Final = 1e-4
GRADIENT_RATIO_LARGE: Final = 70.0
DEAD_SHARE: Final = 0.7
NOT_LEARNING: Final = 0.9

MEAN_ABS_OF_NORMAL: Final = float(np.sqrt(2 / np.pi))
"""Mean of |x| over the root mean square of x, for a normal distribution."""
RANGE_OF_NORMAL: Final = 3.29
"""Distance between the 5th and the 95th percentile over the standard deviation, for a normal distribution."""


def nonfinite(run: Arrays) -> Fires:
    """SageMaker `ExplodingTensor`: any NaN or infinity in a gradient or weight, or in the loss."""
    present = ~np.isnan(run["nonfinite_count"])
    broken = (run["nonfinite_count"] > 0) | ~np.isfinite(run["weight_norm"]) | ~np.isfinite(run["update_norm"])
    return ~np.isfinite(run["loss"]) | (broken & present).any(axis=1)


def small_mean_gradient(run: Arrays) -> Fires:
    """SageMaker `VanishingGradient`: mean |gradient| of any trained tensor below 1e-7.

    Recordings hold norms: the mean is that of a normal distribution of that norm over the elements that are not zero.
    """
    rms = run["grad_norm"] / np.sqrt(run["numel"])
    mean_abs = MEAN_ABS_OF_NORMAL * np.sqrt(np.clip(1 - run["grad_zero_fraction"], 0, 1)) * rms
    return _any_layer(mean_abs < VANISHING_MEAN_ABS, run)


def large_update(run: Arrays) -> Fires:
    """SageMaker `WeightUpdateRatio`, upper bound: update over weight above 10, in any weight matrix.

    Norms stand in place of mean absolutes; biases are a collection of their own there, which the rule does not watch.
    """
    return _any_layer((_update_ratio(run) > UPDATE_RATIO_LARGE) & (run["ndim"] >= 2), run)


def small_update(run: Arrays) -> Fires:
    """SageMaker `WeightUpdateRatio`, lower bound: update over weight below 1e-8."""
    return _any_layer((_update_ratio(run) < UPDATE_RATIO_SMALL) & (run["ndim"] >= 2), run)


def poor_initialization(run: Arrays) -> Fires:
    """SageMaker `PoorWeightInitialization`, in the first ten steps.

    Variances of layers' weights more than 10x apart, or gradients whose 5th and 95th percentiles are closer than 1e-3
    (from their standard deviation).
    """
    kernels = run["ndim"] >= 2
    variance = (run["weight_norm"][:, kernels] ** 2) / run["numel"][kernels]
    deviation = (run["grad_norm"] / np.sqrt(run["numel"]))[:, kernels]
    if variance.shape[1] == 0:
        return np.zeros(len(run["loss"]), dtype=bool)
    ratio = _largest(variance) / np.maximum(_smallest(variance), 1e-30)
    fires: Fires = (ratio > INITIAL_VARIANCE_RATIO) | (_smallest(deviation) * RANGE_OF_NORMAL < INITIAL_GRADIENT_RANGE)
    fires[INITIAL_STEPS:] = False
    return fires


def loss_not_decreasing(run: Arrays) -> Fires:
    """SageMaker `LossNotDecreasing`: the loss fell by less than 0.1 % over ten steps."""
    loss = run["loss"].astype(float)
    fires = np.zeros(len(loss), dtype=bool)
    before, now = loss[:-NOT_DECREASING_STEPS], loss[NOT_DECREASING_STEPS:]
    fires[NOT_DECREASING_STEPS:] = ~(before - now > NOT_DECREASING_SHARE * np.abs(before))
    return fires


def vanishing_over_depth(run: Arrays) -> Fires:
    """AUTOTRAINER: first over last kernel's gradient norm below 1e-3, and the first's below 1e-4."""
    first, ratio = _first_over_last(run)
    fires: Fires = (ratio < GRADIENT_RATIO_SMALL) & (first < FIRST_GRADIENT_SMALL)
    return fires


def exploding_over_depth(run: Arrays) -> Fires:
    """AUTOTRAINER: first over last kernel's gradient norm above 70, or NaN or infinity."""
    fires: Fires = (_first_over_last(run)[1] > GRADIENT_RATIO_LARGE) | nonfinite(run)
    return fires


def dying_relu(run: Arrays) -> Fires:
    """AUTOTRAINER: at least 70 % of all gradient elements exactly zero; its own class there, vanishing here."""
    present = ~np.isnan(run["nonfinite_count"])
    zeros = np.nansum(np.where(present, run["grad_zero_fraction"] * run["numel"], 0.0), axis=1)
    elements = (present * run["numel"]).sum(axis=1)
    return np.asarray((elements > 0) & (zeros >= DEAD_SHARE * np.maximum(elements, 1)), dtype=bool)


def is_not_learning(run: Arrays) -> Fires:
    """A stand-in for AUTOTRAINER's accuracy gate: the mean of the last ten losses is above 90 % of the first."""
    loss = run["loss"].astype(float)
    total = np.concatenate([[0.0], np.cumsum(loss)])
    width = np.minimum(np.arange(1, len(loss) + 1), 10)
    recent = (total[1:] - total[np.arange(1, len(loss) + 1) - width]) / width
    learning: Fires = recent < NOT_LEARNING * loss[0]
    return ~learning


def _any_layer(fires: NDArray[np.bool_], run: Arrays) -> Fires:
    trained = ~np.isnan(run["nonfinite_count"]) & ~run["frozen"]
    return np.asarray((fires & trained).any(axis=1), dtype=bool)


def _update_ratio(run: Arrays) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = run["update_norm"].astype(float) / (run["weight_norm"].astype(float) + 1e-9)
    return ratio


def _first_over_last(run: Arrays) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    kernels = np.flatnonzero((run["ndim"] >= 2) & ~run["frozen"])
    if len(kernels) == 0:
        nothing = np.full(len(run["loss"]), np.nan)
        return nothing, nothing
    norms = run["grad_norm"].astype(float)
    first, last = norms[:, kernels[0]], norms[:, kernels[-1]]
    return first, first / np.maximum(last, 1e-300)


def _largest(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(np.where(np.isnan(values), -np.inf, values).max(axis=1), dtype=float)


def _smallest(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(np.where(np.isnan(values), np.inf, values).min(axis=1), dtype=float)


Rule = Callable[[Arrays], Fires]


@dataclass(frozen=True, slots=True)
class RuleSet:
    """A system's rules, by the verdict that they stand for."""

    name: str
    exploding: tuple[Rule, ...]
    vanishing: tuple[Rule, ...]
    gate: Rule | None = None
    """Alarms count only where it holds; non-finite values always do."""

    def first_alarms(self, run: Arrays) -> dict[str, int]:
        """Return the first step of each verdict that ever fires."""
        found: dict[str, int] = {}
        with np.errstate(all="ignore"):
            open_ = np.ones(len(run["loss"]), dtype=bool) if self.gate is None else self.gate(run) | nonfinite(run)
            for verdict, rules in (("exploding", self.exploding), ("vanishing", self.vanishing)):
                fires = np.logical_or.reduce([rule(run) for rule in rules]) & open_
                if fires.any():
                    found[verdict] = int(np.argmax(fires))
        return found


REFERENCES: Final = (
    RuleSet("SageMaker", (nonfinite, large_update), (small_mean_gradient, small_update)),
    RuleSet(
        "SageMaker, all rules",
        (nonfinite, large_update),
        (small_mean_gradient, small_update, poor_initialization, loss_not_decreasing),
    ),
    RuleSet("AUTOTRAINER", (exploding_over_depth,), (vanishing_over_depth, dying_relu)),
    RuleSet("AUTOTRAINER, loss gate", (exploding_over_depth,), (vanishing_over_depth, dying_relu), is_not_learning),
)
