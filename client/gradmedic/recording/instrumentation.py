"""What a framework must offer so that a run can record its training: the seam between `Run` and `gradmedic.torch`.

One idea: a measurement may be under way on an accelerator when `log()` is called, so it is handed on unread. The thread
that records steps reads it and waits for the device if need be; the training never does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from gradmedic.protocol.runs import Training
from gradmedic.recording.step import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a source saw since the last step."""

    row: Row | None = None
    """None if no optimizer stepped, or the step is not sampled."""
    learning_rate: float | None = None
    loss_scale: float | None = None
    clip_coefficient: float | None = None
    skipped: bool = False


class Pending(Protocol):
    """A measurement that may still be on its way from a device. Read once, on any thread."""

    def read(self) -> Measurement:
        """Return the measurement, waiting for it if need be."""


class PendingNumber(Protocol):
    """A number that may still be on its way from a device."""

    def read(self) -> float:
        """Return the number, waiting for it if need be."""


class Instrumentation(Protocol):
    """A model and its optimizers under observation."""

    def describe(self) -> None:
        """Add its layers to the run's book, unless that is done. Called before the first update at the latest."""

    def training(self) -> Training | None:
        """Return what is known of how it trains, as of the last measurement that was read. Any thread may call."""

    @property
    def framework(self) -> str:
        """Name and version of the framework, for example `torch 2.13.0`."""

    @property
    def statistics(self) -> tuple[str, ...]:
        """The statistics of its rows."""

    def take(self) -> Pending:
        """Return what was measured since the last call, and begin the next step. Describes, unless that is done."""

    def clip(self, max_norm: float) -> None:
        """Limit the norm of the gradients from the next update on. Called by the training thread."""

    def hold(self, number: Any) -> PendingNumber | float | None:
        """Return a number of the framework's own, or start copying it from a device; None if it is none."""

    def close(self) -> None:
        """Stop observing and leave no trace in model, optimizer or framework."""
