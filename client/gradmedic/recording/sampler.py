"""Decides which steps are sampled, so that the training is not slowed down.

The schedule is a function of the number of steps and of a cost that is measured over the first steps. The first steps
are sampled; then every n-th step is, where n is the shortest interval of a fixed ladder at which sampling costs its
share of the training's time. The cost is measured on, but n stays until the measurement has moved by two rungs of the
ladder, twice in a row. So a busy machine does not change which steps are sampled.

Steps that matter are sampled besides: after a spike or an unhealthy verdict, and a step with a non-finite gradient.
Each of them is owed, and while steps are owed, samples come half as often.

In a trial nothing depends on a clock: trials are compared, and one on a busy machine must have the statistics of one on
a quiet machine. There, the steps are chosen by their number alone.

A step is one `log()`, and usually has one optimizer step. A script that seldom or never calls `log()` makes many
optimizer steps in between: of these, some are sampled, so that the cost stays the same share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from gradmedic.recording.sampling_cost import LADDER, CostMeter, SamplingCost, choose_clock

FIRST_STEPS = 20
"""Steps at the start that are always sampled. They show the initial weights, and no verdict comes sooner."""
FEWEST_FIRST_STEPS = 3
"""The same, if sampling them costs more than START_SECONDS. From these steps the cost is estimated for the first time,
because the first one contains a warm-up."""
START_SECONDS = 1.0
"""Seconds that sampling may take at the start beyond its share. So a short training is sampled throughout."""
_START_RATIO = 4
"""Ratio of the numbers of steps at the start: 20, 80, 320, 1280, ... The number is the one that is nearest to
START_SECONDS, which takes half to twice as long. A small ratio would make the number depend on small differences of the
estimate."""
_WINDOW = 8
"""Samples after which the cost is estimated again."""
_HYSTERESIS = 2
"""Rungs of the ladder by which two estimates in a row must differ from the interval, in the same direction, to change
it: a factor of 1.8 to 2.25 in the cost."""
ALARM_STEPS = 12
"""Steps that are sampled after a spike or an unhealthy verdict. A verdict of growth needs ten sampled steps in a row at
most. A number that goes on growing causes the next spike."""
_LARGEST_DEBT = 4 * ALARM_STEPS
"""Largest number of samples that are owed at which every step is sampled after a spike. So a training with spikes all
the time is not sampled all the time."""
_LARGEST_URGENT_DEBT = 2 * _LARGEST_DEBT
"""The same for steps with a non-finite gradient, which must not go unseen because there were spikes before."""
_LARGEST_GAP = 2
"""Largest distance between samples while steps are owed, in intervals."""
STEPS_AS_ONE = 8
"""Optimizer steps between two calls of `log()` that are sampled together or not at all. A critic takes five steps for
one of its generator (Gulrajani et al. 2017), and a sampled step must have the layers of both."""


class SamplingLeader(Protocol):
    """Decides in the place of a sampler."""

    @property
    def is_sampling(self) -> bool:
        """Whether the step that is being computed carries statistics."""


class Sampler:
    """Decides which steps are sampled. Used by the training thread.

    Args:
        log_freq: a number samples the first steps and then each multiple of it; None keeps to a share of the time, or
            samples every step of a trial.
        clock: function that returns seconds; by default, the CPU time of the calling thread.
        is_trial: whether the run is a trial.
    """

    def __init__(
        self, log_freq: int | None, clock: Callable[[], float] | None = None, *, is_trial: bool = False
    ) -> None:
        self._log_freq = 1 if is_trial and log_freq is None else log_freq
        self.is_trial = is_trial
        """Whether the run is a trial."""
        self.clock = clock or choose_clock()
        """The clock that the cost of sampling is measured with."""
        self._count = 0
        self._accounts = 0  # steps of optimizers, and calls of `log()` after them
        self._first_steps = FIRST_STEPS
        self._start_accounts = 0
        self._is_start_estimated = False
        self._is_estimated = False
        self._rung = 0
        self._direction = 0  # of the change that the last estimate asked for
        self._meter = CostMeter()
        self._last_at: float | None = None
        self.spent = 0.0
        """Seconds that observing the training took so far."""
        self._accounted = 0.0  # seconds of `spent` that belong to earlier steps
        self._owed = 0  # steps until a sample is due, if nothing else happens
        self._since_sample = 0
        self._longest_gap = 0  # between samples while steps are owed
        self._joint_steps = 0  # that are sampled together or not at all, so far
        self._alarm_steps_left = 0
        self._stepped: set[object] = set()  # optimizers that have stepped since the last account
        self._sampled: set[object] = set()  # optimizers whose steps since the last `log()` are in its sample
        self._rounds = 0  # optimizer steps since the last `log()`, those of several optimizers counted as one
        self._leaders: list[SamplingLeader] = []
        self.is_sampling = True
        """Whether the step that is being computed carries statistics."""

    @property
    def interval(self) -> int:
        """How many steps lie between two samples, as a rule."""
        return LADDER[self._rung] if self._log_freq is None else self._log_freq

    def add_cost(self, seconds: float) -> None:
        """Add the seconds that an observation took."""
        self.spent += seconds

    def sample_every_step(self) -> None:
        """Sample each of the next steps, because a verdict may be near."""
        self._alarm_steps_left = ALARM_STEPS

    def sample_this_step(self) -> bool:
        """Sample the step that is being computed, because it must not be missed. Return whether it is sampled.

        A leader that does not sample it is not overruled. If this happens all the time, it has no effect.
        """
        if not self.is_sampling and not self._leaders:
            self.is_sampling = self._owed < _LARGEST_URGENT_DEBT * self.interval
        return self.is_sampling

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
        return 1 if self._is_at_start() or self._take_alarm_step() else self.interval

    def completes_sample(self, optimizer: object) -> bool:
        """Return whether the next `log()` has a sample of other optimizers, which lacks this one.

        A critic may take more than `STEPS_AS_ONE` steps for one of its generator. Its sample is completed by the step
        of the generator.

        Args:
            optimizer: key of the optimizer that is about to step.
        """
        return bool(self._sampled) and optimizer not in self._sampled

    def advance(self, spent: float = 0.0) -> None:
        """Go on to the next step.

        It makes few calls, because after a training step the code of each function has to be fetched from memory.

        Args:
            spent: seconds that the last observation of the step took.
        """
        self.spent += spent
        self._rounds = 0
        self._stepped.clear()
        self._sampled.clear()
        self._go_on(is_whole_step=True, may_change=True)

    def end_optimizer_step(self, optimizer: object) -> bool:
        """Account for a step of an optimizer; the first one since the last account belongs to the next `log()`.

        Args:
            optimizer: key of the optimizer.

        Returns:
            Whether this optimizer had stepped since the last account already.
        """
        if self.is_sampling or self._sampled:
            self._sampled.add(optimizer)
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
        self._accounts += 1
        if self._log_freq is None:
            self._measure()
        self._joint_steps += 1
        if self.is_sampling:
            self._since_sample, self._longest_gap = 0, _LARGEST_GAP * self.interval * self._joint_steps
            if not self._is_at_start():
                self._owed += self.interval
        else:
            self._since_sample += 1
        self._owed = max(0, self._owed - 1)
        if may_change:
            self._joint_steps = 0
        if self._leaders:
            self.is_sampling = any(leader.is_sampling for leader in self._leaders)
        elif may_change and self._log_freq is not None:
            self.is_sampling = self._count < FIRST_STEPS or self._count % self._log_freq == 0
        elif may_change:
            self.is_sampling = (
                self._is_at_start()
                or (is_whole_step and self._take_alarm_step())
                or self._owed <= 0
                or self._since_sample + 1 >= self._longest_gap
            )

    def _is_at_start(self) -> bool:
        """Whether the step that is being computed is sampled because it belongs to the start."""
        return self._count < self._first_steps or self._accounts < self._start_accounts

    def _take_alarm_step(self) -> bool:
        """Return whether the next step is sampled because of an alarm, and count it."""
        if self._alarm_steps_left <= 0 or self._owed >= _LARGEST_DEBT * self.interval:
            return False
        self._alarm_steps_left -= 1
        return True

    def _measure(self) -> None:
        """Measure the step that has ended, and estimate the cost where it is time to."""
        now, spent = self.clock(), self.spent - self._accounted
        self._accounted = self.spent
        seconds = None if self._last_at is None else max(0.0, now - self._last_at - spent)
        self._last_at = now
        self._meter.add(spent, seconds, is_sampled=self.is_sampling)
        if self._is_estimated:
            if self._meter.sample_count >= _WINDOW:
                self._move(self._meter.estimate())
                self._meter.restart()
        elif not self._is_start_estimated and self._count >= FEWEST_FIRST_STEPS:
            self._is_start_estimated = True
            self._end_first_steps(self._meter.estimate_from_smallest())
        if not self._is_estimated and self._count >= self._first_steps:
            is_short = self._first_steps < FIRST_STEPS
            self._begin_schedule(self._meter.estimate_from_smallest() if is_short else self._meter.estimate())
            self._meter.restart()

    def _end_first_steps(self, cost: SamplingCost) -> None:
        """Decide how many of the first steps are sampled, after the first few of them."""
        if cost.find_rung() > 0 and FIRST_STEPS * cost.sample_seconds > START_SECONDS:
            affordable = int(START_SECONDS / cost.sample_seconds)
            self._first_steps = max(FEWEST_FIRST_STEPS, 1, *(rung for rung in LADDER if rung <= affordable))

    def _begin_schedule(self, cost: SamplingCost) -> None:
        """Choose the interval, and how many further steps belong to the start."""
        self._is_estimated = True
        self._rung = cost.find_rung()
        if self._first_steps == FIRST_STEPS and cost.sample_seconds > 0:
            affordable = START_SECONDS / cost.sample_seconds / FIRST_STEPS
            power = round(math.log(affordable, _START_RATIO)) if affordable > 1 else 0
            self._start_accounts = FIRST_STEPS * _START_RATIO**power

    def _move(self, cost: SamplingCost) -> None:
        """Change the interval if this estimate and the last one ask for it."""
        difference = cost.find_rung() - self._rung
        direction = 0 if abs(difference) < _HYSTERESIS else (1 if difference > 0 else -1)
        if direction and direction == self._direction:
            self._rung += difference
            direction = 0
        self._direction = direction
