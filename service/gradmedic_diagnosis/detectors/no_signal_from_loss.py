"""A loss that sends no gradient into the model: equal rewards, a satisfied margin, masked labels, a detached loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView
from gradmedic_diagnosis.loss_progress import UNMOVED_SHARE

PERSISTENCE = 20
"""Consecutive measured steps without a signal before there is a finding: single batches whose examples are all right
or all masked are common."""

CAUSE_SCORE = 0.9


class NoSignalFromLoss(Detector):
    """The gradient of the loss at the model's output is exactly zero, step after step.

    Nothing is wrong with the gradients of the model then. It is a warning only if the objective has not been reached:
    where nothing measures progress, if there never was a signal.
    """

    id = "no_signal_from_loss"
    verdict = "healthy"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "silent_steps": "silent", "since_step": "since", "had_signal": "had_signal",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.silent_steps = 0
        """Consecutive measured steps whose gradient at the output is zero."""
        self.since_step = 0
        self.had_signal = False
        """Whether the gradient at the output was not zero on any step so far."""

    @property
    def cause_score(self) -> float:
        """Score of an open warning: nothing can be learned."""
        return CAUSE_SCORE if self.is_open and self.finding_state and self.finding_state.severity == "warning" else 0.0

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the first one without a signal."""
        series = columns.block.series.get("output_gradient_norm")
        if series is None:
            return len(columns)
        if not self.is_at_rest or self.silent_steps:
            return 0
        is_measured = series.present & ~np.isnan(series.values) & ~columns.block.skipped
        stop = columns.first_step(is_measured & ~(series.values > 0))
        self.had_signal = self.had_signal or bool(is_measured[:stop].any())
        return stop

    def observe(self, view: StepView) -> None:
        """Count the measured steps without a signal."""
        if math.isnan(view.output_gradient_norm) or view.is_skipped:
            return
        if view.output_gradient_norm > 0:
            self.silent_steps = 0
            self.had_signal = True
            self.close_finding(view.step)
            return
        if self.silent_steps == 0:
            self.since_step = view.step
        self.silent_steps += 1
        if self.silent_steps >= PERSISTENCE:
            if view.measures_progress and view.objective.count:
                is_reached = view.objective.fallen_share >= UNMOVED_SHARE
            else:
                is_reached = self.had_signal
            evidence = {"output_gradient_norm": 0.0, "silent_steps": float(self.silent_steps)}
            self.update_finding(view.step, "note" if is_reached else "warning", [], evidence, since=self.since_step)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain since when there is no signal, and what can be the reason."""
        del layers
        steps = int(finding.evidence["silent_steps"])
        text = (
            f"The loss sends no gradient into the model since step {finding.first_step}: at the model's output it was "
            f"exactly zero on {steps} measured steps in a row."
        )
        if finding.severity == "note":
            return f"{text} This is what a reached objective looks like."
        return f"{text} Is the loss detached, are all labels masked, or all rewards equal?"
