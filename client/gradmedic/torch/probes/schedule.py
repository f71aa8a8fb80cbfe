"""Decides which of the sampled steps are probed."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable

from gradmedic.recording.sampler import SamplingLeader
from gradmedic.recording.sampling_cost import LADDER

SHARE = 0.0025
"""Share of the training's time that probes may take, beside that of sampling (0.0125): together 1.5 %."""
FIRST_PROBES = 3
"""Sampled steps at the start that are probed. The first contains a warm-up, so that the cost needs more than one."""
MIN_INTERVAL = 4
"""Smallest number of sampled steps from one probe to the next. So a probe is an exception among the samples, which the
estimate of the cost of sampling leaves out."""
START_SECONDS = 0.5
"""Seconds that probes may take at the start beyond their share. So a short training is probed throughout: a condition
takes several probes to be sure of."""
_START_RATIO = 4
"""Ratio of the numbers of probes at the start: 4, 16, 64, 256, ... The number is the one that is nearest to
START_SECONDS. A small ratio would make the number depend on small differences of the cost."""
_HYSTERESIS = 2
"""Rungs of the ladder by which the cost must have changed to change the interval, as for sampling."""


class ProbeSchedule:
    """Decides which steps are probed: the first ones, then one in a number of sampled steps.

    At the start, the number is MIN_INTERVAL. Then it is the smallest on the ladder at which probes keep to their share
    of the training's time. Without a clock, it stays MIN_INTERVAL.

    Args:
        sampling: decides which steps are sampled. Only these are probed.
        clock: function that returns the seconds of the training thread; None in a trial, where nothing may depend on
            time.
    """

    def __init__(self, sampling: SamplingLeader, clock: Callable[[], float] | None) -> None:
        self._sampling, self._clock = sampling, clock
        self._samples = 0
        self._since_probe = 0  # sampled steps since the last probe
        self.is_due = True
        """Whether the next sampled step is probed."""
        self._probes = 0
        self._start_probes = FIRST_PROBES
        self._rung = bisect.bisect_left(LADDER, MIN_INTERVAL)
        self._spent = 0.0  # seconds of the probes of the step that is being computed
        self._cheapest = 0.0  # seconds of the cheapest probe so far; 0 before the first
        self._probe_at = 0.0 if clock is None else clock()

    @property
    def is_probing(self) -> bool:
        """Whether the step that is being computed is probed."""
        return self.is_due and self._sampling.is_sampling

    def add_cost(self, seconds: float) -> None:
        """Add the seconds that a probe took."""
        self._spent += seconds

    def finish_step(self) -> None:
        """Go on to the next step. Called before the sampler decides on it."""
        if not self._sampling.is_sampling:
            return
        self._samples += 1
        self._since_probe += 1
        if self.is_due:
            self._probes += 1
            if self._clock is not None:
                self._follow_cost(self._clock())
            self._since_probe = 0
        self._spent = 0.0
        interval = MIN_INTERVAL if self._probes < self._start_probes else LADDER[self._rung]
        self.is_due = self._samples < FIRST_PROBES or self._since_probe + 1 >= interval

    def _follow_cost(self, now: float) -> None:
        """Choose the next interval by the cost of the probe that has ended."""
        if self._spent > 0:
            self._cheapest = min(self._cheapest or self._spent, self._spent)
        if self._probes == FIRST_PROBES:
            self._start_probes = self._count_start_probes()
        self._adjust(now)
        self._probe_at = now

    def _count_start_probes(self) -> int:
        """Return how many probes belong to the start."""
        affordable = START_SECONDS / self._cheapest if self._cheapest > 0 else 0.0
        return _START_RATIO ** round(math.log(affordable, _START_RATIO)) if affordable > FIRST_PROBES else FIRST_PROBES

    def _adjust(self, now: float) -> None:
        """Change the interval if the cost asks for another one."""
        seconds = (now - self._probe_at - self._spent) / self._since_probe  # from one sample to the next
        if seconds > 0 and self._samples >= FIRST_PROBES:
            needed = max(MIN_INTERVAL, self._cheapest / (SHARE * seconds))
            rung = min(bisect.bisect_left(LADDER, needed), len(LADDER) - 1)
            if abs(rung - self._rung) >= _HYSTERESIS:
                self._rung = rung
