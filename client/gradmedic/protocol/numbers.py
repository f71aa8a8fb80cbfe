"""How numbers travel."""

from __future__ import annotations

NONFINITE_NAMES = ("NaN", "Infinity", "-Infinity")
