"""Equality up to the rounding of numbers: how a run was cut into blocks may show in nothing else."""

from __future__ import annotations

from typing import Any

import pytest

TOLERANCE = 1e-6


def approximately(content: Any) -> Any:
    """Return what compares equal to nested content whose floats differ by less than `TOLERANCE`."""
    if isinstance(content, dict):
        return {name: approximately(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(approximately(value) for value in content)
    return pytest.approx(content, rel=TOLERANCE, nan_ok=True) if isinstance(content, float) else content
