"""NaN or infinite numbers in the data, on the step on which the run first became non-finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView

FINITE_STEPS = 100
"""Consecutive finite steps after which the finding is resolved. A bad example comes back once an epoch, or never again
once the script drops it."""
CAUSE_SCORE = 0.95


class NonfiniteInput(Detector):
    """The model's input has non-finite elements on a step that broke, after a step that was finite.

    Once the weights are non-finite, everything is: what the input has then explains nothing.
    """

    id = "nonfinite_input"
    verdict = "healthy"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "was_finite": "was_finite", "finite_steps": "finite_steps", "bad_steps": "bad_steps",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.was_finite = True
        """Whether the step before was finite."""
        self.finite_steps = 0
        """Consecutive finite steps since the last step with a non-finite input."""
        self.bad_steps = 0
        """Steps that a non-finite input broke."""

    @property
    def is_fault(self) -> bool:
        """Whether an open finding is a fault: no training is meant to compute with NaN."""
        return True

    @property
    def cause_score(self) -> float:
        """Score of an open finding: the numbers were seen in the data."""
        return CAUSE_SCORE if self.is_open else 0.0

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the first one that is not finite."""
        if not self.is_at_rest:
            return 0
        stop = columns.first_nonfinite
        if (columns.has_loss[:stop] | columns.block.sampled[:stop]).any():
            self.was_finite = True
        return stop

    def observe(self, view: StepView) -> None:
        """Read the count of a step that broke."""
        if is_step_nonfinite(view):
            if self.was_finite and view.probes:
                count = view.probes.get("input_nonfinite_count", {}).get("", 0.0)
                if count > 0:
                    self.bad_steps += 1
                    evidence = {"input_nonfinite_count": count, "bad_steps": float(self.bad_steps)}
                    self.update_finding(view.step, "warning", [], evidence)
            self.was_finite, self.finite_steps = False, 0
        elif view.loss is not None or view.row is not None:
            self.was_finite = True
            if self.is_open:
                self.finite_steps += 1
                if self.finite_steps >= FINITE_STEPS:
                    self.close_finding(view.step)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain how many elements are non-finite, and where to look."""
        del layers
        count, steps = int(finding.evidence["input_nonfinite_count"]), int(finding.evidence["bad_steps"])
        which = f"step {finding.first_step}" if steps == 1 else f"{steps} steps, the first of them {finding.first_step}"
        return (
            f"The input of the model has {count} NaN or infinite elements on the step that broke ({which}); it should "
            "have none. Look at how this batch is read and scaled: a missing value, a division by a standard deviation "
            "of zero, a logarithm of zero."
        )


def is_step_nonfinite(view: StepView) -> bool:
    """Return whether the loss, a gradient, a weight or an update of a step is NaN or infinite."""
    if view.loss is not None and not math.isfinite(view.loss):
        return True
    return view.row is not None and (view.nonfinite_count > 0 or view.has_nonfinite_weights)
