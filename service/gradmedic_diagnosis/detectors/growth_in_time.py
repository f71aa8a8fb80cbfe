"""Gradients that grow from step to step, before the loss is lost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradmedic_diagnosis.detectors.base import Detector, Episode, Moment
from gradmedic_diagnosis.report import Severity

GROWTH_DECADES = 1.0
"""Median growth of the layers above their own baselines that is worth a finding (an order of magnitude)."""
REACH_RATIO = 0.3
"""Network-wide update over weight from which growing gradients are about to destroy the weights."""
OVERWRITE_RATIO = 10.0
"""An update ten times the weights, by gradients that have grown, needs no persistence: nothing of the network before is
left."""
PERSISTENCE = 3
"""Sampled steps running for a finding; a spike of one or two batches is not growth."""
REACH_PERSISTENCE = 4
"""Sampled steps running, with updates of that size, for a verdict: networks have survived three."""
BLIND_DECADES = 3.0
BLIND_PERSISTENCE = 10
"""Where no update and weight norms are sent, growth alone must be this large for this many sampled steps running."""
CALM_STEPS = 20
"""Sampled steps below the threshold, with the loss back, after which a verdict is taken back."""
LOSS_RISES = 2.0
"""Factor over its reference by which the loss must have risen along, where there is one."""


class GrowthInTime(Detector):
    """The typical layer's gradient stands a decade or more above its baseline, step after step.

    Alone this is a finding. It speaks for a verdict when the updates are of the order of the weights and the loss
    rises with it: then the weights are being lost.
    """

    id = "growth_in_time"
    verdict = "exploding"
    remembered = ("running", "since", "start_level", "reaching", "blind", "calm")

    def __init__(self) -> None:
        super().__init__()
        self.running = 0
        self.since = 0
        self.start_level = 0.0
        self.reaching = 0
        self.blind = 0
        self.calm = 0

    def observe(self, moment: Moment) -> None:
        """Compare each layer with its own past."""
        if moment.row is None or moment.skipped or not moment.has_row:
            return
        typical = moment.typical_growth
        if typical < GROWTH_DECADES:
            self.running = self.reaching = self.blind = 0
            is_back = math.isnan(moment.excess) or moment.excess < LOSS_RISES
            self.calm = self.calm + 1 if is_back else 0
            if not self.signal or self.calm >= CALM_STEPS:
                self.close(moment.step)
            return
        self.calm = 0
        if self.running == 0:
            self.since, self.start_level = moment.step, typical
        self.running += 1
        rises = math.isnan(moment.excess) or moment.excess >= LOSS_RISES
        self.reaching = self.reaching + 1 if moment.ratio >= REACH_RATIO and rises else 0
        is_blind = not moment.measurements.sends_weights
        self.blind = self.blind + 1 if is_blind and rises and typical >= BLIND_DECADES else 0
        overwrites = moment.ratio >= OVERWRITE_RATIO and rises
        if self.reaching >= REACH_PERSISTENCE or self.blind >= BLIND_PERSISTENCE or overwrites:
            self.signal = 0.8
        if self.running >= PERSISTENCE or self.reaching:
            factor = 10 ** ((typical - self.start_level) / max(1, moment.step - self.since))
            evidence = {"growth_decades": typical, "growth_per_step": float(factor)}
            if not is_blind:
                evidence["update_to_weight"] = moment.ratio
            severity: Severity = "critical" if self.signal else "warning"
            self.open(moment.step, severity, moment.layers_by_growth(), evidence, since=self.since)

    def explain(self, episode: Episode, names: Sequence[str]) -> str:
        """Give the growth against the baseline."""
        evidence = episode.evidence
        factor = 10 ** evidence["growth_decades"]
        text = f"Gradients stand {factor:.3g} times above their own baseline since step {episode.first_step}"
        return text + (f", most in {names[0]}." if names else ".")
