"""Gradients that are never zeroed: each optimizer step uses the sum of all gradients so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView

CAUSE_SCORE = 0.97
"""The client saw it in the script. Growing gradients and large updates follow from it, so it stands before them."""


class AccumulatingGradients(Detector):
    """The client found the gradients of the last optimizer step still there at the beginning of the next backward pass.

    A script that adds up micro-batches is no such case: it zeroes the sum after each optimizer step.
    """

    id = "accumulating_gradients"
    verdict = "healthy"
    stored_keys: ClassVar[Mapping[str, str]] = {"first_norm": "first_norm", "largest_norm": "largest_norm"}

    def __init__(self) -> None:
        super().__init__()
        self.first_norm = math.nan
        """Network-wide gradient norm of the first sampled step, which nothing was added to."""
        self.largest_norm = 0.0
        """Largest finite norm so far."""

    @property
    def is_fault(self) -> bool:
        """Whether an open finding is a fault of the script: always."""
        return True

    @property
    def cause_score(self) -> float:
        """Score of an open finding."""
        return CAUSE_SCORE if self.is_open else 0.0

    def pass_over(self, columns: StepColumns) -> int:
        """Read all steps while it is not known that the script keeps gradients."""
        if columns.training.carries_gradients is True:
            return 0
        norms = columns.measurements.total_gradient_norm[~columns.is_row_skipped]
        norms = norms[(norms > 0) & (norms < math.inf)]
        if len(norms):
            self.first_norm = float(norms[0]) if math.isnan(self.first_norm) else self.first_norm
            self.largest_norm = max(self.largest_norm, float(norms.max()))
        return len(columns)

    def observe(self, view: StepView) -> None:
        """Follow the gradient norm, and report it where gradients are carried over."""
        if view.row is None or view.is_skipped:
            return
        if 0 < view.gradient_norm < math.inf:
            if math.isnan(self.first_norm):
                self.first_norm = view.gradient_norm
            self.largest_norm = max(self.largest_norm, view.gradient_norm)
        if view.training.carries_gradients is not True:
            return  # it may become known later
        evidence = {}
        if not math.isnan(self.first_norm):
            evidence = {
                "first_gradient_norm": self.first_norm,
                "largest_gradient_norm": self.largest_norm,
                "gradient_growth": self.largest_norm / self.first_norm,
            }
        self.update_finding(view.step, "warning", [], evidence)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain what is missing, and how far the gradients have grown."""
        del layers
        text = (
            "Gradients are not zeroed between optimizer steps: at the start of the next backward pass, those of the "
            "last step were still there. Each update uses the sum of all gradients so far."
        )
        if "gradient_growth" not in finding.evidence:
            return f"{text} Call optimizer.zero_grad() once per optimizer step."
        return (
            f"{text} The gradient norm was {finding.evidence['first_gradient_norm']:.3g} at first and has been up to "
            f"{finding.evidence['gradient_growth']:.3g} times that. Call optimizer.zero_grad() once per optimizer step."
        )
