"""The loss blows up, and the updates are large enough to have done it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradmedic_diagnosis.detectors.base import Detector, Episode, Moment
from gradmedic_diagnosis.progress import BLOW_UP

PERSISTENCE = 5
"""Steps running: a network that one bad update knocked over may get up again within a few."""
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
WEAK_REACH_RATIO = 0.1
"""Reach from which a blow-up of the loss is held against a run that never learns afterwards."""
NEVER_RECOVERED_STEPS = 60
"""Steps after such a blow-up ..."""
NEVER_RECOVERED_FALL = 0.2
"""... within which a loss that is stuck has lost less than this share of what it was right after it (or the network is
dead): it was the blow-up that ended the training, whatever the loss looks like now."""
WEIGHT_GROWTH = 2.0
"""Slow divergence: the loss is up tenfold while the weights have at least doubled, for `SLOW_PERSISTENCE` steps."""
SLOW_PERSISTENCE = 10
BLIND_PERSISTENCE = 20
"""Where no weight norms are sent, a loss of ten times its start must last this long, and gradients (where there are
any) must have grown with it."""
BLIND_GROWTH_DECADES = 0.3
RECOVERED_STEPS = 20
"""Steps at or below the old reference, learning again, after which a blow-up counts as recovered."""


class Divergence(Detector):
    """Loss far above its reference while the weights were overwritten, at once or slowly."""

    id = "loss_divergence"
    verdict = "exploding"
    remembered = (
        "reach_left",
        "weak_reach_left",
        "peak_ratio",
        "running",
        "slow_running",
        "initial_weight",
        "reference",
        "calm",
        "blow_up",
    )

    def __init__(self) -> None:
        super().__init__()
        self.reach_left = 0
        self.weak_reach_left = 0
        self.peak_ratio = 0.0
        self.running = 0
        self.slow_running = 0
        self.initial_weight = float("nan")
        self.reference = float("nan")
        self.calm = 0
        self.blow_up: dict[str, float] | None = None
        """The last blow-up that was no verdict by itself: its step, evidence, and the loss after it."""

    def observe(self, moment: Moment) -> None:
        """Compare the loss with its reference and the update with the weights."""
        self._remember_reach(moment)
        if math.isnan(moment.excess) or moment.skipped:
            return
        reached = self.reach_left > 0
        self.running = self.running + 1 if moment.excess >= BLOW_UP else 0
        weight_growth = moment.weight / self.initial_weight if self.initial_weight > 0 else float("nan")
        self._count_slow(moment, weight_growth)
        is_enough = self.running >= PERSISTENCE or moment.excess >= SUDDEN_FACTOR or self.peak_ratio >= REPLACED_RATIO
        sudden = reached and self.running >= 1 and is_enough
        knows_weights = math.isfinite(self.initial_weight)
        slow = self.slow_running >= (SLOW_PERSISTENCE if knows_weights else BLIND_PERSISTENCE)
        if self.running and self.weak_reach_left:
            self.blow_up = {
                "step": moment.step,
                "count": moment.progress.count,
                **self._evidence(moment, weight_growth),
            }
        if sudden or slow:
            if not self.is_open:
                self.reference = moment.reference
            self.open(moment.step, "critical", moment.layers_by_growth(), self._evidence(moment, weight_growth))
            self.signal = 0.95
            self.calm = 0
        elif self.is_open:
            self._watch_recovery(moment)
        elif self.blow_up is not None:
            self._watch_aftermath(moment, self.blow_up)

    def _count_slow(self, moment: Moment, weight_growth: float) -> None:
        """Count steps on which the loss stands far above its start and nothing speaks against a slow divergence."""
        if math.isfinite(self.initial_weight):
            if moment.row is not None and math.isnan(weight_growth):
                return
            agrees = moment.row is None or weight_growth >= WEIGHT_GROWTH
        else:
            agrees = moment.row is None or moment.typical_growth >= BLIND_GROWTH_DECADES
        is_slow = agrees and not moment.is_multi_stream and moment.progress.rise >= BLOW_UP
        self.slow_running = self.slow_running + 1 if is_slow else 0

    def _watch_aftermath(self, moment: Moment, blow_up: dict[str, float]) -> None:
        """A single large loss is forgiven unless the training never goes anywhere again."""
        since = moment.progress.count - blow_up["count"]
        if since >= RECOVERED_STEPS and "level" not in blow_up:
            blow_up["level"] = moment.progress.fast
        if since < NEVER_RECOVERED_STEPS or "level" not in blow_up or not moment.is_stuck:
            return
        fall = (blow_up["level"] - moment.progress.fast) / max(abs(blow_up["level"]), 1e-30)
        if fall >= NEVER_RECOVERED_FALL:
            self.blow_up = None
            return
        evidence = {name: value for name, value in blow_up.items() if name not in ("step", "count", "level")}
        layers = self.episode.layers if self.episode else []
        self.open(moment.step, "critical", layers, evidence, since=int(blow_up["step"]))
        self.reference = blow_up["level"]
        self.signal = 0.8

    def _remember_reach(self, moment: Moment) -> None:
        if moment.row is None:
            self.reach_left = max(0, self.reach_left - 1)
            self.weak_reach_left = max(0, self.weak_reach_left - 1)
            return
        if math.isnan(self.initial_weight) and math.isfinite(moment.weight):
            self.initial_weight = moment.weight
        reach = moment.ratio >= REACH_RATIO
        if not math.isfinite(self.initial_weight):
            reach = moment.typical_growth >= GRADIENT_DECADES
        self.reach_left = REACH_MEMORY if reach else max(0, self.reach_left - 1)
        is_weak_reach = reach or moment.ratio >= WEAK_REACH_RATIO
        self.weak_reach_left = REACH_MEMORY if is_weak_reach else max(0, self.weak_reach_left - 1)
        if is_weak_reach:
            self.peak_ratio = max(self.peak_ratio, moment.ratio)
        elif self.weak_reach_left == 0 and not self.is_open:
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
        if math.isfinite(weight_growth):
            evidence["weight_growth"] = float(weight_growth)
        return evidence

    def explain(self, episode: Episode, names: Sequence[str]) -> str:
        """Give the factor of the loss and the size of the updates."""
        evidence = episode.evidence
        text = f"The loss is {evidence['loss_over_reference']:.3g} times its reference"
        if evidence["update_to_weight"] >= WEAK_REACH_RATIO:
            ratio = evidence["update_to_weight"]
            text += f" after updates of {ratio:.2g} times the weights themselves (healthy: about 0.001)"
        elif evidence.get("weight_growth", 1.0) >= WEIGHT_GROWTH:
            text += f" and the weights have grown {evidence['weight_growth']:.2g}-fold"
        return text + (f"; the gradient grew most in {names[0]}." if names else ".")
