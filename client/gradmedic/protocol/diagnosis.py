"""The diagnosis of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar
from uuid import UUID

from gradmedic.protocol.guards import GuardReport
from gradmedic.protocol.origins import DiagnosedOrigin
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.schema import SCHEMA, OneOf
from gradmedic.protocol.verdicts import VERDICTS, Learning, Level, Verdict

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
        "description": "Deprecated: use `verdict`, which has the same value. The next minor version omits this key.",
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The evidence of one detector."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {**SCHEMA, "json_schema_extra": _describe_finding}

    detector: str
    """Id of the detector."""
    verdict: Verdict
    """The verdict that the finding supports."""
    severity: Severity
    """Severity: only a `critical` finding decides a verdict."""
    layers: list[str]
    """Names of the layers concerned, the first bad layer first."""
    first_step: int
    """First step at which the finding held."""
    last_step: int
    """Last step at which the finding was seen to hold."""
    resolved_step: int | None
    """Step at which the finding no longer held. Null while it holds."""
    evidence: dict[str, float]
    """Numbers that the finding is based on, by name."""
    explanation: str
    """Explanation of the finding in one or two sentences."""
    consequence_of: str | None = None
    """Detector of the explosion that the finding follows from. Null where none is known."""

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
    """Name of the cause."""
    score: float
    """Strength of the evidence, 0 to 1. Causes are independent: their scores need not add up to 1."""
    evidence: dict[str, float]
    """Numbers that speak for the cause, by name."""
    explanation: str
    """Explanation of the cause in one or two sentences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of trying a remedy on the run's own trainable."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    state: Annotated[str, OneOf(*OUTCOME_STATES)]
    """State: `verified` means that the remedy repaired the run on every seed and that the run then learned."""
    rerun_id: UUID
    """Id of the rerun that tried the remedy."""
    seeds: int
    """Number of seeds that the remedy was tried on."""
    healthy: int
    """Number of seeds on which the run was healthy."""
    loss: float | None
    """Loss with the remedy. Null where no loss was reported."""
    control_loss: float | None
    """Loss of the unchanged control. Null where no loss was reported."""
    cost_seconds: float
    """Seconds from the first trial's start to the outcome."""
    environment: dict[str, str] = field(default_factory=dict)
    """Versions and device of the trials. Several of one kind are separated by commas."""
    judged_by: str | None = None
    """The measure by which the trials are judged, where it is not the loss: `loss in eval()`, `minimize METRIC` or
    `maximize METRIC`. Null otherwise."""
    judged_value: float | None = None
    """Value of this measure with the remedy. Null if there is none."""
    control_judged_value: float | None = None
    """Value of this measure of the unchanged control. Null if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One ranked remedy with its reason."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    remedy: Remedy
    """The remedy, with parameters for this run."""
    rank: int
    """Place in the list, counted from 1."""
    reason: str
    """Reason why the remedy helps."""
    cost: str
    """Price of the remedy in time, signal, exactness, or work."""
    snippet: str
    """Code to paste, in the run's framework."""
    sources: list[str]
    """Publications on the remedy."""
    outcome: Outcome | None = None
    """Outcome of the remedy in a rerun of this run. Null where it was not tried."""
    with_remedies: list[Remedy] = field(default_factory=list)
    """Further remedies that are applied together with `remedy`. Outcome and snippet are those of all of them."""
    needs_script: bool = False
    """True where only the script can make the change: a rerun tries the remedy only if a parameter of the trainable
    makes it."""

    @property
    def remedies(self) -> list[Remedy]:
        """All remedies that are applied together."""
        return [self.remedy, *self.with_remedies]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """Remedies that were tried together, and their outcome."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    remedies: list[Remedy]
    """The remedies of the candidate."""
    outcome: Outcome
    """Outcome of the candidate."""
    reason: str
    """Reason for the outcome's state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosisAtStep:
    """The diagnosis of a run as of `step`: verdict, evidence, causes and advice."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    step: int | None
    """The last step that the diagnosis has read. Null before the first step."""
    verdict: Verdict
    """The verdict on the run."""
    score: float
    """Confidence in the verdict, 0 to 1."""
    since_step: int | None
    """First step of the verdict. Null while the verdict is undetermined."""
    summary: str
    """Summary of the diagnosis in one or two sentences."""
    findings: list[Finding]
    """The findings, those that support the verdict first."""
    causes: list[Cause]
    """The causes, the most probable one first. The list is empty unless the verdict is vanishing or exploding."""
    advice: list[Advice]
    """The advised remedies, the best first: verified ones by their loss, then those that were healthy, then those that
    were not tried, the most promising one first, then those that failed or could not be applied."""
    learning: Learning = "unknown"
    """Course of the loss, apart from the gradients. `unknown` where several losses take turns."""
    level: Level = "unknown"
    """Level that a person reads first. `critical` means a vanishing or exploding verdict. `attention` means that the
    gradients are sound, but the loss is stuck or gets worse, or a warning is open."""
    origin: DiagnosedOrigin | None = None
    """Origin of the first non-finite number, with a change of the script: of the latest rerun of the kind `locate` that
    found one, else `training.origin` of the run. Null if nothing looked for it, and in a diagnosis of earlier steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis(DiagnosisAtStep):
    """The diagnosis of one run, with the results of its reruns."""

    run_id: UUID
    """Id of the run."""
    tried: list[Tried] = field(default_factory=list)
    """Results of the run's reruns, the latest first. They include combinations of remedies."""
    guards: GuardReport | None = None
    """Report on the actions of guards. Null if there are none, and in a diagnosis of earlier steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictChange:
    """A change of the verdict, of learning or of the level. The new values hold from `step` on."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    step: int
    """The step whose data made the change."""
    verdict: Verdict
    """The verdict from that step on."""
    score: float
    """Confidence in the verdict, 0 to 1."""
    finding: str | None
    """Detector of the finding that decided the verdict. Null where no finding did."""
    learning: Learning = "unknown"
    """Course of the loss from that step on."""
    level: Level = "unknown"
    """Level from that step on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictHistory:
    """All changes of a run's verdict, learning and level."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    items: list[VerdictChange]
    """The changes, the oldest first."""
