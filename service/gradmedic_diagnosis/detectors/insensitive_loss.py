"""A loss that no weight has a grip on: attenuation so even over depth that no gap shows it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradmedic_diagnosis.detectors.base import Detector, Episode, Moment, rank

NO_GRIP = 0.01
"""Grip of a layer: |gradient| * |weights| / |loss|, the share by which the loss would answer to a change of the layer
by its own size along the gradient. The best layer of networks that train has 0.1 to 1000 while the loss is still high;
below a hundredth, no ordinary step moves it. A linear chain W = a*I of depth n has a grip of the order of a^n."""
HORIZON = 20
"""Sampled steps that the grip is averaged over."""
PATIENCE = 120
"""Steps of the run before a stuck loss speaks."""
NEVER_MOVED = 0.1
"""The loss has fallen by less than this share of its start; a loss that fell and flattened has converged, unless no
weight ever had a grip on it."""


class InsensitiveLoss(Detector):
    """The weights' gradients are far too small, against weights and loss, to ever move the loss, and they never did."""

    id = "insensitive_loss"
    verdict = "vanishing"
    remembered = ("log_grip", "count", "since", "never_had_grip")

    def __init__(self) -> None:
        super().__init__()
        self.log_grip = 0.0
        self.count = 0
        self.since = 0
        self.never_had_grip = False
        """Whether no weight had a grip since the first step: then what the loss has lost is an output bias's doing."""

    def observe(self, moment: Moment) -> None:
        """Average the best layer's grip and ask whether the loss ever moved."""
        progress = moment.progress
        level = abs(progress.fast)
        usable = moment.grip > 0 and level > 0 and math.isfinite(moment.grip)
        if moment.row is None or moment.is_multi_stream or not usable:
            return
        value = math.log10(moment.grip / level)
        if self.count == 0:
            self.never_had_grip = True
        self.count += 1
        self.log_grip += (value - self.log_grip) / min(self.count, HORIZON)
        if self.log_grip >= math.log10(NO_GRIP):
            self.since = moment.step + 1
            self.never_had_grip = False
            self.close(moment.step)
            return
        never_learned = progress.fallen < NEVER_MOVED or self.never_had_grip
        holds = progress.count >= PATIENCE and never_learned and moment.architecture.has_product
        if not self.speak_while_stuck(moment, 0.8, holds=holds):
            self.close(moment.step)
        else:
            level_by_layer = np.where(moment.architecture.is_path, moment.depth.smooth[moment.row], np.nan)
            evidence = {"grip": 10**self.log_grip, "loss_fallen": progress.fallen}
            layers = rank(level_by_layer, largest_first=False)
            self.open(moment.step, "critical", layers, evidence, since=self.since)

    def explain(self, episode: Episode, names: Sequence[str]) -> str:
        """Give the grip against that of a network that trains."""
        grip = episode.evidence["grip"]
        fallen = episode.evidence["loss_fallen"]
        moved = "it never moved" if fallen < NEVER_MOVED else f"its fall by {fallen:.0%} was no weight's doing"
        where = f"; the gradient is smallest in {names[0]}" if names else ""
        return (
            f"The loss would change by only {grip:.1g} of itself if the strongest layer changed by its own size "
            f"(networks that train: 0.1 and more), and {moved}{where}."
        )
