"""Gradients that grow on their way to the input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView, rank_layers

GROWTH_DECADES = 3.0
"""Decades of the strongest matrix on the input side above the typical one on the output side: ln 1000 from end to end,
as for attenuation (Schoenholz et al. 2017: chi above 1)."""
PERSISTENCE = 20
"""Consecutive sampled steps with such a growth before there is a finding."""


class DepthGrowth(Detector):
    """Backpropagation amplifies gradients. A warning only: clipping may prevent the explosion."""

    id = "depth_growth"
    verdict = "exploding"
    stored_keys: ClassVar[Mapping[str, str]] = {"consecutive_steps": "running", "since_step": "since"}

    def __init__(self) -> None:
        super().__init__()
        self.consecutive_steps = 0
        self.since_step = 0

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the first one with a growth along depth."""
        if not self.is_at_rest or self.consecutive_steps:
            return 0
        return columns.first_row(columns.depth_profile.depth_growth >= GROWTH_DECADES)

    def observe(self, view: StepView) -> None:
        """Compare the input side with the output side."""
        if view.row is None or math.isnan(view.depth_growth):
            return
        if view.depth_growth < GROWTH_DECADES:
            self.consecutive_steps = 0
            self.close_finding(view.step)
            return
        if self.consecutive_steps == 0:
            self.since_step = view.step
        self.consecutive_steps += 1
        if self.consecutive_steps >= PERSISTENCE:
            level = np.where(view.architecture.is_path, view.depth_profile.smoothed_log_rms[view.row], np.nan)
            evidence = {"growth_decades": view.depth_growth}
            self.update_finding(view.step, "warning", rank_layers(level), evidence, since=self.since_step)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain the factor, and name the strongest layer."""
        decades = finding.evidence["growth_decades"]
        return (
            f"Gradients on the input side are 10^{decades:.1f} times larger than on the output "
            f"side, most in {layers[0]}: backpropagation amplifies them layer by layer."
        )
