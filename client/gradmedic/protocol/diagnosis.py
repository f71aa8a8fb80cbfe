"""The diagnosis of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar
from uuid import UUID

from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.schema import SCHEMA, OneOf
from gradmedic.protocol.verdicts import VERDICTS, Verdict

OUTCOME_STATES = ("verified", "healthy", "failed", "not_applicable")


SEVERITIES = ("note", "warning", "critical")


Severity = Annotated[str, OneOf(*SEVERITIES)]


def _describe_finding(schema: dict[str, Any], cls: type) -> None:
    """Describe the fields in OpenAPI, and the deprecated key `class`."""
    SCHEMA["json_schema_extra"](schema, cls)
    schema["properties"]["class"] = {
        "type": "string",
        "enum": list(VERDICTS),
        "deprecated": True,
        "description": "Deprecated: the same as `verdict`. The next minor version leaves it out.",
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One detector's evidence."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {**SCHEMA, "json_schema_extra": _describe_finding}

    detector: str
    verdict: Verdict
    """The verdict that this finding supports."""
    severity: Severity
    layers: list[str]
    """Names of the layers concerned, the first bad layer first."""
    first_step: int
    last_step: int
    resolved_step: int | None
    """Step at which it no longer held; null while it holds."""
    evidence: dict[str, float]
    explanation: str

    @property
    def class_(self) -> str:
        """The same as `verdict`, which version 0.1 sent as `class`."""
        return self.verdict

    def deprecated_keys(self) -> dict[str, str]:
        """Return what JSON carries beside the fields, for readers of version 0.1."""
        return {"class": self.class_}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Add the deprecated key to the service's answers (called by pydantic, in the service)."""
        schema = handler(source)
        deprecated = {"type": "computed-field", "property_name": "class_", "alias": "class"}
        schema["schema"]["computed_fields"] = [{**deprecated, "return_schema": {"type": "str"}}]
        return schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One probable cause of a vanishing or exploding verdict."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    cause: str
    score: float
    """Strength of the evidence, 0 to 1. Causes are independent: their scores need not add up to 1."""
    evidence: dict[str, float]
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of trying a remedy on the run's own trainable."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    state: Annotated[str, OneOf(*OUTCOME_STATES)]
    rerun_id: UUID
    seeds: int
    healthy: int
    loss: float | None
    control_loss: float | None
    cost_seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    """Versions and device of the trials; several are separated by commas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One ranked remedy with its reason."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    remedy: Remedy
    rank: int
    """Place in the list, counted from 1."""
    reason: str
    cost: str
    """What the remedy costs: time, signal, exactness, or work."""
    snippet: str
    """Code to paste, in the run's framework."""
    sources: list[str]
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """Remedies that were tried together, and their outcome."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    remedies: list[Remedy]
    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosisAtStep:
    """What is wrong with a run, why, and what fixes it, as of `step`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    step: int | None
    """The last step that the diagnosis has read; null before the first."""
    verdict: Verdict
    score: float
    """Confidence in the verdict, 0 to 1."""
    since_step: int | None
    """First step of the verdict; null while it is undetermined."""
    summary: str
    findings: list[Finding]
    causes: list[Cause]
    """The most probable cause first; empty without a vanishing or exploding verdict."""
    advice: list[Advice]
    """The most promising remedy first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis(DiagnosisAtStep):
    """The diagnosis of one run, with what reruns of the run have shown."""

    run_id: UUID
    tried: list[Tried] = field(default_factory=list)
    """Results of the run's reruns, the latest first; combinations of remedies too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictChange:
    """A change of the verdict, which holds from `step` on."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    step: int
    """The step whose data changed the verdict."""
    verdict: Verdict
    score: float
    finding: str | None
    """Detector of the finding that decided the verdict; null where none did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictHistory:
    """Every change of a run's verdict, oldest first."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    items: list[VerdictChange]
