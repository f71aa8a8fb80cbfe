"""The rule for the status `stalled`: a running run has been silent for longer than its recent pauses explain.

Each append stores in the run's row until when the run may be silent (`stalls_at`). After that time, the service's due
work (`due_work.py`) stores the status `stalled`. The next new step makes the run `running` again.

A run may be silent for PAUSE_FACTOR times its longest recent pause. The limit shrinks slowly while steps arrive. So a
long pause, such as an evaluation after each epoch, is remembered over an epoch of many times its length, and a slow
start is forgotten in the end. A pause counts for at most MAX_PAUSE_FACTOR times the limit before it, so that a run that
stalled for a night does not get a limit of days.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

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
