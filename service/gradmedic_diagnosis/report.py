"""What the diagnostician says: values without behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["undetermined", "healthy", "vanishing", "exploding"]
Severity = Literal["note", "warning", "critical"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One detector's evidence."""

    detector: str
    class_: Verdict
    severity: Severity
    layers: tuple[str, ...]
    first_step: int
    last_step: int
    resolved_step: int | None
    evidence: Mapping[str, float]
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What probably made it so; `score` is 0 to 1."""

    cause: str
    score: float
    evidence: Mapping[str, float]
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One fix, by id and parameters."""

    id: str
    parameters: Mapping[str, float | int | str | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One ranked remedy with its reason."""

    remedy: Remedy
    rank: int
    reason: str
    cost: str
    snippet: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictChange:
    """The verdict from `step` on, and the detector of the finding that decided it."""

    step: int
    verdict: Verdict
    score: float
    finding: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What is wrong with a run, why, and what fixes it, as of `step` (None before the first)."""

    step: int | None
    verdict: Verdict
    score: float
    since_step: int | None
    summary: str
    findings: tuple[Finding, ...] = ()
    causes: tuple[Cause, ...] = ()
    advice: tuple[Advice, ...] = ()
    changes: tuple[VerdictChange, ...] = ()
    """Changes of the verdict that the last update caused, oldest first."""
