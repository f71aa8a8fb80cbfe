"""Loss curves: the summary of a trial's losses, and the loss by which trials are compared at a rung."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS, Learning

START_LOSSES = 5
"""Number of first losses whose median is the start loss. A single odd batch does not change it."""
FINAL_SHARE = 0.1
"""Share of a trial's losses, the last ones, whose median is the final loss."""
RUNG_SHARES = (0.5, 0.75)
"""Shares of the budget of steps at which trials are compared. They are late, because a remedy that lowers the learning
rate is behind at first, and is often the one that holds."""
MIN_RUNG_STEPS = 10
"""Steps before which nothing is compared: so few losses show little."""
CONVERGED_SHARE = 0.1
"""A loss of at most this share of a constant answer's has converged: a skill of 0.9. Its gradients may vanish."""
CONVERGED_SHARE_OF_START = 0.01
"""The same share of the start loss, where the loss of a constant answer is not known. It is smaller, because a run may
start far above a constant answer's loss."""
LOSS, EVALUATED_LOSS = "loss", "loss in eval()"
"""Names of the measures that are losses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What a trial is judged by, in its own units."""

    judged_by: str
    """`loss`, `loss in eval()`, or an objective as its text."""
    start: float = math.nan
    """Median of the first values."""
    best: float = math.inf
    """Best level (`best_level`)."""
    final: float = math.nan
    """Median of the last tenth, corrected by the evaluation."""
    constant_level: float | None = None
    """Loss of a predictor with a constant output; None if it is not known."""
    problem: str | None = None
    """Why the measure cannot show that the trial is good; None if it can."""

    @property
    def sign(self) -> float:
        """1 if smaller values are better, else -1."""
        return -1.0 if self.judged_by.startswith("maximize ") else 1.0

    @property
    def is_loss(self) -> bool:
        """Whether it is a loss, in `train()` or in `eval()`."""
        return self.judged_by in (LOSS, EVALUATED_LOSS)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCurve:
    """Summary of the losses of a trial."""

    steps: int
    """Number of steps with a loss."""
    start: float
    """Median of the first losses; NaN if none of the losses is finite."""
    best: float
    """Lowest level (`best_level`); infinity if no loss is finite."""
    final: float
    """Median of the last tenth; not finite where at least half of those are not finite."""
    digest: str
    """Hash of all losses, else of the values of the measure; empty if there are none. Two trials with the same digest
    had the same losses."""
    measure: Measure | None = None
    """What the trial is judged by; None where an earlier version has stored the trial, which judged by the loss."""
    learning: Learning = "unknown"
    """What its objective does at its end, by its diagnosis."""


def summarize_losses(losses: NDArray[np.float64]) -> LossCurve | None:
    """Return the summary of a trial's losses, given in the order of its steps; None if there are none."""
    if not len(losses):
        return None
    return LossCurve(
        steps=len(losses),
        start=start_loss(losses),
        best=best_level(losses),
        final=final_loss(losses),
        digest=digest_of(losses),
    )


def digest_of(values: NDArray[np.float64]) -> str:
    """Return a hash of some numbers; an empty text if there are none."""
    return hashlib.blake2b(values.astype("<f8").tobytes(), digest_size=16).hexdigest() if len(values) else ""


def start_loss(losses: NDArray[np.float64]) -> float:
    """Return the median of the first finite losses; NaN if there is none."""
    finite = losses[np.isfinite(losses)]
    return median(finite[:START_LOSSES].tolist()) if len(finite) else math.nan


def final_loss(losses: NDArray[np.float64]) -> float:
    """Return the median of the last tenth, at least of the last loss; NaN where half of them or more are not finite.

    >>> final_loss(np.array([3.0, 2.0, 1.0]))
    1.0
    >>> final_loss(np.array([1.0] * 18 + [np.nan, 1.0]))
    nan
    """
    return _median_of_most(losses[-_count_tenth(losses) :])


def best_level(losses: NDArray[np.float64]) -> float:
    """Return the lowest median of a tenth of the losses, at least of one loss, in windows that overlap by half.

    The final loss is a median of so many losses too. A single loss is no measure for it: the smallest of many noisy
    ones is below the level that the training had. Where most losses of every window are not finite, it is the smallest
    finite loss; infinity if there is none.

    >>> best_level(np.array([3.0, 2.0] + [0.5, 1.5, 1.5] * 6))
    1.0
    """
    width = _count_tenth(losses)
    starts = range(len(losses) - width, -1, -max(1, width // 2))
    levels = np.array([_median_of_most(losses[start : start + width]) for start in starts])
    for candidates in (levels, losses):
        finite = candidates[np.isfinite(candidates)]
        if len(finite):
            return float(finite.min())
    return math.inf


def _count_tenth(losses: NDArray[np.float64]) -> int:
    return max(1, round(len(losses) * FINAL_SHARE))


def _median_of_most(losses: NDArray[np.float64]) -> float:
    """Return the median of the finite losses; NaN where half of the losses or more are not finite."""
    finite = losses[np.isfinite(losses)]
    return median(finite.tolist()) if 2 * len(finite) > len(losses) else math.nan


def rungs_of(steps: int) -> tuple[int, ...]:
    """Return the numbers of steps after which trials with this budget of steps are compared.

    >>> rungs_of(200), rungs_of(18), rungs_of(4)
    ((100, 150), (13,), ())
    """
    return tuple(rung for share in RUNG_SHARES if (rung := int(steps * share)) >= MIN_RUNG_STEPS)


def has_converged(final: float, start: float, constant_level: float | None) -> bool:
    """Whether a loss is so small that almost nothing is left to learn.

    Args:
        final: the final loss.
        start: the start loss.
        constant_level: loss of a predictor with a constant output; None if it is not known.
    """
    if constant_level is not None:
        return 0 <= final <= CONVERGED_SHARE * constant_level
    return 0 <= final <= CONVERGED_SHARE_OF_START * start


def loss_at_rung(losses: NDArray[np.float64], verdict: str, constant_level: float | None = None) -> float:
    """Return the loss by which a trial is compared at a rung; infinity if it is not finite or the run is unhealthy.

    A run that vanishes because it has converged is not unhealthy.
    """
    loss = final_loss(losses) if len(losses) else math.inf
    if verdict == "vanishing" and has_converged(loss, start_loss(losses), constant_level):
        return loss
    return loss if math.isfinite(loss) and verdict not in UNHEALTHY_VERDICTS else math.inf
