"""When a block must leave at once: a loss, gradient norm or update norm that jumps.

One idea: an explosion takes fewer steps than a block, so waiting for the block would announce it too late. The test
must cost microseconds and need no scale: it compares the logarithm of each number with a slow average of itself, in
units of its own usual deviation. The average is one over steps, however few of them are sampled: what grows slowly must
not look like a jump from one sample to the next.
"""

from __future__ import annotations

import math

import numpy as np

from gradmedic.recording.step import Step

_MEMORY = 0.05
"""Weight of a step in the slow average: about the last 20."""
_FEWEST = 3
"""Values needed before anything can be called a jump."""
_SMALLEST_JUMP = math.log(2.0)
_DEVIATIONS = 4.0
"""A jump is beyond this many usual deviations; too low only costs requests, too high costs time."""


class SpikeDetector:
    """Says of each step whether it should leave at once. O(1) memory; not thread-safe."""

    def __init__(self) -> None:
        self._signals = {"loss": _Signal(), "grad_norm": _Signal(), "update_norm": _Signal()}
        self._was_finite = True

    def update(self, step: Step) -> bool:
        """Take in a step and return whether it jumps, or is the first with a non-finite number."""
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
        if self._count > 1:  # over values: two or three would not tell what is usual
            self._deviation += max(_MEMORY, fewest) * (abs(excess) - self._deviation)
        return is_jump
