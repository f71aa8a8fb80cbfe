"""The causes that count as right for the most common faults, by fault."""

from __future__ import annotations

from typing import Final

SATURATION: Final = "saturating_activation poor_initialization missing_normalization"
SMALL: Final = "poor_initialization missing_normalization"
DEAD: Final = "dead_units poor_initialization missing_normalization"
MEMORY: Final = "long_recurrence poor_initialization saturating_activation"
RATE: Final = "learning_rate_too_high"
LARGE: Final = "poor_initialization missing_normalization learning_rate_too_high"
UNROLLED: Final = "missing_clipping long_recurrence poor_initialization learning_rate_too_high"
