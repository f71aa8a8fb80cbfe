"""Decides which steps are sampled, so that the training is not slowed down.

The sampler keeps a debt in seconds. A sampled step adds what it was measured to cost. Every step pays back a small
share of its own duration. The next step is sampled when nothing is owed. So the cost stays a share of the training's
time on any model and machine. At moments that matter, steps are sampled in spite of a debt, and later steps pay it
back.

A step is one `log()`, and usually has one optimizer step. A script that seldom or never calls `log()` makes many
optimizer steps in between: of these, some are sampled, so that the cost stays the same share.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

FIRST_STEPS = 20
"""Steps at the start that are always sampled. They show the initial weights, and no verdict comes sooner."""
START_SECONDS = 1.0
"""Seconds that sampling may take at the start without a debt. So a short training is sampled throughout."""
SHARE = 0.0125
"""Share of the training's time that sampling may take. The measurement is not exact, and 0.015 is promised."""
ALARM_STEPS = 12
"""Steps that are sampled after a spike or an unhealthy verdict. A verdict of growth needs ten sampled steps in a row at
most. A number that goes on growing causes the next spike."""
_LARGEST_DEBT = 4 * ALARM_STEPS
"""Largest debt, in costs of a sampled step, at which every step is sampled after a spike. So a training with spikes all
the time is not sampled all the time."""
_LARGEST_GAP = 2.0
"""Largest distance between samples while a debt is paid back, in usual distances."""
_LONGEST_STEP = 2.0
"""Longest duration of a step that pays back debt, in usual steps. A longer step was an evaluation or a pause."""
STEPS_AS_ONE = 8
"""Optimizer steps between two calls of `log()` that are sampled together or not at all. A critic takes five steps for
one of its generator (Gulrajani et al. 2017), and a sampled step must have the layers of both."""
_MEMORY = 0.1
"""Weight of a new duration in the averages."""


class SamplingLeader(Protocol):
    """Decides in the place of a sampler."""

    @property
    def is_sampling(self) -> bool:
        """Whether the step that is being computed carries statistics."""


class Sampler:
    """Decides which steps are sampled. Used by the training thread.

    Args:
        log_freq: a number samples the first steps and then each multiple of it; None keeps to SHARE of the time.
        clock: function that returns seconds.
    """

    def __init__(self, log_freq: int | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._log_freq = log_freq
        self.clock = clock
        """The clock that the cost of sampling is measured with."""
        self._count = 0
        self._last_at: float | None = None
        self.spent = 0.0
        """Seconds that observing the training took so far."""
        self._accounted = 0.0  # seconds of `spent` that are in the debt already
        self._spent_at_start = 0.0
        self._step_seconds = 0.0  # average, without what is spent here
        self._sample_seconds = 0.0  # average cost of a sampled step
        self._debt = 0.0
        self._since_sample = 0
        self._longest_gap = 0.0  # in steps
        self._alarm_steps_left = 0
        self._stepped: set[object] = set()  # optimizers that have stepped since the last account
        self._rounds = 0  # optimizer steps since the last `log()`, those of several optimizers counted as one
        self._leaders: list[SamplingLeader] = []
        self.is_sampling = True
        """Whether the step that is being computed carries statistics."""

    @property
    def interval(self) -> int:
        """About how many steps lie between two samples."""
        if self._log_freq is not None:
            return self._log_freq
        paid = SHARE * self._step_seconds
        return max(1, math.ceil(self._sample_seconds / paid)) if paid > 0 else 1

    def add_cost(self, seconds: float) -> None:
        """Add the seconds that an observation took."""
        self.spent += seconds

    def sample_every_step(self) -> None:
        """Sample each of the next steps, because a verdict may be near."""
        self._alarm_steps_left = ALARM_STEPS

    def follow(self, leader: SamplingLeader) -> None:
        """Sample the steps that a leader samples: in trainings of several processes, all must sample the same ones."""
        self._leaders.append(leader)

    def unfollow(self, leader: SamplingLeader) -> None:
        """Follow a leader no more. Without leaders, the sampler decides again."""
        if leader in self._leaders:
            self._leaders.remove(leader)

    def choose_interval(self) -> int:
        """Return the number of steps to the next sample. The leaders of all processes use that of the first one."""
        if self._log_freq is not None:
            return 1 if self._count < FIRST_STEPS else self._log_freq
        is_alarm = self._alarm_steps_left > 0 and self._debt < _LARGEST_DEBT * self._sample_seconds
        if is_alarm:
            self._alarm_steps_left -= 1
        is_at_start = self._count < FIRST_STEPS or self._spent_at_start < START_SECONDS
        return 1 if is_at_start or is_alarm else self.interval

    def advance(self, spent: float = 0.0) -> None:
        """Go on to the next step.

        It makes few calls, because after a training step the code of each function has to be fetched from memory.

        Args:
            spent: seconds that the last observation of the step took.
        """
        self.spent += spent
        self._rounds = 0
        self._stepped.clear()
        self._go_on(is_whole_step=True, may_change=True)

    def end_optimizer_step(self, optimizer: object) -> bool:
        """Account for a step of an optimizer; the first one since the last account belongs to the next `log()`.

        Args:
            optimizer: key of the optimizer.

        Returns:
            Whether this optimizer had stepped since the last account already.
        """
        if optimizer not in self._stepped:
            self._stepped.add(optimizer)
            return False
        self._stepped.clear()
        self._stepped.add(optimizer)
        self._rounds += 1
        self._go_on(is_whole_step=False, may_change=self._rounds >= STEPS_AS_ONE)
        return True

    def _go_on(self, *, is_whole_step: bool, may_change: bool) -> None:
        """Account for what has passed, and decide whether what follows is sampled, if it may change."""
        self._count += may_change
        if self._leaders:
            self._account()
            self.is_sampling = any(leader.is_sampling for leader in self._leaders)
            return
        if self._log_freq is not None:
            if may_change:
                self.is_sampling = self._count < FIRST_STEPS or self._count % self._log_freq == 0
            return
        self._account()
        if self.is_sampling:
            self._since_sample, self._longest_gap = 0, _LARGEST_GAP * self.interval
        else:
            self._since_sample += 1
        if not may_change:
            return
        if self._count < FIRST_STEPS or self._spent_at_start < START_SECONDS:
            self.is_sampling = True
        elif is_whole_step and self._alarm_steps_left > 0 and self._debt < _LARGEST_DEBT * self._sample_seconds:
            self._alarm_steps_left -= 1
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
