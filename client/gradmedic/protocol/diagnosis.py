"""The diagnosis of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar
from uuid import UUID

from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.schema import SCHEMA, OneOf
from gradmedic.protocol.verdicts import Verdict

OUTCOME_STATES = ("verified", "healthy", "failed", "not_applicable")


SEVERITIES = ("note", "warning", "critical")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One detector's evidence."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    detector: str
    class_: Verdict
    """The verdict it speaks for."""
    severity: Annotated[str, OneOf(*SEVERITIES)]
    layers: list[str]
    """First bad layer first."""
    first_step: int
    last_step: int
    resolved_step: int | None
    """Step at which it no longer held; null while it holds."""
    evidence: dict[str, float]
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What probably made it so."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    cause: str
    score: float
    """0 to 1; causes are independent, the scores need not add up."""
    evidence: dict[str, float]
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happened when a remedy was tried on the run's own trainable."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    state: Annotated[str, OneOf(*OUTCOME_STATES)]
    rerun_id: UUID
    seeds: int
    healthy: int
    loss: float | None
    control_loss: float | None
    cost_seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    """Versions and device that it was tried on; several are separated by commas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One ranked remedy with its reason."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    remedy: Remedy
    rank: int
    """1 is tried first."""
    reason: str
    cost: str
    """What it takes away: time, signal, exactness, or work."""
    snippet: str
    """Code to paste, in the run's framework."""
    sources: list[str]
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """Remedies that were tried together, and what happened."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    remedies: list[Remedy]
    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What is wrong with a run, why, and what fixes it, as of `step`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    run_id: UUID
    step: int | None
    verdict: Verdict
    score: float
    since_step: int | None
    summary: str
    findings: list[Finding]
    causes: list[Cause]
    advice: list[Advice]
    tried: list[Tried] = field(default_factory=list)
    """What reruns of this run have shown, the latest first; combinations of remedies too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictChange:
    """The verdict from `step` on."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    step: int
    """The step whose data changed it."""
    verdict: Verdict
    score: float
    finding: str | None
    """Detector of the finding that decided it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictHistory:
    """Every change of a run's verdict, oldest first."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    items: list[VerdictChange]
