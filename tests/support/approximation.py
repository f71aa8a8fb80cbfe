"""Equality up to rounding, for results of one run that was cut into different blocks."""

from __future__ import annotations

from typing import Any

import pytest

TOLERANCE = 1e-6


def approximately(content: Any) -> Any:
    """Return an object that equals nested content whose floats differ by a factor of at most `1 + TOLERANCE`."""
    if isinstance(content, dict):
        return {name: approximately(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(approximately(value) for value in content)
    return pytest.approx(content, rel=TOLERANCE, nan_ok=True) if isinstance(content, float) else content
