"""Renews the lease of an attempt, in a thread of its own.

The thread does nothing else, so that no slow start, full disk or silent cluster delays a heartbeat.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from gradmedic.api import Client
from gradmedic.exceptions import ApiError, ConflictError, GradmedicError, NotFoundError
from gradmedic.protocol.trials import ClaimedTrial
from gradmedic.transport.http import is_retryable
from gradmedic_worker.attempt import GRACE_SECONDS
from gradmedic_worker.silence import SILENT_LEASES, Silence
from gradmedic_worker.trial_result import clean_output

HEARTBEATS_PER_LEASE = 10
"""Number of heartbeats within the length of a lease."""
LONGEST_HEARTBEAT_INTERVAL = 1.0
"""Longest time in seconds between two heartbeats. A cancellation takes so long to arrive."""
HEARTBEAT_SECONDS = 10.0
"""Longest time limit of a heartbeat."""


class Heartbeats:
    """Sends heartbeats from `start` to `stop`, and keeps what the service has answered.

    Args:
        client: A client of the service, with the worker's key.
        claimed: The trial.
    """

    def __init__(self, client: Client, claimed: ClaimedTrial) -> None:
        self._client = client
        self._claimed = claimed
        self.interval = min(LONGEST_HEARTBEAT_INTERVAL, claimed.lease_seconds / HEARTBEATS_PER_LEASE)
        """Seconds between two heartbeats."""
        self.end_reason: str | None = None
        """Why the attempt has no lease any more; None while it has one."""
        self.is_stop_requested = False
        """Whether the service needs no more of the trial."""
        self.deadline: float | None = None
        """Time at which the trial must end, by `time.monotonic()`, as the last answer has it; None before an answer."""
        self._read_output: Callable[[], str] | None = None
        self._sent_output: str | None = None
        self._silence = Silence()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heartbeats {claimed.trial_id}", daemon=True)

    def start(self) -> None:
        """Begin to send heartbeats."""
        self._thread.start()

    def send_output_of(self, read_output: Callable[[], str]) -> None:
        """Send what this function returns with the heartbeats from now on."""
        self._read_output = read_output

    def stop(self) -> None:
        """Send no further heartbeat. One that is on its way has no effect, because the result follows."""
        self._is_over.set()

    def _run(self) -> None:
        next_at = time.monotonic()
        while not self._is_over.wait(max(0.0, next_at - time.monotonic())):
            next_at = time.monotonic() + self.interval
            self._send()
            if self.end_reason is not None:
                return

    def _send(self) -> None:
        output = None if self._read_output is None else clean_output(self._read_output())
        changed_output = None if output == self._sent_output else output
        lease_seconds = self._claimed.lease_seconds
        timeout = min(HEARTBEAT_SECONDS, max(1.0, lease_seconds / 3))
        try:
            answer = self._client.work.heartbeat(
                self._claimed.trial_id, self._claimed.attempt, changed_output, timeout=timeout
            )
        except (ConflictError, NotFoundError) as error:
            self.end_reason = error.problem.detail
        except GradmedicError as error:
            self._silence.record_failure(self.interval + timeout)
            if self._silence.seconds > SILENT_LEASES * lease_seconds:
                self.end_reason = f"the service could not be reached for {self._silence.seconds:.0f} s: {error}"
            elif isinstance(error, ApiError) and not is_retryable(error):
                self.end_reason = error.problem.detail
        else:
            self._silence.record_answer()
            self._sent_output = output
            self.deadline = time.monotonic() + answer.seconds - GRACE_SECONDS
            self.is_stop_requested = self.is_stop_requested or answer.stop
