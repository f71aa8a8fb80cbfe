"""Clipping so tight that the weights no longer move."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradmedic_diagnosis.detectors.base import Detector, Episode, Moment

TIGHT = 0.01
"""Share of the gradient that reaches the optimizer below which clipping decides everything: a useful threshold is 0.5
to 10 times the average norm (Pascanu et al. 2013, section 3.2), fifty times what this is."""
STARVED_RATIO = 1e-5
"""Network-wide update over weight below the practical band of 1e-5 to 1e-2."""
HORIZON = 20
"""Sampled steps that the share is averaged over."""
PATIENCE = 100
"""Steps of the run before a stuck loss speaks."""
NEVER_MOVED = 0.1
"""The loss has fallen by less than this share of its start."""


class ExcessiveClipping(Detector):
    """Almost nothing of the gradient is left after clipping, the updates starve, and the loss never moved.

    The share that is left is the script's clip coefficient where the client saw it; otherwise the update over learning
    rate times gradient, which no optimizer makes small: SGD has 1, momentum more, and Adam's steps do not shrink with
    the gradient.
    """

    id = "excessive_clipping"
    verdict = "vanishing"
    remembered = ("log_share", "count", "since")

    def __init__(self) -> None:
        super().__init__()
        self.log_share = 0.0
        self.count = 0
        self.since = 0

    def observe(self, moment: Moment) -> None:
        """Average the share of the gradient that is left and compare it with what training needs."""
        if moment.row is None or moment.is_multi_stream:
            return
        if not moment.ratio < STARVED_RATIO:
            self.count = 0
            self.since = moment.step + 1
            self.close(moment.step)
            return
        share = self._share(moment)
        if not 0 < share < math.inf:
            return
        self.count += 1
        self.log_share += (math.log10(share) - self.log_share) / min(self.count, HORIZON)
        if self.log_share >= math.log10(TIGHT):
            self.since = moment.step + 1
            self.close(moment.step)
            return
        progress = moment.progress
        if progress.count < PATIENCE:
            return
        speaks = self.speak_while_stuck(moment, 0.85, holds=progress.fallen < NEVER_MOVED)
        evidence = {
            "share_of_gradient_left": 10**self.log_share,
            "update_to_weight": moment.ratio,
            "gradient_norm": moment.gradient,
        }
        self.open(moment.step, "critical" if speaks else "warning", [], evidence, since=self.since)

    @staticmethod
    def _share(moment: Moment) -> float:
        if not math.isnan(moment.clip_coefficient):
            return moment.clip_coefficient
        expected = abs(moment.learning_rate) * moment.gradient
        return moment.ratio * moment.weight / expected if expected > 0 else math.nan

    def explain(self, episode: Episode, names: Sequence[str]) -> str:
        """Give what is left of the gradient and what the updates are; clipping has no layer of its own."""
        del names
        evidence = episode.evidence
        return (
            f"Clipping leaves {evidence['share_of_gradient_left']:.1g} of a gradient whose norm is "
            f"{evidence['gradient_norm']:.2g}, so that an update changes the weights by "
            f"{evidence['update_to_weight']:.1g} of their size (healthy: about 0.001)."
        )
