"""Gradients that grow on their way to the input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradmedic_diagnosis.detectors.base import Detector, Episode, Moment, rank

GROWTH_DECADES = 3.0
"""Decades by which the strongest input-side matrix stands above the typical output-side one: ln 1000 end to end, as for
attenuation (Schoenholz et al. 2017: chi above 1)."""
PERSISTENCE = 20
"""Sampled steps running."""


class DepthGrowth(Detector):
    """Backpropagation amplifies: a warning of the explosion to come, no verdict, since clipping may hold it."""

    id = "depth_growth"
    verdict = "exploding"
    remembered = ("running", "since")

    def __init__(self) -> None:
        super().__init__()
        self.running = 0
        self.since = 0

    def observe(self, moment: Moment) -> None:
        """Compare the input side with the output side."""
        if moment.row is None or math.isnan(moment.input_excess):
            return
        if moment.input_excess < GROWTH_DECADES:
            self.running = 0
            self.close(moment.step)
            return
        if self.running == 0:
            self.since = moment.step
        self.running += 1
        if self.running >= PERSISTENCE:
            level = np.where(moment.architecture.is_path, moment.depth.smooth[moment.row], np.nan)
            self.open(moment.step, "warning", rank(level), {"growth_decades": moment.input_excess}, since=self.since)

    def explain(self, episode: Episode, names: Sequence[str]) -> str:
        """Give the factor and the strongest layer."""
        decades = episode.evidence["growth_decades"]
        return (
            f"Gradients on the input side are 10^{decades:.1f} times larger than on the output "
            f"side, most in {names[0]}: backpropagation amplifies them layer by layer."
        )
