"""Updates that no longer move the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradmedic_diagnosis.detectors.base import Detector, Episode, Moment

STARVED_RATIO = 1e-6
"""Network-wide update over weight at which a thousand steps change the weights by a thousandth. The practical band ends
at 1e-5; a decade below it is no matter of taste."""
LEAST_RATIO = 1e-12
"""What an update counts as that changed no weight at all."""
HORIZON = 20
"""Sampled steps that the ratio is averaged over."""
PATIENCE = 100
"""Steps of the run before it is worth saying."""


class Starvation(Detector):
    """The updates are negligible and the loss does not move: a note, since a low learning rate may be meant.

    It never speaks for a verdict: the gradients may be perfectly well.
    """

    id = "starvation"
    verdict = "vanishing"
    remembered = ("log_ratio", "count", "since")

    def __init__(self) -> None:
        super().__init__()
        self.log_ratio = 0.0
        self.count = 0
        self.since = 0

    def observe(self, moment: Moment) -> None:
        """Average the update-to-weight ratio."""
        if moment.row is None or not 0 <= moment.ratio < math.inf:
            return
        self.count += 1
        self.log_ratio += (math.log10(max(moment.ratio, LEAST_RATIO)) - self.log_ratio) / min(self.count, HORIZON)
        if self.log_ratio >= math.log10(STARVED_RATIO):
            self.since = moment.step + 1
            self.close(moment.step)
        elif moment.progress.count >= PATIENCE and moment.is_stuck:
            evidence = {"update_to_weight": 10**self.log_ratio, "loss_fallen": moment.progress.fallen}
            if not math.isnan(moment.learning_rate):
                evidence["learning_rate"] = moment.learning_rate
            self.open(moment.step, "note", [], evidence, since=self.since)

    def explain(self, episode: Episode, names: Sequence[str]) -> str:
        """Give the ratio against the practical band."""
        del names
        ratio = episode.evidence["update_to_weight"]
        return f"One update changes the weights by {ratio:.1g} of their size (practical: 1e-5 to 1e-2); nothing moves."
