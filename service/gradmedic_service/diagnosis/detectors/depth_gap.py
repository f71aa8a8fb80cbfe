"""Gradients that fade on their way to the input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradmedic_service.diagnosis.detectors.base import Detector, Episode, Moment, rank
from gradmedic_service.diagnosis.progress import History

GAP_DECADES = 1.5
"""Decades between the strongest weight matrix and the typical one on the input side. Networks that train have up to
about one (residual, normalized, well initialized); a gap alone is no verdict, since some train with two."""
LARGE_GAP_DECADES = 3.0
"""Three decades end to end (|slope| x depth beyond ln 1000) leave the early layers out of training."""
PATIENCE = 120
LARGE_GAP_PATIENCE = 60
"""Steps of the run before a stuck loss and a (large) gap together speak: many healthy runs begin with a plateau."""
CLOSING = 0.3
"""A gap that has narrowed by this many decades over the later half of the run is about to let the loss fall."""
LEARNED = 0.5
"""A run that lost half of its starting loss learns through its layers, whatever they look like."""


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
        if moment.row is None or np.isnan(moment.gap) or moment.depth is None:
            return
        self.history.add(moment.gap)
        if moment.gap < GAP_DECADES:
            self.since = None
            self.close(moment.step)
            return
        if self.since is None:
            self.since = moment.step
        is_large = moment.gap >= LARGE_GAP_DECADES
        is_closing = moment.gap < self.history.mean(0.5, 0.75)[0] - CLOSING
        patient = moment.progress.count >= (LARGE_GAP_PATIENCE if is_large else PATIENCE)
        speaks = patient and moment.progress.fallen < LEARNED and not is_closing and moment.is_stuck
        if speaks and not moment.is_multi_stream:
            self.signal = 0.9 if is_large else 0.8
        elif self.signal and (is_closing or not moment.is_stuck):
            self.signal = 0.0
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
