"""What hosts the processes of trials: the contract between the supervisor and its executors.

One idea: the supervisor holds the key and the lease, an executor holds a process. It is told which attempt to run and
says how that ended; what it cannot tell because a machine, or the way to it, was lost is `Lost`, which is no result:
another attempt is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from gradmedic.protocol.trials import ClaimedTrial, TrialReport

TIMEOUT = "timeout"
STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnd:
    """How the process of a trial ended, and what it said."""

    exit_code: int | None
    """Negative: a signal. None where nobody could tell."""
    reason: str | None = None
    """Why it was ended: `TIMEOUT`, `STOPPED` or a sentence; None if it ended by itself."""
    report: TrialReport = field(default_factory=TrialReport)
    """The report of the script, which `gradmedic.init()` and `run.watch()` have written."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Nobody can say what became of a trial's process: whatever hosted it is gone."""

    reason: str


class HostedTrial(Protocol):
    """The process of an attempt, wherever it is."""

    @property
    def has_started(self) -> bool:
        """Whether there is a process yet; until then no time counts."""

    def wait(self, seconds: float) -> TrialEnd | Lost | None:
        """Wait for the end, at most so long; None if it has not come."""

    def output(self) -> str:
        """Return what it has printed, or the beginning and end of it."""

    def stop(self) -> None:
        """Ask it to end by itself; after a moment it is killed."""

    def close(self) -> None:
        """Let go of it: whatever of it still runs is killed, and what it left on disk is removed."""


class Executor(Protocol):
    """Hosts trials; safe to share between threads."""

    @property
    def name(self) -> str:
        """Return what the service calls it."""

    @property
    def slots(self) -> int:
        """Return how many trials it takes at the same time."""

    def prepare(self) -> None:
        """Make ready. Raises ConfigurationError where it can never work as it is configured."""

    def fitting(self) -> list[str]:
        """Return the trainables that it could start a trial of now."""

    def start(self, claimed: ClaimedTrial) -> HostedTrial:
        """Begin an attempt, which ends `launcher.GRACE` before its seconds are over; returns at once."""

    def close(self) -> None:
        """End whatever was kept for trials to come."""
