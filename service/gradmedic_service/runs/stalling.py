"""How long a run may be silent before it counts as `stalled`.

Each append writes into the run's row until when the run may be silent. The due work gives a run whose time is over the
status `stalled`, and the next new step makes it `running` again.

A run may be silent for a multiple of its longest recent pause. A job that evaluates for ten minutes after every epoch
is given forty, and is forgiven the first such pause if it comes early. What is allowed shrinks slowly while the run
sends steps, so that a long pause is remembered over an epoch of many times its length, and a slow start is forgotten
in time. A pause counts for no more than ten times what was allowed: after a stall of one night, a run may not be silent
for a week.
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
MOST_PAUSES = 10.0
"""How many times what was allowed a pause may count for."""
SHRINKING = 0.05
"""Seconds by which patience shrinks in a second: a start's ten minutes are a minute after three hours."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How many seconds a run may be silent, and until when."""

    seconds: float
    stalls_at: datetime

    @classmethod
    def at_start(cls, now: datetime) -> Patience:
        """Return that of a run which has yet to speak."""
        return cls(START_SECONDS, now + timedelta(seconds=START_SECONDS))

    def after_append(self, now: datetime) -> Patience:
        """Return that of a run which has just spoken."""
        spoke_at = self.stalls_at - timedelta(seconds=self.seconds)
        pause = max((now - spoke_at).total_seconds(), 0.0)
        counted = min(pause, MOST_PAUSES * self.seconds)
        seconds = max(LEAST_SECONDS, PAUSES * counted, self.seconds - SHRINKING * counted)
        return Patience(seconds, now + timedelta(seconds=seconds))
