"""Decides which of the sampled steps are probed."""

from __future__ import annotations

import bisect
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
_HYSTERESIS = 2
"""Rungs of the ladder by which the cost must have changed to change the interval, as for sampling."""


class ProbeSchedule:
    """Decides which steps are probed: a few at the start, then one in a fixed number of sampled steps.

    The number is the smallest on the ladder at which probes keep to their share of the training's time.

    Args:
        sampling: decides which steps are sampled. Only these are probed.
        clock: function that returns the seconds of the training thread.
    """

    def __init__(self, sampling: SamplingLeader, clock: Callable[[], float]) -> None:
        self._sampling, self._clock = sampling, clock
        self._samples = 0
        self._since_probe = 0  # sampled steps since the last probe
        self.is_due = True
        """Whether the next sampled step is probed."""
        self._rung = bisect.bisect_left(LADDER, MIN_INTERVAL)
        self._spent = 0.0  # seconds of the probes of the step that is being computed
        self._cheapest = 0.0  # seconds of the cheapest probe so far; 0 before the first
        self._probe_at = clock()

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
            if self._spent > 0:
                self._cheapest = min(self._cheapest or self._spent, self._spent)
            self._adjust()
            self._since_probe, self._probe_at = 0, self._clock()
        self._spent = 0.0
        self.is_due = self._samples < FIRST_PROBES or self._since_probe + 1 >= LADDER[self._rung]

    def _adjust(self) -> None:
        """Change the interval if the cost asks for another one."""
        seconds = (self._clock() - self._probe_at - self._spent) / self._since_probe  # from one sample to the next
        if seconds > 0 and self._samples >= FIRST_PROBES:
            needed = max(MIN_INTERVAL, self._cheapest / (SHARE * seconds))
            rung = min(bisect.bisect_left(LADDER, needed), len(LADDER) - 1)
            if abs(rung - self._rung) >= _HYSTERESIS:
                self._rung = rung
