"""Gradients that fade on their way to the input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradmedic_diagnosis.detectors.base import Detector, Episode, Moment, rank
from gradmedic_diagnosis.progress import History

GAP_DECADES = 1.5
"""Decades between the strongest weight matrix and the typical one on the input side. Networks that train have up to
about one (residual, normalized, well initialized); a gap alone is no verdict, since some train with two."""
LARGE_GAP_DECADES = 3.0
"""Three decades end to end (|slope| x depth beyond ln 1000) leave the early layers out of training."""
PATIENCE = 120
LARGE_GAP_PATIENCE = 60
"""Steps of the run before a stuck loss and a (large) gap together speak: many healthy runs begin with a plateau."""
CLOSING = 0.3
"""A gap of less than three decades that has narrowed by this much over the later half of the run is about to let the
loss fall."""
LEARNED = 0.5
"""A run that lost half of its starting loss learns through its layers, whatever they look like ..."""
LEARNED_DESPITE_LARGE_GAP = 0.9
"""... unless the gap is large: an output bias alone takes a loss from its start to that of a constant predictor, soon
and for good. A loss that fell at first only is held against it whatever it has lost."""
CLOSED = 0.5
"""Decades to which the gap must close before a verdict is taken back while the loss is stuck."""


class DepthGap(Detector):
    """The input side's gradients are decades below the strongest, and the loss is stuck."""

    id = "depth_gap"
    verdict = "vanishing"
    remembered = ("since", "history")

    def __init__(self) -> None:
        super().__init__()
        self.since: int | None = None
        self.history = History()

    def observe(self, moment: Moment) -> None:
        """Read the gap, then ask whether the loss is stuck."""
        if moment.row is None or math.isnan(moment.gap):
            return
        self.history.add(moment.gap)
        if moment.gap < (CLOSED if self.signal else GAP_DECADES):
            self.since = None
            self.close(moment.step)
            return
        if self.since is None:
            self.since = moment.step
        is_large = moment.gap >= LARGE_GAP_DECADES
        self.speak_while_stuck(moment, 0.9 if is_large else 0.8, holds=self._holds(moment, is_large=is_large))
        if self.signal or is_large:
            level = moment.depth.smooth[moment.row].copy()
            level[~moment.architecture.is_path] = np.nan
            layers = self.episode.layers if self.is_open and self.episode else rank(level, largest_first=False)
            evidence = {
                "gap_decades": moment.gap,
                "weakest_log10_rms": float(np.nanmin(level)),
                "strongest_log10_rms": float(np.nanmax(level)),
                "loss_fallen": moment.progress.fallen,
            }
            self.open(moment.step, "critical" if self.signal else "note", layers, evidence, since=self.since)

    def _holds(self, moment: Moment, *, is_large: bool) -> bool:
        """Whether the run is old enough, given the gap, and has not learned in spite of it."""
        progress = moment.progress
        if moment.is_multi_stream:
            return False
        if is_large:
            # A gap down to exactly zero may be a backbone that the script froze: then only an unmoved loss counts.
            learned = LEARNED if moment.dead_share > 0 else LEARNED_DESPITE_LARGE_GAP
            patience = LARGE_GAP_PATIENCE if progress.fallen < LEARNED else PATIENCE
            fell_by_bias_alone = moment.dead_share == 0 and progress.fell_at_first_only()
            return progress.count >= patience and (progress.fallen < learned or fell_by_bias_alone)
        if progress.count < PATIENCE or progress.fallen >= LEARNED:
            return False
        return moment.gap >= self.history.mean(0.5, 0.75)[0] - CLOSING

    def explain(self, episode: Episode, names: Sequence[str]) -> str:
        """Give the gap and what the loss did meanwhile."""
        evidence = episode.evidence
        where = f", weakest in {names[0]}" if names else ""
        stuck = " while the loss is stuck" if episode.severity == "critical" else ""
        gap = evidence["gap_decades"]
        return (
            f"Gradients on the input side are 10^{gap:.1f} times smaller than at the strongest layer"
            f"{where}{stuck} (it fell by {max(0.0, evidence['loss_fallen']):.0%} since the start)."
        )
