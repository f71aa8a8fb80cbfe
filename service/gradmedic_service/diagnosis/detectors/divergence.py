"""The loss blows up, and the updates are large enough to have done it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradmedic_service.diagnosis.detectors.base import Detector, Episode, Moment

LOSS_FACTOR = 10.0
"""A loss this many times its reference is a blow-up, not noise: the outcome that defines an exploding run."""
SUDDEN_FACTOR = 1000.0
"""At this factor one step is enough ..."""
REPLACED_RATIO = 10.0
"""... and so it is when one update was this many times the weights: nothing of the network before is left."""
REACH_RATIO = 0.5
"""Network-wide update over weight that rewrites the weights rather than adjusting them. Healthy training has about
1e-3 (Karpathy 2015); the recordings separate anywhere between 0.3 and 10."""
REACH_MEMORY = 20
"""Steps for which an update of that size explains a loss."""
GRADIENT_DECADES = 2.0
"""Where no weights are sent: the gradient must stand this far above its baseline instead."""
WEIGHT_GROWTH = 2.0
"""Slow divergence: the loss is up tenfold while the weights have at least doubled, for `SLOW_PERSISTENCE` steps."""
SLOW_PERSISTENCE = 10
RECOVERED_STEPS = 20
"""Steps at or below the old reference, learning again, after which a blow-up counts as recovered."""


class Divergence(Detector):
    """Loss far above its reference while the weights were overwritten, at once or slowly."""

    id = "loss_divergence"
    verdict = "exploding"
    remembered = ("reach_left", "peak_ratio", "running", "slow_running", "initial_weight", "reference", "calm")

    def __init__(self) -> None:
        super().__init__()
        self.reach_left = 0
        self.peak_ratio = 0.0
        self.running = 0
        self.slow_running = 0
        self.initial_weight = float("nan")
        self.reference = float("nan")
        self.calm = 0

    def observe(self, moment: Moment) -> None:
        """Compare the loss with its reference and the update with the weights."""
        self._remember_reach(moment)
        if np.isnan(moment.excess) or moment.skipped:
            return
        reached = self.reach_left > 0
        self.running = self.running + 1 if moment.excess >= LOSS_FACTOR else 0
        weight_growth = moment.weight / self.initial_weight if self.initial_weight > 0 else float("nan")
        if not np.isnan(weight_growth) or moment.row is None:
            is_slow = moment.progress.rise >= LOSS_FACTOR and (moment.row is None or weight_growth >= WEIGHT_GROWTH)
            self.slow_running = self.slow_running + 1 if is_slow and not moment.is_multi_stream else 0
        is_enough = self.running >= 2 or moment.excess >= SUDDEN_FACTOR or self.peak_ratio >= REPLACED_RATIO
        sudden = reached and self.running >= 1 and is_enough
        slow = self.slow_running >= SLOW_PERSISTENCE and bool(np.isfinite(self.initial_weight))
        if sudden or slow:
            if not self.is_open:
                self.reference = max(moment.progress.start, moment.progress.slow)
            self.open(moment.step, "critical", moment.layers_by_growth(), self._evidence(moment, weight_growth))
            self.signal = 0.95
            self.calm = 0
        elif self.is_open:
            self._watch_recovery(moment)

    def _remember_reach(self, moment: Moment) -> None:
        if moment.row is None:
            self.reach_left = max(0, self.reach_left - 1)
            return
        if np.isnan(self.initial_weight) and np.isfinite(moment.weight):
            self.initial_weight = moment.weight
        reach = moment.ratio >= REACH_RATIO
        if not np.isfinite(self.initial_weight) and moment.depth is not None:
            growth = moment.depth.growth[moment.row]
            known = growth[np.isfinite(growth)]
            reach = known.size > 0 and float(np.median(known)) >= GRADIENT_DECADES
        if reach:
            self.reach_left = REACH_MEMORY
            self.peak_ratio = max(self.peak_ratio, moment.ratio)
        else:
            self.reach_left = max(0, self.reach_left - 1)
            if self.reach_left == 0 and not self.is_open:
                self.peak_ratio = 0.0

    def _watch_recovery(self, moment: Moment) -> None:
        """Recovered means below the old reference for a while, still moving down, with living gradients."""
        is_calm = moment.loss is not None and moment.loss <= self.reference and moment.dead_share < 0.5
        self.calm = self.calm + 1 if is_calm else 0
        if self.calm >= RECOVERED_STEPS and not moment.is_stuck:
            self.close(moment.step)

    def _evidence(self, moment: Moment, weight_growth: float) -> dict[str, float]:
        evidence = {
            "loss": float(moment.loss or 0.0),
            "loss_over_reference": moment.excess,
            "update_to_weight": self.peak_ratio,
        }
        if np.isfinite(weight_growth):
            evidence["weight_growth"] = float(weight_growth)
        return evidence

    def explain(self, episode: Episode, names: Sequence[str]) -> str:
        """Give the factor of the loss and the size of the updates."""
        evidence = episode.evidence
        text = f"The loss is {evidence['loss_over_reference']:.3g} times its reference"
        if evidence["update_to_weight"] >= REACH_RATIO:
            ratio = evidence["update_to_weight"]
            text += f" after updates of {ratio:.2g} times the weights themselves (healthy: about 0.001)"
        elif evidence.get("weight_growth", 1.0) >= WEIGHT_GROWTH:
            text += f" and the weights have grown {evidence['weight_growth']:.2g}-fold"
        return text + (f"; the gradient grew most in {names[0]}." if names else ".")
