"""What a framework must offer so that a run can record its training. `gradmedic.torch` implements it.

A measurement may be in progress on an accelerator when `log()` is called. The recorder's thread reads it and waits for
the device if needed; the training thread never waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gradmedic.protocol.runs import Training
from gradmedic.recording.action_draft import ActionDraft
from gradmedic.recording.spike_detector import Totals
from gradmedic.recording.step import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What an instrumentation measured since the last step."""

    row: Row | None = None
    """None if no optimizer stepped, or the step is not sampled."""
    learning_rate: float | None = None
    loss_scale: float | None = None
    clip_coefficient: float | None = None
    output_gradient_norm: float | None = None
    """L2 norm of the loss's gradient at the outputs of the models; None if it was not measured."""
    skipped: bool = False
    """Whether no optimizer changed the weights, because a loss scaler or a guard left its step out."""
    has_update: bool = False
    """Whether an optimizer changed the weights."""
    guard_actions: Sequence[ActionDraft] = ()
    probes: Mapping[str, float] = field(default_factory=dict)
    """Probes by the name of their metric."""
    evidence: Mapping[str, float] = field(default_factory=dict)
    """Probes that belong to the step only if it has a non-finite number, or no layer has a gradient."""


class PendingMeasurement(Protocol):
    """A measurement that may still be computed on a device. It is read once, on any thread."""

    has_numbers: bool
    """Whether there are statistics of layers, or may be."""

    def read_totals(self) -> Sequence[Totals] | None:
        """Return the totals over all layers, none if no layer was measured; None if a device would be waited for.

        Called on the training thread.
        """

    def read(self) -> Measurement:
        """Return the measurement, waiting for the device if needed."""


class PendingNumber(Protocol):
    """A number that may still be computed on a device."""

    def read(self) -> float:
        """Return the number, waiting for the device if needed."""


class Instrumentation(Protocol):
    """Observes models and their optimizers."""

    def describe(self) -> None:
        """Add the layers to the run's registry, unless that is done. Called before the first update at the latest."""

    def training(self) -> Training | None:
        """Return how the models train, as of the last measurement that was read. Any thread may call this."""

    @property
    def framework(self) -> str:
        """Name and version of the framework, for example `torch 2.13.0`."""

    @property
    def statistics(self) -> tuple[str, ...]:
        """The statistics of its rows."""

    def finish_step(self, loss: Any = None) -> PendingMeasurement:
        """Return what was measured since the last call, and begin the next step. Describes, unless that is done.

        Args:
            loss: what `log()` was given as the loss.
        """

    def start_reading(self, number: Any) -> PendingNumber | float | None:
        """Return a number of the framework, or start to copy it from a device; None if it is no such number."""

    def close(self) -> None:
        """Stop observing and leave no trace in model, optimizer or framework."""
