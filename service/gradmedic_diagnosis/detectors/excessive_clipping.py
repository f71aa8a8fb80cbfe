"""Clipping so tight that the weights no longer move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView
from gradmedic_diagnosis.loss_progress import UNMOVED_SHARE
from gradmedic_diagnosis.measurements import HEALTHY_UPDATE_RATIO
from gradmedic_diagnosis.optimizers import has_scale_free_optimizers

TIGHT_SHARE = 0.01
"""Share of the gradient that reaches the optimizer, below which clipping decides the update. A useful bound is 0.5 to
10 times the average norm (Pascanu et al. 2013, section 3.2): it leaves fifty times this share."""
STARVED_UPDATE_RATIO = 1e-5
"""Network-wide update over weight at the lower end of the practical band, 1e-5 to 1e-2."""
HORIZON = 20
"""Sampled steps over which the share is averaged."""
PATIENCE = 100
"""Losses of the run before a stuck loss counts."""
STRENGTH = 0.85


class ExcessiveClipping(Detector):
    """Clipping leaves almost nothing of the gradient, the updates are tiny, and the loss never moved.

    The share that is left is the script's clip coefficient where the client saw it. Otherwise it is the update over
    learning rate times gradient. SGD has 1, and momentum more. Of optimizers that divide by the gradient's size nothing
    can be estimated: they do not notice clipping, and a stale second moment makes the same number small.
    """

    id = "excessive_clipping"
    verdict = "vanishing"
    judges_update = True
    stored_keys: ClassVar[Mapping[str, str]] = {"log_share_left": "log_share", "count": "count", "since_step": "since"}

    def __init__(self) -> None:
        super().__init__()
        self.log_share_left = 0.0
        """Average of log10 of the share of the gradient that is left."""
        self.count = 0
        """Number of values in the average."""
        self.since_step = 0

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the first one with a tiny update."""
        if not self.is_at_rest or not columns.has_one_stream:
            return 0
        stop = columns.first_row(columns.measurements.update_ratio < STARVED_UPDATE_RATIO)
        rows = np.flatnonzero(columns.block.sampled[:stop])
        if len(rows):
            self.count = 0
            self.since_step = int(columns.block.steps[rows[-1]]) + 1
        return stop

    def observe(self, view: StepView) -> None:
        """Average the share of the gradient that is left, and check whether the loss is stuck."""
        if view.row is None or view.has_several_streams:
            return
        if not view.update_ratio < STARVED_UPDATE_RATIO:
            self.count = 0
            self.since_step = view.step + 1
            self.close_finding(view.step)
            return
        share_left = self._estimate_share_left(view)
        if not 0 < share_left < math.inf:
            return
        self.count += 1
        self.log_share_left += (math.log10(share_left) - self.log_share_left) / min(self.count, HORIZON)
        if self.log_share_left >= math.log10(TIGHT_SHARE):
            self.since_step = view.step + 1
            self.close_finding(view.step)
            return
        progress = view.progress
        if progress.count < PATIENCE:
            return
        has_evidence = progress.fallen_share < UNMOVED_SHARE
        is_critical = self.update_strength_while_stuck(view, STRENGTH, has_evidence=has_evidence)
        evidence = {
            "share_of_gradient_left": 10**self.log_share_left,
            "update_to_weight": view.update_ratio,
            "gradient_norm": view.gradient_norm,
        }
        self.update_finding(view.step, "critical" if is_critical else "warning", [], evidence, since=self.since_step)

    @staticmethod
    def _estimate_share_left(view: StepView) -> float:
        if not math.isnan(view.clip_coefficient):
            return view.clip_coefficient
        if has_scale_free_optimizers(view.training):
            return math.nan
        unclipped = abs(view.learning_rate) * view.gradient_norm
        return view.update_ratio * view.weight_norm / unclipped if unclipped > 0 else math.nan

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain what is left of the gradient and how small the updates are. Clipping has no layer of its own."""
        del layers
        evidence = finding.evidence
        return (
            f"Clipping leaves {evidence['share_of_gradient_left']:.1g} of a gradient whose norm is "
            f"{evidence['gradient_norm']:.2g}, so that an update changes the weights by "
            f"{evidence['update_to_weight']:.1g} of their size (healthy: about {HEALTHY_UPDATE_RATIO:g})."
        )
