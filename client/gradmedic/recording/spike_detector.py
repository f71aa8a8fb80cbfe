"""Detects steps that must be sent at once: those whose loss, gradient norm or update norm jumps.

An explosion takes fewer steps than a block, so waiting for a full block would announce it too late. The test compares
the logarithm of each number with a slow average of itself, in units of its usual deviation. So it needs no scale and
takes microseconds. The average is one over steps, however few of them are sampled: slow growth must not look like a
jump from one sample to the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradmedic.recording.step import Row, Step

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
        self._loss, self._gradient, self._update = _Signal(), _Signal(), _Signal()
        self._was_finite = True

    def update(self, step: Step) -> bool:
        """Add a step and return whether it jumps, or is the first with a non-finite number."""
        return self.update_totals(step.number, step.loss, [] if step.row is None else [measure_totals(step.row)])

    def update_totals(self, step: int, loss: float | None, totals: Sequence[Totals]) -> bool:
        """Add a step and return whether it jumps, or is the first with a non-finite number.

        Args:
            step: number of the step.
            loss: its loss, if it has one.
            totals: what its rows show; empty for a step that is not sampled.
        """
        was_finite, is_finite = self._was_finite, loss is None or math.isfinite(loss)
        for each in totals:
            is_finite = is_finite and each.is_finite
        self._was_finite = is_finite
        if not is_finite:
            return was_finite
        is_jump = loss is not None and self._loss.update(loss, step)
        if totals:
            is_jump = self._update_norms(step, totals) or is_jump
        return is_jump

    def _update_norms(self, step: int, totals: Sequence[Totals]) -> bool:
        is_jump = False
        for signal, squares in (
            (self._gradient, [each.grad_squares for each in totals]),
            (self._update, [each.update_squares for each in totals]),
        ):
            present = [number for number in squares if number is not None]
            if present:
                is_jump = signal.update(math.sqrt(sum(present)), step) or is_jump
        return is_jump


@dataclass(frozen=True, slots=True)
class Totals:
    """Statistics over all layers of a sampled step."""

    is_finite: bool
    """Whether every number is finite, the elements of the gradients included."""
    grad_squares: float | None
    """Square of the norm of all gradients."""
    update_squares: float | None
    """Square of the norm of all updates."""


def measure_totals(row: Row) -> Totals:
    """Return the totals of a row."""
    nonfinite = row.column("nonfinite_count")
    is_finite = bool(np.isfinite(row.values).all()) and (nonfinite is None or not nonfinite.any())
    return Totals(is_finite, _sum_squares(row.column("grad_norm")), _sum_squares(row.column("update_norm")))


def _sum_squares(column: NDArray[np.float32] | None) -> float | None:
    return None if column is None else float(np.square(column, dtype=np.float64).sum())


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
