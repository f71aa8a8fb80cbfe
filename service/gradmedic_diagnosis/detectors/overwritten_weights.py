"""An explosion that the loss does not show: the weights are overwritten, saturated units keep it in bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradmedic_diagnosis.detectors.base import Detector, Episode, Moment, rank
from gradmedic_diagnosis.measurements import Architecture, Measurements
from gradmedic_diagnosis.progress import BLOW_UP

REACH_RATIO = 0.5
"""Network-wide update over weight that rewrites the weights rather than adjusting them, as in `loss_divergence`;
healthy training has about 1e-3. Weights that grow by small steps are another matter, however far they get."""
OVERWRITTEN = 10.0
"""Times their initial norm at which the weights are overwritten: their initial values are a hundredth of the sum of
squares."""
PATIENCE = 60
"""Losses since then without a fall that speak: as many as after a blow-up of the loss."""


class OverwrittenWeights(Detector):
    """Updates as large as the weights have blown these up tenfold, and the loss is no lower than at its start.

    Where units saturate, a loss cannot blow up with the weights; it goes on at the level, and with the noise, of a
    network that knows nothing. That it is flat cannot be shown for such a loss; here a run must show that it learns.
    """

    id = "overwritten_weights"
    verdict = "exploding"
    remembered = ("largest_ratio", "since", "count", "has_blown_up")

    def __init__(self) -> None:
        super().__init__()
        self.largest_ratio = 0.0
        self.since: int | None = None
        self.count = 0
        """Losses that there were when the weights were found overwritten."""
        self.has_blown_up = False
        """Whether the loss showed it: then `loss_divergence` judges, and whether the run recovered."""

    def applies(self, architecture: Architecture, measurements: Measurements) -> bool:  # noqa: ARG002 (the base's)
        """Only from the first block on that has such an update."""
        return self.largest_ratio >= REACH_RATIO or bool((measurements.update_ratio >= REACH_RATIO).any())

    def observe(self, moment: Moment) -> None:
        """Compare the weights with the first ones, and ask whether the loss ever fell."""
        if moment.row is not None and REACH_RATIO <= moment.ratio < math.inf:
            self.largest_ratio = max(self.largest_ratio, moment.ratio)
        if self.largest_ratio < REACH_RATIO:
            return
        self.has_blown_up = self.has_blown_up or moment.excess >= BLOW_UP
        if moment.row is None or moment.skipped or moment.is_multi_stream or not math.isfinite(moment.weight):
            return
        progress = moment.progress
        weight_growth = self._weight_growth(moment)
        if self.has_blown_up or not OVERWRITTEN <= weight_growth < math.inf:
            self.since = None
            self.close(moment.step)
            return
        if self.since is None:
            self.since, self.count = moment.step, progress.count
        if self.signal == 0:
            is_old = progress.count - self.count >= PATIENCE
            self.signal, self.stuck_level = 0.8 if is_old and progress.shows_no_learning() else 0.0, progress.slow
        elif progress.has_left(self.stuck_level) and not progress.shows_no_learning():
            self.signal = 0.0
        if self.signal == 0:
            self.close(moment.step)
            return
        norms = np.where(moment.architecture.is_path, moment.measurements.weight_norm[moment.row], np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            growth = norms / moment.averages.initial_weight
        evidence = {
            "weight_growth": weight_growth,
            "update_to_weight": self.largest_ratio,
            "loss_fallen": progress.fallen,
        }
        self.open(moment.step, "critical", rank(growth), evidence, since=self.since)

    @staticmethod
    def _weight_growth(moment: Moment) -> float:
        """Return how many times their first norm the weights are now; NaN where that was zero or is not known."""
        first = moment.averages.initial_weight[moment.measurements.present[moment.row]]
        initial = float(np.sqrt(np.nansum(np.square(first))))
        return moment.weight / initial if initial > 0 else math.nan

    def explain(self, episode: Episode, names: Sequence[str]) -> str:
        """Give the size of weights and updates."""
        evidence = episode.evidence
        where = f", most in {names[0]}" if names else ""
        return (
            f"Updates of up to {evidence['update_to_weight']:.2g} times the weights' size have made these "
            f"{evidence['weight_growth']:.2g} times as large as they were{where}, and the loss shows no "
            f"learning: nothing of the initial network is left, and saturated units keep the loss from blowing up."
        )
