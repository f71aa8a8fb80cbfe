"""The score of a verdict: from the evidence for it to the chance that it is right.

Two logistic models with few parameters, one for a healthy verdict and one for vanishing and exploding. Their weights
were fitted by `python -m benchmarks.calibration` on generated runs with known outcome, cut at many steps. They are
frozen here. Of the verdicts with a score of 0.9, nine in ten are meant to be right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gradmedic.protocol.verdicts import Learning

STRENGTH_BOUND: Final = 0.999
"""Bound of a combined strength, so that its log-odds are finite."""
FIRST_STEPS: Final = 20
"""Steps with which a verdict begins: the logarithm of the steps counts from there (`diagnostician.MIN_STEPS`)."""
MOST_DECADES: Final = 2.0
"""Decades of steps beyond which more of them are no more evidence. The longest fitted runs have fewer."""
LOWEST: Final = 0.01
HIGHEST: Final = 0.99
"""Bounds of a score: the fitted runs are a few hundred, which shows no chance beyond one in a hundred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmEvidence:
    """The evidence for vanishing or exploding."""

    is_exploding: bool
    strength: float
    """Largest combined strength of the detectors so far, 0 to 1."""
    detectors: int
    """Number of detectors that have voted for the verdict."""
    steps: int
    """Steps since the verdict was adopted."""

    def features(self) -> tuple[float, ...]:
        """Return what the weights of the model multiply, in their order."""
        strength = min(self.strength, STRENGTH_BOUND)
        return (
            1.0,
            float(self.is_exploding),
            math.log(strength / (1 - strength)) if strength > 0 else 0.0,
            float(self.detectors > 1),
            _count_decades(self.steps + FIRST_STEPS),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthEvidence:
    """The evidence for a healthy verdict."""

    steps: int
    """Steps of the run."""
    learning: Learning
    has_warning: bool
    """Whether a warning is open."""
    has_suspicion: bool
    """Whether a finding is open that supports vanishing, but decides nothing."""

    def features(self) -> tuple[float, ...]:
        """Return what the weights of the model multiply, in their order."""
        has_progress = self.learning in ("learning", "converged")
        return (
            1.0,
            _count_decades(self.steps),
            float(has_progress),
            float(self.learning in ("stuck", "worsening")),
            float(self.has_warning),
            float(self.has_suspicion and not has_progress),
            float(self.has_suspicion and has_progress),
        )


ALARM_WEIGHTS: Final = (0.149, 0.334, 0.777, 0.091, 0.099)
"""Intercept, exploding, log-odds of the strength, several detectors, decades of steps."""
HEALTH_WEIGHTS: Final = (0.94, 1.56, 1.087, 0.0, 0.0, -1.574, -2.48)
"""Intercept, decades of steps, learning, no progress, open warning; open suspicion without and with progress."""


def calibrate(evidence: AlarmEvidence | HealthEvidence) -> float:
    """Return the chance that the verdict is right, rounded to four places.

    >>> early = HealthEvidence(steps=20, learning="unknown", has_warning=False, has_suspicion=False)
    >>> late = HealthEvidence(steps=2000, learning="learning", has_warning=False, has_suspicion=False)
    >>> calibrate(early) < calibrate(late)
    True
    """
    weights = ALARM_WEIGHTS if isinstance(evidence, AlarmEvidence) else HEALTH_WEIGHTS
    return round(min(max(apply_weights(weights, evidence.features()), LOWEST), HIGHEST), 4)


def apply_weights(weights: Sequence[float], features: Sequence[float]) -> float:
    """Return the probability of a logistic model."""
    return 1 / (1 + math.exp(-sum(weight * feature for weight, feature in zip(weights, features, strict=True))))


def _count_decades(steps: int) -> float:
    return min(max(0.0, math.log10(max(steps, 1) / FIRST_STEPS)), MOST_DECADES)
