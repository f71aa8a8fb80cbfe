"""The times in which this process answered no request, by which it extends the leases of trials.

A worker can renew a lease only while the service answers. A process that is suspended, that gets no time of a busy
machine, or whose database is away, is late with its due work too. So it measures how late that is, on the database's
clock, and judges leases as if this time had not passed.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta

START_SECONDS = 15.0
"""Seconds that count as an absence when a process starts: before, there may have been none. A worker sends heartbeats
every second, and its requests take at most ten."""


class Absences:
    """Adds up the time by which the due work was late within the length of a lease.

    Args:
        interval: seconds between two runs of the due work.
        lease: length of a lease in seconds.

    >>> from datetime import UTC
    >>> absences, noon = Absences(interval=1.0, lease=5.0), datetime(2026, 11, 29, 12, tzinfo=UTC)
    >>> seconds = (*range(7), 26, 27, 28, 29, 30, 31, 32)
    >>> [round(absences.record_work(noon + timedelta(seconds=second)).total_seconds()) for second in seconds]
    [5, 5, 5, 5, 5, 5, 0, 19, 19, 19, 19, 19, 19, 0]
    """

    def __init__(self, interval: float, lease: float) -> None:
        self._interval = timedelta(seconds=interval)
        self.lease = timedelta(seconds=lease)
        """Length of a lease."""
        self._worked_at: datetime | None = None
        self._absences: deque[tuple[datetime, timedelta]] = deque()
        self.grace = timedelta(0)
        """Time by which leases are extended."""

    def record_work(self, at: datetime) -> timedelta:
        """Record that the due work is done at a moment of the database's clock, and return the new grace."""
        if self._worked_at is None:
            absence = min(self.lease, timedelta(seconds=START_SECONDS))
        else:
            absence = at - self._worked_at - self._interval
        self._worked_at = at
        if absence > self._interval:  # a shorter one leaves a worker enough time
            self._absences.append((at, absence))
        grace = timedelta(0)
        kept = 0
        for ended_at, absence in reversed(self._absences):
            if ended_at < at - self.lease - grace:
                break
            grace += absence
            kept += 1
        while len(self._absences) > kept:
            self._absences.popleft()
        self.grace = grace
        return grace
