"""How a cause is made of its evidence."""

from __future__ import annotations

import math

from gradmedic.protocol.diagnosis import Cause

MIN_RATIO = 1e-12
"""Lower bound of a ratio whose logarithm is taken."""


def make_cause(name: str, score: float, explanation: str, **evidence: float) -> Cause:
    """Return a cause, with its score in bounds and without evidence that is NaN."""
    numbers = {key: float(value) for key, value in evidence.items() if not math.isnan(value)}
    return Cause(cause=name, score=round(min(max(score, 0.0), 1.0), 3), evidence=numbers, explanation=explanation)


def ramp(value: float, low: float, high: float) -> float:
    """Return 0 at `low`, 1 at `high` and beyond, linear in between; 0 for NaN."""
    return 0.0 if math.isnan(value) else min(max((value - low) / (high - low), 0.0), 1.0)


def find_largest(*values: float) -> float:
    """Return the largest value that is not NaN; NaN if all are."""
    return max((value for value in values if not math.isnan(value)), default=math.nan)
