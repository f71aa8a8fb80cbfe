"""Labels from the outcome: the loss, the weights and the skill, never the gradients.

The same rule labels every family. The author's intent decides only between *vanishing* and *other*, for a run that did
not learn. Where outcome and intent contradict each other, the run gets no label; it is dropped with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOW_UP: Final = 10.0
"""A loss this many times its start is an explosion (the rule of the shared recordings)."""
VANISHING_SHARE: Final = 0.25
"""A vanishing run has at most this share of its repaired twin's skill."""
FALLING: Final = 0.05
"""A loss that falls by this share of its start in the last quarter of a run has not settled: it learns late."""
BUILD_UP: Final = 2.0
"""An explosion has begun at the first step from which on the loss stays above this many times its median so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The results of a run that its label depends on."""

    loss: NDArray[np.float32]
    died: bool
    skill: float
    min_skill: float
    """Smallest skill of this program when it learns."""

    @property
    def learns(self) -> bool:
        """Whether the run stayed finite and ended with at least the smallest skill."""
        return not self.died and self.skill >= self.min_skill

    @property
    def start(self) -> float:
        """The first loss; for a loss of both signs, the median size of the first twenty."""
        if (self.loss < 0).any():
            return float(np.median(np.abs(self.loss[:20])))
        return float(self.loss[0])

    @property
    def end(self) -> float:
        """The median of the last ten losses."""
        return float(np.median(self.loss[-10:]))

    @property
    def is_still_falling(self) -> bool:
        """Whether the loss still falls at the end: by more than a twentieth over the last quarter of the run."""
        quarter = max(1, len(self.loss) // 4)
        before = float(np.median(self.loss[-2 * quarter : -quarter]))
        last = float(np.median(self.loss[-max(10, quarter // 4) :]))
        return last < before - FALLING * self.start

    @property
    def peak(self) -> float:
        """The largest loss."""
        return float(np.max(self.loss))


def label_of(outcome: Outcome, intended: str, twin_skill: float | None) -> tuple[str | None, str]:
    """Return the label, None if the outcome is ambiguous, and the reason. `intended` is what the family expects."""
    if outcome.died:
        return "exploding", "the loss or a weight turned non-finite"
    if outcome.end > BLOW_UP * outcome.start:
        return "exploding", "the loss ended above ten times its start"
    if outcome.learns:
        if intended == "other":
            return None, "meant to be badly posed, but it learns"
        return "healthy", "it learns"
    if outcome.peak > BLOW_UP * outcome.start:
        return "exploding", "the loss peaked above ten times its start and the run never learned"
    if intended == "other":
        return "other", "it does not learn, and not for its gradients"
    if outcome.is_still_falling:
        return None, "its loss was still falling when the run ended"
    if intended == "vanishing" and twin_skill is not None:
        if outcome.skill <= VANISHING_SHARE * twin_skill:
            return "vanishing", "finite, and at most a quarter of the repaired twin's skill"
        return None, "between a quarter of the twin's skill and the family's minimum"
    return None, f"meant to be {intended}, but it neither learns nor blows up"


def build_up_steps(loss: NDArray[np.float32], first_nonfinite: int | None) -> int | None:
    """Return how many steps an explosion took before its first non-finite value; None where nothing was non-finite.

    >>> build_up_steps(np.float32([1, 1, 1, 1, 4, 9, 30, 100, 1e3, 1e4, np.inf]), 10)
    6
    """
    if first_nonfinite is None:
        return None
    begun, size = 0, np.abs(loss)
    for step in range(first_nonfinite):
        typical = float(np.median(size[: step + 1]))
        if not size[step] > BUILD_UP * typical:
            begun = step + 1
    return first_nonfinite - begun
