"""NaN and infinite gradients, weights and losses: exact, not statistical."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradmedic_service.diagnosis.detectors.base import MAX_LAYERS_NAMED, Detector, Episode, Moment, rank

PERSISTENT_LOSSES = 2
"""A loss alone may be NaN once (an empty batch) without anything reaching the weights; twice running it is the run."""

CLIPPED_AWAY = 3
"""Non-finite gradients that left the weights finite (cleaned by the script) speak for a verdict from this many in the
last ten such steps on."""

GREW_BEFORE = 0.3
"""Decades above its baseline (a doubling) by which a layer that grew before it broke is named as the first bad one."""


class NonFinite(Detector):
    """A gradient, weight or loss that is NaN or infinite, on a step that no loss scaler skipped.

    Once it has reached the weights, or the loss stays non-finite, the run is dead: the finding never resolves.
    """

    id = "nonfinite"
    verdict = "exploding"
    remembered = ("is_dead", "losses_running", "recent")

    def __init__(self) -> None:
        super().__init__()
        self.is_dead = False
        self.losses_running = 0
        self.recent = 0.0
        """Non-finite gradients in about the last ten sampled steps."""

    def observe(self, moment: Moment) -> None:
        """Look at one step; a skipped step and an absent layer say nothing."""
        if moment.skipped:
            return
        loss_is_bad = moment.loss is not None and not math.isfinite(moment.loss)
        if moment.loss is not None:
            self.losses_running = self.losses_running + 1 if loss_is_bad else 0
        weights_bad, gradients_bad = False, False
        if moment.row is not None:
            gradients_bad = moment.nonfinite > 0
            weights_bad = moment.reaches_weights
            self.recent += ((1.0 if gradients_bad else 0.0) - self.recent) / 10
        dies = weights_bad or self.losses_running >= PERSISTENT_LOSSES or (loss_is_bad and gradients_bad)
        if dies and not self.is_dead:
            self.is_dead = True
        if self.is_dead:
            self.signal = 1.0
        if gradients_bad or weights_bad or loss_is_bad:
            if self.is_open and self.episode is not None:
                self.episode.last_step = moment.step  # what broke first is told; what follows from it is not
            else:
                self.open(moment.step, "critical", self._layers(moment), self._evidence(moment))
            if not self.is_dead:
                self.signal = 0.6 if self.recent * 10 >= CLIPPED_AWAY - 0.5 else 0.0
        elif self.is_dead and self.episode is not None:
            self.episode.last_step = moment.step
        elif moment.has_row or moment.loss is not None:
            self.close(moment.step)

    @staticmethod
    def _layers(moment: Moment) -> list[int]:
        if moment.row is None:
            return []
        bad = moment.measurements.nonfinite[moment.row] > 0
        grown = np.where(bad, moment.averages.smooth - moment.averages.baseline, np.nan)
        if bad.any() and np.nanmax(grown, initial=0.0) >= GREW_BEFORE:
            return rank(grown)
        # Backpropagation carries NaN from the output to the input: the bad layer nearest the output had it first.
        return [int(i) for i in moment.architecture.order[::-1] if bad[i]][:MAX_LAYERS_NAMED]

    @staticmethod
    def _evidence(moment: Moment) -> dict[str, float]:
        evidence = {"nonfinite_count": float(moment.nonfinite)}
        if moment.row is not None:
            evidence["layers_affected"] = float((moment.measurements.nonfinite[moment.row] > 0).sum())
        if moment.loss is not None:
            evidence["loss"] = float(moment.loss)
        return evidence

    def explain(self, episode: Episode, names: Sequence[str]) -> str:
        """Name the first layers and whether the run can still recover."""
        count = int(episode.evidence.get("nonfinite_count", 0))
        what = f"{count} gradient elements are NaN or infinite" if count else "The loss is NaN or infinite"
        where = f", first in {names[0]}" if names else ""
        end = (
            "They reached the weights: nothing after this step is learned."
            if self.is_dead
            else "Nothing shows that they reached the weights."
        )
        return f"{what}{where}, from step {episode.first_step} on. {end}"
