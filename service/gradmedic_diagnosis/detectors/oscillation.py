"""A loss that swings from step to step instead of falling: the edge of stability."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradmedic_diagnosis.detectors.base import Detector, Episode, Moment

SWING = 0.1
"""Share of the loss by which it must swing to be worth a note."""
CORRELATION = -0.8
"""Correlation of successive deviations from the slow average. Batch noise has none; a step that overshoots the minimum
along its steepest direction and comes back has -1 (Cohen et al. 2021, edge of stability)."""
HORIZON = 30
"""Steps that the correlation is averaged over."""


class Oscillation(Detector):
    """Successive losses lie on opposite sides of their average: a note that the learning rate is at its limit."""

    id = "oscillation"
    verdict = "exploding"
    remembered = ("previous", "product", "square", "count", "since")

    def __init__(self) -> None:
        super().__init__()
        self.previous = 0.0
        self.product = 0.0
        self.square = 0.0
        self.count = 0
        self.since = 0

    def observe(self, moment: Moment) -> None:
        """Correlate this deviation with the one before."""
        if moment.loss is None or not math.isfinite(moment.loss) or moment.is_multi_stream:
            return
        deviation = moment.loss - moment.progress.slow
        self.count += 1
        weight = 1 / min(self.count, HORIZON)
        self.product += weight * (deviation * self.previous - self.product)
        self.square += weight * (deviation * deviation - self.square)
        self.previous = deviation
        level = abs(moment.progress.fast)
        is_alternating = self.count >= HORIZON and self.product <= CORRELATION * self.square
        if not is_alternating or not 0 < self.square < math.inf or math.sqrt(self.square) < SWING * level:
            self.since = moment.step + 1
            self.close(moment.step)
        else:
            evidence = {"correlation": self.product / self.square, "swing": math.sqrt(self.square) / max(level, 1e-300)}
            self.open(moment.step, "note", [], evidence, since=self.since)

    def explain(self, episode: Episode, names: Sequence[str]) -> str:
        """Give the swing."""
        del names
        swing = episode.evidence["swing"]
        return f"The loss swings by {swing:.0%} of itself from step to step: the learning rate is at its limit."
