"""Which steps are sampled, so that the training does not notice.

One idea: a debt. A sampled step costs what it was measured to cost; every step pays back a small share of its own
duration; the next step is sampled when nothing is owed. So the cost stays a share of the training's time whatever model
and machine are, and a moment that matters may run up a debt that later steps pay.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

FIRST_STEPS = 20
"""Steps at the start that are always sampled: they tell of the initial weights, and no verdict comes sooner."""
START_SECONDS = 1.0
"""What the start may cost without being owed: a short training is sampled throughout, a long one does not notice."""
SHARE = 0.0125
"""Of the training's time that sampling may take; the measurement of it is not exact, and 0.015 is promised."""
HURRIED_STEPS = 12
"""Steps that are sampled after something happened that a verdict may follow from: what grows must do so for ten sampled
steps running at most. What goes on growing jumps again."""
_LARGEST_DEBT = 4 * HURRIED_STEPS
"""In sampled steps; hurrying stops there, so that a training that jumps all the time is not sampled all the time."""
_SLOWEST = 2.0
"""Times the usual distance between samples while a debt is paid back."""
_LONGEST_STEP = 2.0
"""A step of more than so many usual ones was an evaluation or a pause, and pays as much as this many."""
_MEMORY = 0.1
"""Weight of a new duration in the averages."""


class Sampler:
    """Decides which steps are sampled. Used by the training thread; `hurry` may be called by any.

    Args:
        log_freq: a number samples the first steps and then every so many; None keeps to SHARE of the time.
        clock: returns seconds.
    """

    def __init__(self, log_freq: int | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._log_freq = log_freq
        self.clock = clock
        """What the time spent is measured with."""
        self._count = 0
        self._last_at: float | None = None
        self.spent = 0.0
        """Seconds that observing the training took so far."""
        self._accounted = 0.0  # of them
        self._spent_at_start = 0.0
        self._step_seconds = 0.0  # average, without what is spent here
        self._sample_seconds = 0.0  # average cost of a sampled step
        self._debt = 0.0
        self._since_sample = 0
        self._longest_gap = 0.0  # in steps
        self._hurried = 0
        self._follows = False
        self._next_interval: Callable[[], int] | None = None
        self._led_interval = 1
        self.is_sampling = True
        """Whether the step that is being computed carries statistics."""

    @property
    def interval(self) -> int:
        """About how many steps lie between two samples."""
        if self._log_freq is not None:
            return self._log_freq
        paid = SHARE * self._step_seconds
        return max(1, math.ceil(self._sample_seconds / paid)) if paid > 0 else 1

    def spend(self, seconds: float) -> None:
        """Take in what an observation cost the training."""
        self.spent += seconds

    def hurry(self) -> None:
        """Sample the next steps, because a verdict may be near."""
        self._hurried = HURRIED_STEPS

    def follow_first_process(self) -> None:
        """From now on sample the steps that the first process says, in step with all others."""
        self._follows = True

    def follow(self, read_interval: Callable[[], int]) -> None:
        """Take in how to learn the interval that the first process wished at a sampled step."""
        self._next_interval = read_interval

    def wish(self) -> int:
        """Return the interval that this process would choose, were it the first."""
        if self._log_freq is not None:
            return 1 if self._count < FIRST_STEPS else self._log_freq
        is_near = self._hurried > 0 and self._debt < _LARGEST_DEBT * self._sample_seconds
        if is_near:
            self._hurried -= 1
        is_at_start = self._count < FIRST_STEPS or self._spent_at_start < START_SECONDS
        return 1 if is_at_start or is_near else self.interval

    def advance(self, spent: float = 0.0) -> None:
        """Go on to the next step.

        Written for few calls: after a training step its code must be fetched from memory, every function of it.

        Args:
            spent: seconds that the last observation of the step took.
        """
        self.spent += spent
        self._count += 1
        if self._follows:
            self._account()
            self._since_sample = 0 if self.is_sampling else self._since_sample + 1
            # What was said at the last sampled step but one holds: the last one may still be on its way.
            self.is_sampling = self._since_sample + 1 >= self._led_interval
            if self.is_sampling and self._next_interval is not None:
                self._led_interval, self._next_interval = max(1, self._next_interval()), None
            return
        if self._log_freq is not None:
            self.is_sampling = self._count < FIRST_STEPS or self._count % self._log_freq == 0
            return
        self._account()
        if self.is_sampling:
            self._since_sample, self._longest_gap = 0, _SLOWEST * self.interval
        else:
            self._since_sample += 1
        if self._count < FIRST_STEPS or self._spent_at_start < START_SECONDS:
            self.is_sampling = True
        elif self._hurried > 0 and self._debt < _LARGEST_DEBT * self._sample_seconds:
            self._hurried -= 1
            self.is_sampling = True
        else:
            self.is_sampling = self._debt <= 0.0 or self._since_sample + 1 >= self._longest_gap

    def _account(self) -> None:
        now, spent = self.clock(), self.spent - self._accounted
        self._accounted = self.spent
        if self.is_sampling:
            self._sample_seconds = _average(self._sample_seconds, spent)
        if self._last_at is not None:
            seconds = max(0.0, now - self._last_at - spent)
            if self._step_seconds:
                seconds = min(seconds, _LONGEST_STEP * self._step_seconds)
            self._step_seconds = _average(self._step_seconds, seconds)
            self._debt -= SHARE * seconds
        self._last_at = now
        if self._count <= FIRST_STEPS or self._spent_at_start < START_SECONDS:
            self._spent_at_start += spent
        else:
            self._debt += spent
        self._debt = max(self._debt, 0.0)


def _average(average: float, value: float) -> float:
    return value if average == 0.0 else average + _MEMORY * (value - average)
