"""The entries of a run's event queue, which the training thread reads."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictEvent:
    """The service changed its verdict on a run."""

    run_id: UUID
    verdict: str
    """`undetermined`, `healthy`, `vanishing` or `exploding`."""
    since_step: int | None
    """First step of the verdict."""
    summary: str
    """One sentence for a human."""


@dataclass(frozen=True, slots=True)
class SpikeDetected:
    """A step's loss, gradient norm or update norm jumped."""


@dataclass(frozen=True, slots=True)
class ClippingAdvised:
    """The diagnosis of an unhealthy run advises to clip the gradients."""

    max_norm: float


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The service asked the run to stop: it is a trial whose budget is spent, or that was cancelled."""


@dataclass(frozen=True, slots=True)
class RewindDelivered:
    """The service has rewound the run. Every verdict before it was about steps that are gone."""

    verdict: str
    """The verdict on the steps that stayed."""


Event = VerdictEvent | SpikeDetected | ClippingAdvised | StopRequested | RewindDelivered
