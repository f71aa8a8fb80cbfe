"""Updates that no longer move the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.insensitive_loss import SENSITIVE
from gradmedic_diagnosis.detectors.step_view import StepView

STARVED_UPDATE_RATIO = 1e-6
"""Network-wide update over weight at which a thousand steps change the weights by a thousandth. The practical band is
1e-5 to 1e-2; this is a whole decade below it."""
LEAST_UPDATE_RATIO = 1e-12
"""The ratio that stands for an update that changed no weight at all."""
UNMOVED = 1e-4
"""Sum of the updates over the weights since the start at which nothing can have been learned: a ten-thousandth of the
weights' size. Fine-tuning with small rates moves the weights by a hundredth (Neyshabur et al. 2020, "What is being
transferred in transfer learning?", section 3.3)."""
UNMOVED_PATIENCE = 50
"""Steps before the weights count as unmoved. Those that are not sampled count: the last ratio stands for them."""
UNMOVED_SAMPLES = 10
"""Sampled steps that this needs at least."""
HORIZON = 20
"""Sampled steps over which the ratio is averaged."""
PATIENCE = 100
"""Losses of the run before there is a finding."""


class Starvation(Detector):
    """The updates are negligible and the loss does not move. A note only, since a low learning rate may be intended.

    Weights that have not moved at all since the first step are a fault, also while the loss falls: the rate is zero, or
    far too low. The finding never supports a verdict: the gradients themselves may be healthy.
    """

    id = "starvation"
    verdict = "vanishing"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "log_update_ratio": "log_ratio",
        "count": "count",
        "since_step": "since",
        "steps": "steps",
        "movement": "movement",
        "last_update_ratio": "last_ratio",
        "largest_sensitivity": "sensitivity",
    }

    def __init__(self) -> None:
        super().__init__()
        self.log_update_ratio = 0.0
        """Average of log10 of the update-to-weight ratio."""
        self.count = 0
        """Number of values in the average."""
        self.since_step = 0
        self.steps = 0
        """Steps so far, from the first sampled one on."""
        self.movement = 0.0
        """Sum of the updates over the weights since the start, an upper bound of how far the weights have moved."""
        self.last_update_ratio = 0.0
        """The ratio of the last sampled step, which stands for those that are not sampled."""
        self.largest_sensitivity = 0.0
        """Largest sensitivity of the loss so far, as in `InsensitiveLoss`."""

    @property
    def is_fault(self) -> bool:
        """Whether the weights have not moved since the start, though the gradient would move them at a usual rate."""
        has_gradient = self.largest_sensitivity >= SENSITIVE
        is_old = self.steps >= UNMOVED_PATIENCE and self.count >= UNMOVED_SAMPLES
        return is_old and self.movement < UNMOVED and has_gradient

    def observe(self, view: StepView) -> None:
        """Average the update-to-weight ratio, and check whether the loss is stuck."""
        if view.row is None:
            self.steps += self.count > 0
            self.movement += self.last_update_ratio
            return
        if math.isnan(view.update_ratio) or (view.gradient_norm == 0 and view.update_ratio == 0):
            return
        self.steps += 1
        self.movement += view.update_ratio
        level = abs(view.progress.current)
        if view.gradient_weight_product > self.largest_sensitivity * level:
            self.largest_sensitivity = view.gradient_weight_product / level if level > 0 else math.inf
        if view.update_ratio == math.inf:
            return
        self.last_update_ratio = view.update_ratio
        self.count += 1
        log_ratio = math.log10(max(view.update_ratio, LEAST_UPDATE_RATIO))
        self.log_update_ratio += (log_ratio - self.log_update_ratio) / min(self.count, HORIZON)
        if self.log_update_ratio >= math.log10(STARVED_UPDATE_RATIO):
            self.since_step = view.step + 1
            self.close_finding(view.step)
        elif self.is_fault or (view.progress.count >= PATIENCE and view.is_stuck):
            evidence = {"update_to_weight": 10**self.log_update_ratio, "loss_fallen": view.progress.fallen_share}
            if not math.isnan(view.learning_rate):
                evidence["learning_rate"] = view.learning_rate
            self.update_finding(view.step, "warning" if self.is_fault else "note", [], evidence, since=self.since_step)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain the ratio, and the practical band."""
        del layers
        ratio = finding.evidence["update_to_weight"]
        if finding.severity == "warning":
            rate = finding.evidence.get("learning_rate")
            cause = "" if rate is None else f", at a learning rate of {rate:.3g}"
            return (
                f"The weights are still those of the start: one update changes them by {ratio:.1g} of their size "
                f"(practical: 1e-5 to 1e-2){cause}."
            )
        return (
            f"One update changes the weights by only {ratio:.1g} of their size (practical: 1e-5 to 1e-2), "
            f"and the loss does not move."
        )
