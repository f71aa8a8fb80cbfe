"""Loss curves: the summary of a trial's losses, and the loss by which trials are compared at a rung."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS

START_LOSSES = 5
"""Number of first losses whose median is the start loss. A single odd batch does not change it."""
FINAL_SHARE = 0.1
"""Share of a trial's losses, the last ones, whose median is the final loss."""
RUNG_SHARES = (0.5, 0.75)
"""Shares of the budget of steps at which trials are compared. They are late, because a remedy that lowers the learning
rate is behind at first, and is often the one that holds."""
MIN_RUNG_STEPS = 10
"""Steps before which nothing is compared: so few losses show little."""


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
    """Hash of all losses. Two trials with the same digest had the same losses."""


def summarize_losses(losses: NDArray[np.float64]) -> LossCurve | None:
    """Return the summary of a trial's losses, given in the order of its steps; None if there are none."""
    if not len(losses):
        return None
    finite = losses[np.isfinite(losses)]
    return LossCurve(
        steps=len(losses),
        start=median(finite[:START_LOSSES].tolist()) if len(finite) else math.nan,
        best=best_level(losses),
        final=final_loss(losses),
        digest=hashlib.blake2b(losses.astype("<f8").tobytes(), digest_size=16).hexdigest(),
    )


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


def loss_at_rung(losses: NDArray[np.float64], verdict: str) -> float:
    """Return the loss by which a trial is compared at a rung; infinity if it is not finite or the run is unhealthy."""
    loss = final_loss(losses) if len(losses) else math.inf
    return loss if math.isfinite(loss) and verdict not in UNHEALTHY_VERDICTS else math.inf
