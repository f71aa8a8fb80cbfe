"""How long the service has not answered, on a clock that stands still while this process cannot run."""

from __future__ import annotations

import time

SILENT_LEASES = 3
"""Number of leases without an answer after which a trial is given up.

It is more than one, because a service does not count the time in which it was suspended or starved. A trial that goes
on for nothing costs only this machine's time: the result of a lost attempt is refused.
"""


class Silence:
    """Adds up the seconds since the last answer of the service.

    A request and the pause before it cannot take longer than their time limits, unless the machine is too busy to run
    this process, or the process was suspended. This excess is not counted: the service was not asked meanwhile.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """Seconds without an answer."""
        self._recorded_at = time.monotonic()

    def record_answer(self) -> None:
        """Record that the service has answered."""
        self.seconds, self._recorded_at = 0.0, time.monotonic()

    def record_failure(self, longest: float) -> None:
        """Record that a request had no answer. `longest` is the time limit of the request and the pause before it."""
        now = time.monotonic()
        self.seconds += min(now - self._recorded_at, longest)
        self._recorded_at = now
