"""The contract between the supervisor and the executors, which host the processes of trials.

The supervisor holds the worker's key and renews the lease. An executor runs the process of an attempt and returns how
it ended. If the executor has lost the process, for example with its machine, it returns `LostAttempt`: the attempt has
no result, and the service makes another one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from gradmedic.protocol.trial_report import TrialReport
from gradmedic.protocol.trials import ClaimedTrial

TIMEOUT = "timeout"
"""Reason of a trial that was ended at its time limit."""
STOPPED = "stopped"
"""Reason of a trial that was ended by `stop`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnd:
    """How the process of a trial ended."""

    exit_code: int | None
    """Exit code, negative for a signal; None if it is unknown."""
    reason: str | None = None
    """Why the trial was ended: `TIMEOUT`, `STOPPED` or a sentence; None if it ended by itself."""
    report: TrialReport = field(default_factory=TrialReport)
    """The script's report, written by `gradmedic.init()` and `run.watch()`: applied remedies, versions and device."""


@dataclass(frozen=True, slots=True)
class LostAttempt:
    """The executor has lost the process of an attempt, so its end is unknown."""

    reason: str


class TrialProcess(Protocol):
    """The process of an attempt. It may still wait for a place to run."""

    @property
    def has_started(self) -> bool:
        """Whether the process runs, or has run. The time limit counts from the start."""

    def wait(self, seconds: float) -> TrialEnd | LostAttempt | None:
        """Wait up to `seconds` for the end. Return None if it has not come.

        The steps that the script left on disk are sent before: the end comes when the service has them, or after the
        length of a lease.
        """

    def output(self) -> str:
        """Return the output so far; of a long output, its start and its end."""

    def stop(self) -> None:
        """Send SIGTERM to the script, and SIGKILL shortly after."""

    def close(self) -> None:
        """Kill everything that still runs, and remove the trial's files."""


class Executor(Protocol):
    """Hosts the processes of trials. Safe to share between threads."""

    @property
    def name(self) -> str:
        """Name of the executor in the API."""

    @property
    def slots(self) -> int:
        """Number of trials that may run at the same time."""

    def prepare(self) -> None:
        """Prepare for trials.

        Raises:
            ConfigurationError: The executor can never work with its configuration.
        """

    def list_startable_trainables(self) -> list[str]:
        """Return the names of the trainables whose trials could start now."""

    def start(self, claimed: ClaimedTrial) -> TrialProcess:
        """Start an attempt without waiting for it. It is ended `GRACE_SECONDS` before its seconds are over."""

    def close(self) -> None:
        """Release everything that is kept for later trials."""
