"""Optimizer steps without gradients: they were cleared after the backward pass, or it comes after the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView

PROBES = 3
"""Probed optimizer steps in a row without a gradient. A script may step once before its first backward pass."""
FIRST_STEP = 10
"""First step at which the condition is reported: the first steps are probed one after the other."""
CAUSE_SCORE = 0.97
"""It is read from the training itself, and nothing can be learned."""


class MissingGradients(Detector):
    """No parameter had a gradient when an optimizer stepped, on several probes in a row, and none has changed."""

    id = "missing_gradients"
    verdict = "healthy"
    reads_only_probes = True
    stored_keys: ClassVar[Mapping[str, str]] = {"output_gradient_rms": "output_gradient_rms", "since_step": "since"}

    def __init__(self) -> None:
        super().__init__()
        self.output_gradient_rms = math.nan
        """Largest gradient at the output of a block on the last such probe; NaN where it was not measured."""
        self.since_step = 0
        """First of the steps in a row."""

    @property
    def is_fault(self) -> bool:
        """Whether an open finding is a fault of the script: always."""
        return True

    @property
    def cause_score(self) -> float:
        """Score of an open finding."""
        return CAUSE_SCORE if self.is_open else 0.0

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the next probe."""
        return columns.first_probe("steps_without_gradients")

    def observe(self, view: StepView) -> None:
        """Report steps without gradients."""
        counts = view.probes.get("steps_without_gradients")
        if counts is None:
            return
        count = counts.get("", 0.0)
        if count <= 0:
            self.close_finding(view.step)
            return
        if count == 1:
            self.since_step = view.step
        flow = view.probes.get("output_gradient_rms")
        if flow:
            self.output_gradient_rms = max(flow.values())
        if count >= PROBES and view.step >= FIRST_STEP:
            evidence = {"steps_without_gradients": count}
            if not math.isnan(self.output_gradient_rms):
                evidence["output_gradient_rms"] = self.output_gradient_rms
            self.update_finding(view.step, "warning", [], evidence, since=self.since_step)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain what is missing, and what can be the reason."""
        del layers
        count = int(finding.evidence["steps_without_gradients"])
        flow = finding.evidence.get("output_gradient_rms", 0.0)
        text = (
            f"No parameter had a gradient when the optimizer stepped, on {count} measured steps in a row, so that none "
            "changes."
        )
        if flow > 0:
            return (
                f"{text} The backward pass does send one into the model (a root mean square of {flow:.2g}), so that it "
                "is cleared before optimizer.step(), or step() comes before backward()."
            )
        return (
            f"{text} Call backward() before step(), with nothing between them that clears the gradients, and on a loss "
            "that the watched model computes."
        )
