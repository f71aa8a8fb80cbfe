"""An explosion that the loss does not show: the weights are overwritten, and saturated units bound the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from gradmedic_diagnosis.architecture import Architecture
from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.loss_divergence import AFTERMATH_STEPS, REWRITING_UPDATE_RATIO
from gradmedic_diagnosis.detectors.step_view import StepView, rank_layers
from gradmedic_diagnosis.loss_progress import BLOW_UP
from gradmedic_diagnosis.measurements import Measurements

OVERWRITTEN = 10.0
"""Weights of this many times their first norm are overwritten: the first values are a hundredth of the sum of squares.
Without an update of `REWRITING_UPDATE_RATIO`, weights that have grown by small steps are not overwritten."""
PATIENCE = AFTERMATH_STEPS
"""Losses without a fall since then that support a verdict: as many as after a blow-up of the loss."""
STRENGTH = 0.8


class OverwrittenWeights(Detector):
    """Updates as large as the weights have made them ten times larger, and the loss is no lower than at its start.

    Where units saturate, the loss cannot blow up with the weights. It stays at the level, and with the noise, of a
    network that has learned nothing. A test for a flat loss fails on so much noise. So the question is reversed: there
    is a finding unless the loss shows that the run learns.
    """

    id = "overwritten_weights"
    verdict = "exploding"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "largest_update_ratio": "largest_ratio",
        "since_step": "since",
        "count_at_start": "count",
        "has_blown_up": "has_blown_up",
    }

    def __init__(self) -> None:
        super().__init__()
        self.largest_update_ratio = 0.0
        self.since_step: int | None = None
        self.count_at_start = 0
        """Number of losses when the weights were found overwritten."""
        self.has_blown_up = False
        """Whether the loss has blown up. Then `loss_divergence` judges the run, and whether it recovers."""

    def is_applicable(self, architecture: Architecture, measurements: Measurements) -> bool:  # noqa: ARG002 (the base's)
        """Return whether the run has had an update that rewrites the weights."""
        has_rewritten = self.largest_update_ratio >= REWRITING_UPDATE_RATIO
        return has_rewritten or bool((measurements.update_ratio >= REWRITING_UPDATE_RATIO).any())

    def observe(self, view: StepView) -> None:
        """Compare the weights with the first ones, and check whether the loss ever fell."""
        if view.row is not None and REWRITING_UPDATE_RATIO <= view.update_ratio < math.inf:
            self.largest_update_ratio = max(self.largest_update_ratio, view.update_ratio)
        if self.largest_update_ratio < REWRITING_UPDATE_RATIO:
            return
        self.has_blown_up = self.has_blown_up or view.loss_ratio >= BLOW_UP
        if view.row is None or view.is_skipped or view.has_several_streams or not math.isfinite(view.weight_norm):
            return
        progress = view.progress
        weight_growth = self._compute_weight_growth(view)
        if self.has_blown_up or not OVERWRITTEN <= weight_growth < math.inf:
            self.since_step = None
            self.close_finding(view.step)
            return
        if self.since_step is None:
            self.since_step, self.count_at_start = view.step, progress.count
        if self.strength == 0:
            is_old = progress.count - self.count_at_start >= PATIENCE
            is_lost = view.measures_progress and progress.shows_no_learning()
            self.strength = STRENGTH if is_old and is_lost else 0.0
            self.stuck_level = progress.slow_average
        elif progress.has_fallen_below(self.stuck_level) and not progress.shows_no_learning():
            self.strength = 0.0
        if self.strength == 0:
            self.close_finding(view.step)
            return
        norms = np.where(view.architecture.is_path, view.measurements.weight_norm[view.row], np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            growth_by_layer = norms / view.averages.first_weight_norm
        evidence = {
            "weight_growth": weight_growth,
            "update_to_weight": self.largest_update_ratio,
            "loss_fallen": progress.fallen_share,
        }
        self.update_finding(view.step, "critical", rank_layers(growth_by_layer), evidence, since=self.since_step)

    @staticmethod
    def _compute_weight_growth(view: StepView) -> float:
        """Return the weights' norm over their first norm; NaN where that was zero or is unknown."""
        first_norms = view.averages.first_weight_norm[view.measurements.present[view.row]]
        first_norm = float(np.sqrt(np.nansum(np.square(first_norms))))
        return view.weight_norm / first_norm if first_norm > 0 else math.nan

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain the size of weights and updates."""
        evidence = finding.evidence
        where = f", most in {layers[0]}" if layers else ""
        return (
            f"Updates of up to {evidence['update_to_weight']:.2g} times the weights' size have made the weights "
            f"{evidence['weight_growth']:.2g} times as large as at the start{where}, and the loss shows no learning. "
            f"Nothing of the initial network is left; saturated units keep the loss from blowing up."
        )
