"""The base class of the detectors, and the state of the finding that a detector reports."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from gradmedic.protocol.diagnosis import Finding, Severity
from gradmedic.protocol.verdicts import Verdict
from gradmedic_diagnosis.architecture import Architecture
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView
from gradmedic_diagnosis.measurements import Measurements
from gradmedic_diagnosis.state import Persistent, restore_attributes, to_stored

STUCK_PATIENCE = 120
"""Losses of the run before a stuck loss supports a verdict: many healthy runs begin with a plateau."""


@dataclass(slots=True)
class FindingState(Persistent):
    """A finding as a detector keeps it: the steps over which the detector saw its condition, and the evidence."""

    first_step: int = 0
    last_step: int = 0
    resolved_step: int | None = None
    severity: Severity = "warning"
    layers: list[int] = field(default_factory=list)
    """Indices of the layers concerned, the first bad layer first."""
    evidence: dict[str, float] = field(default_factory=dict)


class Detector(ABC):
    """A small state machine that reads a run step by step and reports at most one finding."""

    id: ClassVar[str]
    verdict: ClassVar[Verdict]
    """The verdict that the finding supports."""
    judges_update: ClassVar[bool] = False
    """Whether the finding is about the update and not the gradient. Weights that do not move leave such a verdict."""
    explains_flat_loss: ClassVar[bool] = True
    """Whether a loss that is flat under a fault is explained by it, and no evidence for vanishing gradients."""
    needed_series: ClassVar[str | None] = None
    """Series without which the detector sees nothing; `observe` is not called for blocks that lack it."""
    reads_only_probes: ClassVar[bool] = False
    """Whether `observe` does nothing on a step without probes, so that it is called for the others alone."""
    stored_keys: ClassVar[Mapping[str, str]] = {}
    """Attributes beside the finding that belong to the state, and their keys in stored states.

    The keys never change, so that states of older versions stay readable; the attributes may.
    """

    def __init__(self) -> None:
        self.finding_state: FindingState | None = None
        self.strength = 0.0
        """How strongly the finding supports the verdict at the last step, from 0 (not at all) to 1.

        The values, each detector's `STRENGTH`, are judgements: the fewer healthy runs look alike, the higher.
        """
        self.stuck_level = math.nan
        """Slow average of the objective when the strength rose above 0, for detectors that need a stuck objective."""

    def is_applicable(self, architecture: Architecture, measurements: Measurements) -> bool:  # noqa: ARG002 (for subclasses)
        """Whether the detector can see anything in a block. `observe` is not called for the steps of other blocks."""
        return True

    def pass_over(self, columns: StepColumns) -> int:  # noqa: ARG002 (for subclasses)
        """Read the first steps of a block at once, as far as none of them can change finding or strength.

        The attributes become exactly what `observe` would make of them. Returns the number of steps that were read;
        `observe` reads the others.
        """
        return 0

    @property
    def is_at_rest(self) -> bool:
        """Whether the detector supports no verdict and has no open finding."""
        return self.strength == 0 and not self.is_open

    @abstractmethod
    def observe(self, view: StepView) -> None:
        """Read the next step; update the finding and its strength."""

    @abstractmethod
    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain the finding in one or two sentences: the numbers seen, and healthy ones. `layers` are its names."""

    def update_strength_while_stuck(self, view: StepView, strength: float, *, has_evidence: bool) -> bool:
        """Raise the strength when there is evidence and the loss is stuck; reset it to 0 when the loss moves again.

        Returns whether the strength is above 0.
        """
        if self.strength == 0:
            if has_evidence and view.is_stuck:
                self.strength, self.stuck_level = strength, view.objective.slow_average
        elif view.objective.has_fallen_below(self.stuck_level):
            self.strength = 0.0
        else:
            self.strength = max(self.strength, strength if has_evidence else 0.0)
        return self.strength > 0

    def is_undecided(self, view: StepView) -> bool:  # noqa: ARG002 (for subclasses)
        """Whether the detector is about to decide if its verdict holds. What may be its consequence waits for that."""
        return False

    def forget_trouble(self) -> None:  # noqa: B027 (for subclasses that remember it)
        """Drop what the detector remembers of a trouble that the run has recovered from."""

    @property
    def is_fault(self) -> bool:
        """Whether an open finding is a fault of the script, which asks for attention also while the run learns."""
        return False

    @property
    def cause_score(self) -> float:
        """How well the finding explains what is wrong, from 0 to 1; 0 unless the finding is a condition.

        A condition is a finding that is a cause itself, such as a loss without a signal. Its evidence and its
        explanation are those of the cause, and remedies name it by the detector's id.
        """
        return 0.0

    @property
    def is_open(self) -> bool:
        """Whether the finding holds now."""
        return self.finding_state is not None and self.finding_state.resolved_step is None

    def update_finding(
        self, step: int, severity: Severity, layers: list[int], evidence: dict[str, float], since: int | None = None
    ) -> None:
        """Open a finding, or renew the evidence of the open one, whose first step and layers stay."""
        if self.is_open and self.finding_state is not None:
            self.finding_state.last_step = step
            self.finding_state.evidence = evidence
            self.finding_state.severity = severity
            return
        self.finding_state = FindingState(
            first_step=step if since is None else since,
            last_step=step,
            severity=severity,
            layers=layers,
            evidence=evidence,
        )

    def close_finding(self, step: int) -> None:
        """Resolve the finding if it is open, and reset the strength."""
        self.strength = 0.0
        if self.finding_state is not None and self.finding_state.resolved_step is None:
            self.finding_state.resolved_step = step

    def report_finding(self, architecture: Architecture, *, consequence_of: str | None = None) -> Finding | None:
        """Return the finding with its explanation, and the detector it follows from; None if there never was one."""
        state = self.finding_state
        if state is None:
            return None
        layers = [architecture.names[i] for i in state.layers]
        return Finding(
            detector=self.id,
            verdict=self.verdict,
            severity=state.severity,
            layers=layers,
            first_step=state.first_step,
            last_step=state.last_step,
            resolved_step=state.resolved_step,
            evidence={name: float(value) for name, value in state.evidence.items()},
            explanation=self.explain(state, layers),
            consequence_of=consequence_of,
        )

    def to_state(self) -> dict[str, Any]:
        """Return the state, for `pack_state`."""
        return {
            **{key: to_stored(getattr(self, name)) for name, key in self.stored_keys.items()},
            "signal": self.strength,
            "stuck_level": self.stuck_level,
            "episode": self.finding_state and self.finding_state.to_state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Restore what `to_state` returned. Attributes that an older state does not have keep their first value."""
        self = cls()
        self.strength, self.stuck_level = state["signal"], state["stuck_level"]
        restore_attributes(self, cls.stored_keys.items(), state)
        if state["episode"] is not None:
            self.finding_state = FindingState()
            self.finding_state.restore(state["episode"])
        return self
