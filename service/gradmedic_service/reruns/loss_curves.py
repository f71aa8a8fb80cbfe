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
    """Smallest finite loss; infinity if there is none."""
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
        best=float(finite.min()) if len(finite) else math.inf,
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
    last = losses[-max(1, round(len(losses) * FINAL_SHARE)) :]
    finite = last[np.isfinite(last)]
    return median(finite.tolist()) if 2 * len(finite) > len(last) else math.nan


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
