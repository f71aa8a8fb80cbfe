"""Measures what a sampled step costs, and how many steps must share this cost.

The seconds are CPU time of the training thread, because a busy machine lengthens the time on the wall, and must not
change which steps are sampled. A mean is one over the middle half: it leaves out code that runs for the first time, an
evaluation between two steps, an interrupt.
"""

from __future__ import annotations

import bisect
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SHARE = 0.0125
"""Share of the training's time that sampling may take. The measurement is not exact, and 0.015 is promised."""
LADDER = (1, *(rung for i in range(1, 21) for rung in (2**i, 3 * 2 ** (i - 1))))
"""The intervals of the schedule, in steps: 1, 2, 3, 4, 6, 8, 12, 16, 24, ... Between two of them, cost estimates that
differ a little give the same interval."""
_TOLERANCE = 1.1
"""Factor by which the cost may exceed its share on a rung. A rung is a third or a half longer than the one below it."""
_LARGEST_OVERHEAD = 0.5
"""Largest fraction of the share that steps without a sample may use up. So some steps are sampled of the shortest ones,
for which a call of `log()` costs more than the share."""
_MAX_DURATIONS = 64
"""Durations that are kept of a window. With long intervals, there are many steps between its samples."""


def choose_clock() -> Callable[[], float]:
    """Return the function that returns the CPU time of the calling thread, in seconds.

    On Windows, that clock moves in steps of 16 milliseconds, so that the time on the wall is more exact.
    """
    return time.perf_counter if sys.platform == "win32" else time.thread_time


@dataclass(frozen=True, slots=True)
class SamplingCost:
    """What sampling costs."""

    sample_seconds: float
    """Seconds that the observation of a sampled step takes."""
    other_seconds: float
    """Seconds that the observation of another step takes."""
    step_seconds: float
    """Seconds of a step of the training itself."""

    def find_rung(self) -> int:
        """Return the index in `LADDER` of the shortest interval at which the cost stays near its share."""
        paid = SHARE * self.step_seconds
        paid = max(paid - self.other_seconds, _LARGEST_OVERHEAD * paid)
        extra = max(0.0, self.sample_seconds - self.other_seconds)
        if paid <= 0.0:
            return 0
        return min(bisect.bisect_left(LADDER, extra / (_TOLERANCE * paid)), len(LADDER) - 1)


class CostMeter:
    """Collects the durations of steps, until there are enough of them for an estimate."""

    def __init__(self) -> None:
        self._samples: list[float] = []
        self._others: list[float] = []
        self._steps: list[float] = []

    @property
    def sample_count(self) -> int:
        """Number of sampled steps since the last call of `restart`."""
        return len(self._samples)

    def add(self, spent: float, seconds: float | None, *, is_sampled: bool) -> None:
        """Add a step.

        Args:
            spent: seconds that its observation took.
            seconds: seconds of the step itself; None if they are not known.
            is_sampled: whether it was sampled.
        """
        if is_sampled:
            self._samples.append(spent)
        elif len(self._others) < _MAX_DURATIONS:
            self._others.append(spent)
        if seconds is not None and len(self._steps) < _MAX_DURATIONS:
            self._steps.append(seconds)

    def restart(self) -> None:
        """Forget all steps."""
        self._samples.clear()
        self._others.clear()
        self._steps.clear()

    def estimate(self) -> SamplingCost:
        """Return the cost over all steps since the last call of `restart`."""
        return SamplingCost(_middle_mean(self._samples), _middle_mean(self._others), _middle_mean(self._steps))

    def estimate_from_smallest(self) -> SamplingCost:
        """Return the cost by the smallest durations: of the very first steps, the others contain a warm-up."""
        return SamplingCost(min(self._samples, default=0.0), 0.0, min(self._steps, default=0.0))


def _middle_mean(seconds: Sequence[float]) -> float:
    """Return the mean of the middle half. A median would be the one or the other of steps of two kinds."""
    if not seconds:
        return 0.0
    left_out = len(seconds) // 4
    kept = sorted(seconds)[left_out : len(seconds) - left_out]
    return sum(kept) / len(kept)
