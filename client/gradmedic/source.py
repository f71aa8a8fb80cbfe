"""What a framework must offer so that a run can record its training: the seam between `Run` and `gradmedic.torch`.

One idea: a measurement may be under way on an accelerator when `log()` is called. Then the run keeps the step and reads
the numbers at the next call, so that the training thread never waits for a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from gradmedic import wire
from gradmedic.step import Row

FIRST_STEPS = 10
"""Steps at the start that are always sampled: they tell how the weights were initialized."""


class Sampler:
    """Decides which steps are sampled: the first ones and every `log_freq`-th."""

    def __init__(self, log_freq: int) -> None:
        self._log_freq = log_freq
        self._count = 0
        self.is_sampling = True
        """Whether the step that is being computed carries statistics."""

    def advance(self) -> None:
        """Go on to the next step."""
        self._count += 1
        self.is_sampling = self._count < FIRST_STEPS or self._count % self._log_freq == 0


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
    """A measurement that may still be on its way from a device."""

    @property
    def is_ready(self) -> bool:
        """Whether `read` returns without waiting for a device."""

    def read(self) -> Measurement:
        """Return the measurement, waiting for it if need be."""


class PendingNumber(Protocol):
    """A number that may still be on its way from a device."""

    def read(self) -> float:
        """Return the number, waiting for it if need be."""


class Source(Protocol):
    """A model and its optimizers under observation."""

    def describe(self) -> None:
        """Add its layers to the run's book, unless that is done. Called before the first update at the latest."""

    def training(self) -> wire.Training | None:
        """Return what is known of how it trains, as of now."""

    @property
    def framework(self) -> str:
        """Name and version of the framework, for example `torch 2.13.0`."""

    @property
    def statistics(self) -> tuple[str, ...]:
        """The statistics of its rows."""

    def take(self) -> Pending:
        """Return what was measured since the last call, and begin the next step."""

    def hold(self, number: Any) -> PendingNumber | None:
        """Start copying a number that lives on a device; None if it does not."""

    def close(self) -> None:
        """Stop observing and leave no trace in model, optimizer or framework."""
