"""A loss that is NaN or infinite although everything before it was ordinary: an operation without a finite result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.nonfinite_input import is_step_nonfinite
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView
from gradmedic_diagnosis.loss_progress import BLOW_UP
from gradmedic_diagnosis.precision import is_half_precision

GROWN_DECADES = 1.0
"""Decades of the gradients above their baseline from which they are not ordinary, as in `growth_in_time`."""
DESTROYING_UPDATE_RATIO = 0.1
"""Updates of this share of the weights can be the reason for a non-finite loss."""
MEMORY = 20
"""Sampled steps for which such an update may be the reason."""
FINITE_STEPS = 20
"""Consecutive finite losses after which the finding is resolved."""
CAUSE_SCORE = 0.95
UNSEEN_INPUT_SCORE = 0.85
"""The same where it is not known whether the input is finite."""
HALF_PRECISION_SCORE = 0.7
"""In half precision, the forward pass may overflow at 65504, which is a cause of its own."""


class NonfiniteLoss(Detector):
    """The loss is the first number that is not finite: the steps before and the input are ordinary.

    So an operation of the forward pass or of the loss has no finite result: log(0), 0/0, an exponential of a large
    number, or the mean over labels that are all ignored.
    """

    id = "nonfinite_loss"
    verdict = "healthy"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "was_finite": "was_finite",
        "finite_losses": "finite_losses",
        "last_loss": "last_loss",
        "last_loss_ratio": "last_loss_ratio",
        "growth": "growth",
        "update_ratio": "update_ratio",
        "destroying_steps_left": "destroying_steps_left",
        "is_half_precision": "is_half_precision",
        "starts_at_zero": "starts_at_zero",
    }

    def __init__(self) -> None:
        super().__init__()
        self.was_finite = True
        """Whether the step before was finite."""
        self.finite_losses = 0
        """Consecutive finite losses since the last one that was not."""
        self.last_loss = math.nan
        self.last_loss_ratio = 1.0
        """The last finite loss over its reference."""
        self.growth = math.nan
        """Decades of the gradients above their baseline, at the last sampled step that was finite."""
        self.update_ratio = math.nan
        """Update over weight at the same step; NaN where it is unknown, or the weights start at zero."""
        self.destroying_steps_left = 0
        """Sampled steps for which a destroying update may still be the reason."""
        self.is_half_precision = False
        self.starts_at_zero: bool | None = None
        """Whether all weight matrices start at exactly zero, so that any update is large against them at first."""

    @property
    def cause_score(self) -> float:
        """Score of an open finding: nothing else was out of the ordinary."""
        if not self.is_open:
            return 0.0
        if self.is_half_precision:
            return HALF_PRECISION_SCORE
        knows_input = self.finding_state is not None and "input_nonfinite_count" in self.finding_state.evidence
        return CAUSE_SCORE if knows_input else UNSEEN_INPUT_SCORE

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the last finite loss of those that precede the first step that is not finite."""
        if not self.is_at_rest or self.starts_at_zero is None:
            return 0
        losses = np.flatnonzero(columns.has_loss[: columns.first_nonfinite])
        stop = int(losses[-1]) if len(losses) else columns.first_nonfinite
        rows = columns.rows_before[stop]
        if len(losses) > 1 or rows:
            self.was_finite = True
        if rows:
            ratios = columns.measurements.update_ratio[:rows]
            is_known = np.zeros(rows, dtype=np.bool_) if self.starts_at_zero else np.isfinite(ratios)
            self.growth = float(columns.depth_profile.typical_growth[rows - 1])
            self.update_ratio = float(ratios[-1]) if is_known[-1] else math.nan
            destroying = np.flatnonzero(is_known & (ratios >= DESTROYING_UPDATE_RATIO))
            left, calm = (MEMORY, rows - 1 - int(destroying[-1])) if len(destroying) else (None, rows)
            self.destroying_steps_left = max(0, (self.destroying_steps_left if left is None else left) - calm)
        return stop

    def observe(self, view: StepView) -> None:
        """Open the finding at the first non-finite loss after ordinary steps."""
        if is_step_nonfinite(view):
            if self.was_finite and view.loss is not None and not math.isfinite(view.loss):
                self._judge(view)
            self.was_finite, self.finite_losses = False, 0
            return
        if view.loss is not None:
            self.was_finite = True
            self.last_loss, self.last_loss_ratio = view.loss, view.loss_ratio
            if self.is_open:
                self.finite_losses += 1
                if self.finite_losses >= FINITE_STEPS:
                    self.close_finding(view.step)
        if view.row is not None:
            self.was_finite = True
            self._remember(view)

    def _remember(self, view: StepView) -> None:
        """Remember how ordinary a sampled step is."""
        if self.starts_at_zero is None:
            first = view.measurements.weight_norm[view.row][view.architecture.is_path]
            self.starts_at_zero = bool(first.size) and not first.any()
        self.growth = view.typical_growth
        is_known = math.isfinite(view.update_ratio) and not self.starts_at_zero
        self.update_ratio = view.update_ratio if is_known else math.nan
        is_destroying = self.update_ratio >= DESTROYING_UPDATE_RATIO
        self.destroying_steps_left = MEMORY if is_destroying else max(0, self.destroying_steps_left - 1)

    def _judge(self, view: StepView) -> None:
        """Open the finding if nothing before this step, and neither weights nor input, was out of the ordinary."""
        inputs = view.probes.get("input_nonfinite_count", {}).get("", math.nan)
        has_grown = self.growth >= GROWN_DECADES or self.last_loss_ratio >= BLOW_UP
        if has_grown or self.destroying_steps_left or inputs > 0:
            return
        if view.row is not None:
            weights = view.measurements.weight_norm[view.row][view.measurements.present[view.row]]
            if view.measurements.has_weight_norms and not np.isfinite(weights).all():
                return
        evidence = {
            "loss_before": self.last_loss,
            "gradient_growth_decades": self.growth,
            "update_to_weight": self.update_ratio,
            "input_nonfinite_count": inputs,
            "ignored_label_share": view.probes.get("ignored_label_share", {}).get("", math.nan),
        }
        self.is_half_precision = is_half_precision(view.training)
        known = {name: value for name, value in evidence.items() if not math.isnan(value)}
        self.update_finding(view.step, "warning", [], known)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain what was ordinary before, and which operations have no finite result."""
        del layers
        evidence = finding.evidence
        if evidence.get("ignored_label_share") == 1.0:
            return (
                f"All labels of step {finding.first_step} are ignored, and the mean of a loss over no labels is 0/0. "
                "At least one label should count: leave out such batches, or divide by the number of labels or 1."
            )
        if "loss_before" not in evidence:
            text = "The first loss is already NaN or infinite"
        else:
            text = (
                f"The loss became NaN or infinite at step {finding.first_step}, after an ordinary "
                f"{evidence['loss_before']:.3g}"
            )
        if "gradient_growth_decades" in evidence:
            text += (
                f", with gradients at {10 ** evidence['gradient_growth_decades']:.2g} times their baseline (below "
                f"{10**GROWN_DECADES:g} is ordinary)"
            )
        if "update_to_weight" in evidence:
            text += (
                f" and updates of {evidence['update_to_weight']:.2g} of the weights (below "
                f"{DESTROYING_UPDATE_RATIO:g} is ordinary)"
            )
        if evidence.get("input_nonfinite_count") == 0:
            text += ", and all elements of the input are finite"
            text += ". So the forward pass or the loss"
        else:
            text += ". Check the input, which was not seen; if it is finite, the forward pass or the loss"
        return (
            f"{text} has an operation without a finite result: log(0), 0/0, an exponential of a large number, or a "
            "softmax of a row that is masked as a whole."
        )
