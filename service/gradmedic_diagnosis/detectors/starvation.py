"""Updates that no longer move the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_view import StepView

STARVED_UPDATE_RATIO = 1e-6
"""Network-wide update over weight at which a thousand steps change the weights by a thousandth. The practical band is
1e-5 to 1e-2; this is a whole decade below it."""
LEAST_UPDATE_RATIO = 1e-12
"""The ratio that stands for an update that changed no weight at all."""
HORIZON = 20
"""Sampled steps over which the ratio is averaged."""
PATIENCE = 100
"""Losses of the run before there is a finding."""


class Starvation(Detector):
    """The updates are negligible and the loss does not move. A note only, since a low learning rate may be intended.

    It never supports a verdict: the gradients themselves may be healthy.
    """

    id = "starvation"
    verdict = "vanishing"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "log_update_ratio": "log_ratio",
        "count": "count",
        "since_step": "since",
    }

    def __init__(self) -> None:
        super().__init__()
        self.log_update_ratio = 0.0
        """Average of log10 of the update-to-weight ratio."""
        self.count = 0
        """Number of values in the average."""
        self.since_step = 0

    def observe(self, view: StepView) -> None:
        """Average the update-to-weight ratio, and check whether the loss is stuck."""
        if view.row is None or not 0 <= view.update_ratio < math.inf:
            return
        self.count += 1
        log_ratio = math.log10(max(view.update_ratio, LEAST_UPDATE_RATIO))
        self.log_update_ratio += (log_ratio - self.log_update_ratio) / min(self.count, HORIZON)
        if self.log_update_ratio >= math.log10(STARVED_UPDATE_RATIO):
            self.since_step = view.step + 1
            self.close_finding(view.step)
        elif view.progress.count >= PATIENCE and view.is_stuck:
            evidence = {"update_to_weight": 10**self.log_update_ratio, "loss_fallen": view.progress.fallen_share}
            if not math.isnan(view.learning_rate):
                evidence["learning_rate"] = view.learning_rate
            self.update_finding(view.step, "note", [], evidence, since=self.since_step)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain the ratio, and the practical band."""
        del layers
        ratio = finding.evidence["update_to_weight"]
        return (
            f"One update changes the weights by only {ratio:.1g} of their size (practical: 1e-5 to 1e-2), "
            f"and the loss does not move."
        )
