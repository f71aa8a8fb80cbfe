"""When a run that says it is running is believed no longer: `stalled`, until it speaks again.

One idea: nobody sweeps. Each append writes into the run's row until when its silence is explained by its own rhythm,
and whoever reads the row compares that with the time; so every replica says the same, and the filter of a list agrees
with what the list shows.

The rhythm is the longest pause of late. A job that evaluates for ten minutes after every epoch is given forty; one that
spoke every second is given a minute. The longest pause is forgotten by and by, so that a slow start does not count for
ever, and a pause counts for no more than what was allowed for it, so that a night's stall does not buy a week.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

START_SECONDS = 600.0
"""For what comes before the first step and after a rewind: loading data, compiling, restoring a checkpoint."""
LEAST_SECONDS = 60.0
"""A client that lost its connection tries again within that time."""
PAUSES = 4.0
"""How many of its longest pauses a run may be silent."""
KEPT_PER_APPEND = 0.95
"""Of the patience; after 50 quick appends less than a tenth is left of it."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a run may be silent, and until when that is."""

    seconds: float
    stalls_at: datetime

    @classmethod
    def at_start(cls, now: datetime) -> Patience:
        """Return that of a run which has yet to speak."""
        return cls(START_SECONDS, now + timedelta(seconds=START_SECONDS))

    def after_append(self, now: datetime) -> Patience:
        """Return that of a run which has just spoken."""
        spoke_at = self.stalls_at - timedelta(seconds=self.seconds)
        pause = min(max((now - spoke_at).total_seconds(), 0.0), self.seconds)
        seconds = max(LEAST_SECONDS, PAUSES * pause, KEPT_PER_APPEND * self.seconds)
        return Patience(seconds, now + timedelta(seconds=seconds))


def status_of(stored: str, stalls_at: datetime | None, now: datetime) -> str:
    """Return the status of a run as of now; without `stalls_at`, as a version before this one stored it."""
    return "stalled" if stored == "running" and stalls_at is not None and now >= stalls_at else stored
