"""Units in the flat part of their activation, where the client watches activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from gradmedic_diagnosis.architecture import Architecture
from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView, rank_layers
from gradmedic_diagnosis.measurements import Measurements

SATURATED_SHARE = 0.5
"""A layer is saturated if this share of its activations is beyond the bend (a slope of about a hundredth).
DeepDiagnosis and SageMaker Debugger use the same share."""
PERSISTENCE = 20
"""Consecutive sampled steps with saturated layers before there is a finding."""
SATURATED_LAYERS_SHARE = 0.5
"""Share of the watched layers that must be saturated before a stuck loss supports a verdict."""
STRENGTH = 0.8


class Saturation(Detector):
    """Half of a layer's activations are saturated, step after step.

    One such layer is a finding. Most of the watched layers, together with a stuck loss, support a vanishing verdict.
    """

    id = "saturation"
    verdict = "vanishing"
    stored_keys: ClassVar[Mapping[str, str]] = {"consecutive_steps": "running", "since_step": "since"}

    def __init__(self) -> None:
        super().__init__()
        self.consecutive_steps = 0
        self.since_step = 0

    def is_applicable(self, architecture: Architecture, measurements: Measurements) -> bool:  # noqa: ARG002 (the base's)
        """Return whether activations are watched."""
        return measurements.saturation is not None

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the first one with a saturated layer."""
        share = columns.measurements.saturation
        if share is None or not self.is_at_rest or self.consecutive_steps:
            return 0
        return columns.first_row(np.logical_or.reduce(share >= SATURATED_SHARE, axis=1))

    def observe(self, view: StepView) -> None:
        """Count the saturated layers. A layer whose share is 0 may have no saturating activation at all."""
        if view.row is None or view.measurements.saturation is None:
            return
        share = view.measurements.saturation[view.row]
        is_saturated = share >= SATURATED_SHARE
        if not is_saturated.any():
            self.consecutive_steps = 0
            self.close_finding(view.step)
            return
        if self.consecutive_steps == 0:
            self.since_step = view.step
        self.consecutive_steps += 1
        if self.consecutive_steps < PERSISTENCE:
            return
        saturated_count = np.count_nonzero(is_saturated)
        are_most = bool(saturated_count >= SATURATED_LAYERS_SHARE * np.count_nonzero(share > 0))
        self.update_strength_while_stuck(view, STRENGTH, has_evidence=are_most and not view.has_several_streams)
        evidence = {"saturated_layers": float(saturated_count), "largest_share": float(np.nanmax(share))}
        severity = "critical" if self.strength else "warning"
        layers = rank_layers(np.where(is_saturated, share, np.nan))
        self.update_finding(view.step, severity, layers, evidence, since=self.since_step)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain the number of layers and the largest share."""
        evidence = finding.evidence
        return (
            f"{int(evidence['saturated_layers'])} layers have at least half of their activations saturated, "
            f"up to {evidence['largest_share']:.0%} in {layers[0]}: their slope there is almost zero."
        )
