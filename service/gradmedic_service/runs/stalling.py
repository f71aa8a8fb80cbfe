"""The rule for the status `stalled`: a running run has been silent for longer than its recent pauses explain.

Each append stores in the run's row until when the run may be silent (`stalls_at`). After that time, the service's due
work (`due_work.py`) stores the status `stalled`, and a day later `failed`: the process did not report its end. The next
new step makes the run `running` again.

Steps may be sent long after they were recorded, by `gradmedic sync` or after an outage. The silence begins when the
last step was recorded. The client's clock may be wrong, so only the difference of two of its times counts: that of the
step, and that of the request (the header `Date`).

A run may be silent for PAUSE_FACTOR times its longest recent pause. The limit shrinks slowly while steps arrive. So a
long pause, such as an evaluation after each epoch, is remembered over an epoch of many times its length, and a slow
start is forgotten in the end. A pause counts for at most MAX_PAUSE_FACTOR times the limit before it, so that a run that
stalled for a night does not get a limit of days.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from gradmedic_diagnosis import StepSeries

START_SECONDS = 600.0
"""Limit before the first step and after a rewind: loading data, compiling, restoring a checkpoint."""
MIN_SECONDS = 60.0
"""Smallest limit: a client that lost its connection tries again within that time."""
PAUSE_FACTOR = 4.0
"""Limit, in units of the longest pause."""
MAX_PAUSE_FACTOR = 10.0
"""Longest pause that counts, in units of the limit before it."""
SHRINK_RATE = 0.05
"""Seconds by which the limit shrinks in a second: from the start's ten minutes to one minute in three hours."""


SECONDS_TO_FAILURE = 86_400.0
"""Seconds between the status `stalled` and `failed`: a job that waits for its next slot on a cluster, or a laptop that
sleeps over night, goes on within a day."""
LONGEST_DELAY = 366 * 86_400.0
"""Seconds between a step and its request that are believed. More than that is not a time."""


@dataclass(frozen=True, slots=True)
class SilenceLimit:
    """The seconds for which a run may be silent, and the time at which they end."""

    seconds: float
    stalls_at: datetime

    @classmethod
    def at_start(cls, now: datetime) -> SilenceLimit:
        """Return the limit of a run that starts, or starts again, now."""
        return cls(START_SECONDS, now + timedelta(seconds=START_SECONDS))

    def after_append(self, now: datetime) -> SilenceLimit:
        """Return the limit after an append now; `self` is the limit since the append before."""
        last_append = self.stalls_at - timedelta(seconds=self.seconds)
        pause = max((now - last_append).total_seconds(), 0.0)
        counted = min(pause, MAX_PAUSE_FACTOR * self.seconds)
        seconds = max(MIN_SECONDS, PAUSE_FACTOR * counted, self.seconds - SHRINK_RATE * counted)
        return SilenceLimit(seconds, now + timedelta(seconds=seconds))


def recorded_at(times: StepSeries | None, sent_at: datetime | None, now: datetime) -> datetime:
    """Return when the last step of a request was recorded, by the service's clock.

    Args:
        times: times of the steps, seconds since the Unix epoch by the client's clock.
        sent_at: time of the request by the client's clock.
        now: time of the request by the service's clock.
    """
    if times is None or sent_at is None or not times.present.any():
        return now
    delay = sent_at.timestamp() - float(times.values[np.flatnonzero(times.present)[-1]])
    return now - timedelta(seconds=delay) if 0 < delay <= LONGEST_DELAY else now
