"""Whether a run fails as it should, from its outcome alone: losses, weights and skill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.corpus.causes.cases import DIES, STALLS

KEPT_SHARE: Final = 0.5
"""A run that fails has at most this share of its twin's skill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the labels depend on."""

    losses: list[float]
    died: bool
    """Whether a weight is non-finite at the end, or every loss of the last steps."""
    skill: float
    """Skill at the end: 0 for a constant predictor, 1 for a perfect one; minus infinity without a finite one."""
    min_skill: float

    @property
    def learns(self) -> bool:
        """Whether the run has its skill at the end."""
        return not self.died and self.skill >= self.min_skill


def reason_to_drop(outcome: Outcome, manner: str, twin_skill: float | None) -> str | None:
    """Return why a run is no example of what it was meant to be; None if it is.

    Args:
        outcome: the outcome of the run.
        manner: how a run with a fault must fail; empty for a run that must learn.
        twin_skill: skill of the twin of a run with a fault; None where the twin does not learn.
    """
    if not manner:
        return None if outcome.learns else "it does not learn"
    if twin_skill is None:
        return "its repaired twin does not learn"
    if not (outcome.died or max(outcome.skill, 0.0) <= KEPT_SHARE * twin_skill):
        return "it learns in spite of its fault"
    if manner == DIES and not outcome.died:
        return "it does not die"
    if manner == STALLS and outcome.died:
        return "it dies where it should stall"
    return None
