"""A loss that swings from step to step instead of falling: the edge of stability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_view import StepView

SWING = 0.1
"""Share of the loss by which it must swing before there is a finding."""
CORRELATION = -0.8
"""Correlation of successive deviations from the slow average. Batch noise has none. A step that overshoots the minimum
along its steepest direction and comes back has -1 (Cohen et al. 2021, edge of stability)."""
HORIZON = 30
"""Steps over which the correlation is averaged."""
TINY = 1e-300
"""Lower bound of a divisor that may be zero."""


class Oscillation(Detector):
    """Successive losses lie on opposite sides of their average. A note only: the learning rate is at its limit."""

    id = "oscillation"
    verdict = "exploding"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "last_deviation": "previous",
        "mean_product": "product",
        "mean_square": "square",
        "count": "count",
        "since_step": "since",
    }

    def __init__(self) -> None:
        super().__init__()
        self.last_deviation = 0.0
        """Deviation of the last loss from the slow average."""
        self.mean_product = 0.0
        """Average product of two successive deviations."""
        self.mean_square = 0.0
        """Average square of the deviations."""
        self.count = 0
        """Number of deviations."""
        self.since_step = 0

    def observe(self, view: StepView) -> None:
        """Correlate the deviation of the loss with the one before."""
        if view.loss is None or not math.isfinite(view.loss) or view.has_several_streams:
            return
        deviation = view.loss - view.progress.slow_average
        self.count += 1
        weight = 1 / min(self.count, HORIZON)
        self.mean_product += weight * (deviation * self.last_deviation - self.mean_product)
        self.mean_square += weight * (deviation * deviation - self.mean_square)
        self.last_deviation = deviation
        level = abs(view.progress.current)
        is_alternating = self.count >= HORIZON and self.mean_product <= CORRELATION * self.mean_square
        is_usable = 0 < self.mean_square < math.inf
        if not is_alternating or not is_usable or math.sqrt(self.mean_square) < SWING * level:
            self.since_step = view.step + 1
            self.close_finding(view.step)
        else:
            evidence = {
                "correlation": self.mean_product / self.mean_square,
                "swing": math.sqrt(self.mean_square) / max(level, TINY),
            }
            self.update_finding(view.step, "note", [], evidence, since=self.since_step)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain the swing."""
        del layers
        swing = finding.evidence["swing"]
        return f"The loss swings by {swing:.0%} of itself from step to step: the learning rate is at its limit."
