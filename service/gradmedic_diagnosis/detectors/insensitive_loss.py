"""A loss that no weight can change: the gradients are attenuated so evenly over depth that no gap shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from gradmedic_diagnosis.detectors.base import STUCK_PATIENCE, Detector, FindingState
from gradmedic_diagnosis.detectors.step_view import StepView, rank_layers
from gradmedic_diagnosis.loss_progress import UNMOVED_SHARE

INSENSITIVE = 0.01
"""Sensitivity is |gradient| * |weights| / |loss|: the share by which the loss would change if the layer changed by its
own size along the gradient. The most sensitive layer of networks that train has `SENSITIVE` to 1000 while the loss is
still high; below this value no ordinary step moves the loss. A linear chain W = a*I of depth n has a sensitivity of the
order of a^n."""
SENSITIVE = 0.1
"""Lower end of the sensitivity of networks that train."""
HORIZON = 20
"""Sampled steps over which the sensitivity is averaged."""
STRENGTH = 0.8


class InsensitiveLoss(Detector):
    """The gradients are far too small, compared with weights and loss, to move the loss, and it is stuck."""

    id = "insensitive_loss"
    verdict = "vanishing"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "log_sensitivity": "log_grip",
        "count": "count",
        "since_step": "since",
        "was_never_sensitive": "never_had_grip",
    }

    def __init__(self) -> None:
        super().__init__()
        self.log_sensitivity = 0.0
        """Average of log10 of the largest sensitivity of a layer."""
        self.count = 0
        """Number of values in the average."""
        self.since_step = 0
        self.was_never_sensitive = False
        """Whether the loss was insensitive since the first step. Then only an output bias can have lowered it."""

    def observe(self, view: StepView) -> None:
        """Average the sensitivity to the most sensitive layer, and check whether the loss ever moved."""
        progress = view.progress
        level = abs(progress.current)
        is_usable = view.gradient_weight_product > 0 and level > 0 and math.isfinite(view.gradient_weight_product)
        if view.row is None or view.has_several_streams or not is_usable:
            return
        log_sensitivity = math.log10(view.gradient_weight_product / level)
        if self.count == 0:
            self.was_never_sensitive = True
        self.count += 1
        self.log_sensitivity += (log_sensitivity - self.log_sensitivity) / min(self.count, HORIZON)
        if self.log_sensitivity >= math.log10(INSENSITIVE):
            self.since_step = view.step + 1
            self.was_never_sensitive = False
            self.close_finding(view.step)
            return
        # A loss that fell and is flat now has converged, unless no weight could ever have lowered it.
        has_never_learned = progress.fallen_share < UNMOVED_SHARE or self.was_never_sensitive
        has_evidence = progress.count >= STUCK_PATIENCE and has_never_learned and view.architecture.has_product
        if not self.update_strength_while_stuck(view, STRENGTH, has_evidence=has_evidence):
            self.close_finding(view.step)
        else:
            rms_by_layer = np.where(view.architecture.is_path, view.depth_profile.smoothed_log_rms[view.row], np.nan)
            evidence = {"grip": 10**self.log_sensitivity, "loss_fallen": progress.fallen_share}
            layers = rank_layers(rms_by_layer, largest_first=False)
            self.update_finding(view.step, "critical", layers, evidence, since=self.since_step)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain the sensitivity, and that of a network that trains."""
        sensitivity = finding.evidence["grip"]
        fallen = finding.evidence["loss_fallen"]
        moved = "it has never moved" if fallen < UNMOVED_SHARE else f"no weight caused its fall by {fallen:.0%}"
        where = f"; the gradient is smallest in {layers[0]}" if layers else ""
        return (
            f"The loss would change by only {sensitivity:.1g} of itself if the strongest layer changed by its own size "
            f"(networks that train: {SENSITIVE:g} and more), and {moved}{where}."
        )
