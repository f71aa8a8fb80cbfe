"""Detects steps that must be sent at once: those whose loss, gradient norm or update norm jumps.

An explosion takes fewer steps than a block, so waiting for a full block would announce it too late. The test compares
the logarithm of each number with a slow average of itself, in units of its usual deviation. So it needs no scale and
takes microseconds. The average is one over steps, however few of them are sampled: slow growth must not look like a
jump from one sample to the next.
"""

from __future__ import annotations

import math

import numpy as np

from gradmedic.recording.step import Step

_MEMORY = 0.05
"""Weight of a step in the slow average: about the last 20."""
_FEWEST = 3
"""Values that are needed before a jump can be detected."""
_SMALLEST_JUMP = math.log(2.0)
_DEVIATIONS = 4.0
"""A jump is beyond this many usual deviations. A lower number costs requests, a higher one delays the announcement."""


class SpikeDetector:
    """Detects spikes, step by step. O(1) memory; not thread-safe."""

    def __init__(self) -> None:
        self._signals = {"loss": _Signal(), "grad_norm": _Signal(), "update_norm": _Signal()}
        self._was_finite = True

    def update(self, step: Step) -> bool:
        """Add a step and return whether it jumps, or is the first with a non-finite number."""
        was_finite, self._was_finite = self._was_finite, step.is_finite
        if not self._was_finite:
            return was_finite
        numbers = {"loss": step.loss}
        if step.row is not None:
            for name in ("grad_norm", "update_norm"):
                column = step.row.column(name)
                if column is not None:
                    numbers[name] = math.sqrt(float(np.square(column, dtype=np.float64).sum()))
        jumps = [
            self._signals[name].update(number, step.number) for name, number in numbers.items() if number is not None
        ]
        return any(jumps)


class _Signal:
    """Slow average and mean absolute deviation of the logarithm of one number."""

    def __init__(self) -> None:
        self._count = 0
        self._last_step = 0
        self._mean = 0.0
        self._deviation = 0.0

    def update(self, number: float, step: int) -> bool:
        if not 0 < number < math.inf:
            return False
        value = math.log(number)
        excess = value - self._mean
        is_jump = self._count >= _FEWEST and excess > max(_SMALLEST_JUMP, _DEVIATIONS * self._deviation)
        steps, self._last_step = max(1, step - self._last_step), step  # fewer than one after a rewind
        self._count += 1
        fewest = 1.0 / self._count  # a plain average until the memory is full
        self._mean += max(1.0 - (1.0 - _MEMORY) ** steps, fewest) * excess
        if self._count > 1:  # one over values, because two or three of them do not show what is usual
            self._deviation += max(_MEMORY, fewest) * (abs(excess) - self._deviation)
        return is_jump
