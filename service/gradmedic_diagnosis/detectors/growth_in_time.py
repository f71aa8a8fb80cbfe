"""Gradients that grow from step to step, before the loss blows up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.loss_divergence import REPLACING_UPDATE_RATIO
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView

GROWTH_DECADES = 1.0
"""Median growth of the layers above their own baselines from which there is a finding: an order of magnitude."""
PERSISTENCE = 3
"""Consecutive sampled steps before there is a finding: a spike of one or two batches is no growth."""
DANGEROUS_UPDATE_RATIO = 0.3
"""Network-wide update over weight from which growing gradients are about to destroy the weights."""
DANGEROUS_PERSISTENCE = 4
"""Consecutive sampled steps with such updates that support a verdict: networks have survived three. A single update of
`REPLACING_UPDATE_RATIO` supports it at once."""
UNWEIGHTED_GROWTH_DECADES = 3.0
"""Growth that alone supports a verdict of a run without weight and update norms."""
UNWEIGHTED_PERSISTENCE = 10
"""Consecutive sampled steps for which that growth must last."""
LOSS_RISE = 2.0
"""The loss, where there is one, must be this many times its reference."""
CALM_STEPS = 20
"""Consecutive sampled steps below the threshold, with the loss back, after which a verdict is withdrawn."""
SETTLED_STEPS = 50
"""Consecutive sampled steps with grown gradients after which their level is the run's own, if it learns: as many as a
baseline looks back (`BASELINE_HORIZON`). A baseline that began far too low, as with an output that was initialized to
zero, needs many more to follow."""
STRENGTH = 0.8


class GrowthInTime(Detector):
    """The typical layer's gradient is a decade or more above its baseline for several steps.

    Growth alone is a finding. It supports a verdict when the updates are of the order of the weights and the loss
    rises, too: then the network loses what it has learned.
    """

    id = "growth_in_time"
    verdict = "exploding"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "grown_steps": "running",
        "since_step": "since",
        "start_growth": "start_level",
        "dangerous_steps": "reaching",
        "unweighted_steps": "blind",
        "calm_steps": "calm",
        "settled_growth": "settled",
    }

    def __init__(self) -> None:
        super().__init__()
        self.grown_steps = 0
        """Consecutive sampled steps with grown gradients."""
        self.since_step = 0
        self.start_growth = 0.0
        """Growth in decades on the first of them."""
        self.dangerous_steps = 0
        """Consecutive sampled steps that also have dangerous updates and a risen loss."""
        self.unweighted_steps = 0
        """Consecutive sampled steps with a large growth and no weight norms."""
        self.calm_steps = 0
        """Consecutive sampled steps without growth and with the loss back, while the finding supports a verdict."""
        self.settled_growth = 0.0
        """Growth in decades that has become the run's own level; 0 where none has."""

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the first one with grown gradients."""
        counts = (self.grown_steps, self.dangerous_steps, self.unweighted_steps, self.calm_steps, self.settled_growth)
        if not self.is_at_rest or any(counts):
            return 0
        return columns.first_row(~(columns.depth_profile.typical_growth < GROWTH_DECADES))

    def observe(self, view: StepView) -> None:
        """Compare the gradients with their baselines, the updates with the weights, and the loss with its reference."""
        if view.row is None or view.is_skipped or not view.has_statistics:
            return
        growth = view.typical_growth
        if growth < GROWTH_DECADES:
            self.grown_steps = self.dangerous_steps = self.unweighted_steps = 0
            self.settled_growth = 0.0
            is_loss_back = math.isnan(view.loss_ratio) or view.loss_ratio < LOSS_RISE
            self.calm_steps = self.calm_steps + 1 if self.strength and is_loss_back else 0
            if not self.strength or self.calm_steps >= CALM_STEPS:
                self.close_finding(view.step)
            return
        self.calm_steps = 0
        if self.grown_steps == 0:
            self.since_step, self.start_growth = view.step, growth
        self.grown_steps += 1
        has_loss_risen = math.isnan(view.loss_ratio) or view.loss_ratio >= LOSS_RISE
        is_dangerous = view.update_ratio >= DANGEROUS_UPDATE_RATIO and has_loss_risen
        self.dangerous_steps = self.dangerous_steps + 1 if is_dangerous else 0
        has_weights = view.measurements.has_weight_norms
        is_large = not has_weights and has_loss_risen and growth >= UNWEIGHTED_GROWTH_DECADES
        self.unweighted_steps = self.unweighted_steps + 1 if is_large else 0
        is_replacing = view.update_ratio >= REPLACING_UPDATE_RATIO and has_loss_risen
        if (
            self.dangerous_steps >= DANGEROUS_PERSISTENCE
            or self.unweighted_steps >= UNWEIGHTED_PERSISTENCE
            or is_replacing
        ):
            self.strength = STRENGTH
        if self._is_settled(view, growth):
            self.close_finding(view.step)
        elif self.grown_steps >= PERSISTENCE or self.dangerous_steps:
            factor = 10 ** ((growth - self.start_growth) / max(1, view.step - self.since_step))
            evidence = {"growth_decades": growth, "growth_per_step": float(factor)}
            if has_weights:
                evidence["update_to_weight"] = view.update_ratio
            severity = "critical" if self.strength else "warning"
            self.update_finding(view.step, severity, view.layers_by_growth(), evidence, since=self.since_step)

    def _is_settled(self, view: StepView, growth: float) -> bool:
        """Whether the run learns with gradients that have stayed at this level for as long as a baseline looks back."""
        if self.strength or self.dangerous_steps:
            return False
        if self.settled_growth == 0 and self.grown_steps >= SETTLED_STEPS:
            is_level = growth < self.start_growth + GROWTH_DECADES
            if is_level and view.progress.count and not view.progress.shows_no_learning():
                self.settled_growth = growth
        if self.settled_growth == 0 or growth >= self.settled_growth + GROWTH_DECADES:
            return False
        self.since_step = view.step  # a finding that is opened again begins here
        return True

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain the growth above the baseline."""
        factor = 10 ** finding.evidence["growth_decades"]
        text = f"Gradients are {factor:.3g} times their own baseline, from step {finding.first_step} on"
        return text + (f", most in {layers[0]}." if layers else ".")
