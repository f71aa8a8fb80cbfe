"""NaN and infinite gradients, weights and losses: exact, not statistical."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradmedic_diagnosis.detectors.base import MAX_LAYERS_NAMED, Detector, Episode, Moment, rank

PERSISTENT_LOSSES = 2
"""A loss alone may be NaN once (an empty batch) without anything reaching the weights; twice running it is the run."""

RECOVERED_STEPS = 5
"""Finite steps running after which a run was not dead after all, unless its weights were seen to be non-finite."""

CLIPPED_AWAY = 3
"""Non-finite gradients that left the weights finite (cleaned by the script) speak for a verdict from this many in the
last ten such steps on."""

GREW_BEFORE = 0.3
"""Decades above its baseline (a doubling) by which a layer that grew before it broke is named as the first bad one."""


class NonFinite(Detector):
    """A gradient, weight or loss that is NaN or infinite, on a step that no loss scaler skipped.

    Once it was seen in the weights the run is dead: the finding never resolves. A run whose loss stays non-finite is
    taken for dead until it is finite again.
    """

    id = "nonfinite"
    verdict = "exploding"
    remembered = ("is_dead", "is_certain", "finite_running", "losses_running", "recent")

    def __init__(self) -> None:
        super().__init__()
        self.is_dead = False
        self.is_certain = False
        """Non-finite weights or updates were seen."""
        self.finite_running = 0
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
            self.is_certain = self.is_certain or (weights_bad and moment.measurements.sends_weights)
        is_bad = gradients_bad or weights_bad or loss_is_bad
        if weights_bad or self.losses_running >= PERSISTENT_LOSSES or (loss_is_bad and gradients_bad):
            self.is_dead = True
        if is_bad:
            self.finite_running = 0
            if self.is_open and self.episode is not None:
                self.episode.last_step = moment.step  # what broke first is told; what follows from it is not
            else:
                self.open(moment.step, "critical", self._layers(moment), self._evidence(moment))
            cleaned_too_often = self.recent * 10 >= CLIPPED_AWAY - 0.5
            self.signal = 1.0 if self.is_dead else 0.6 if cleaned_too_often else 0.0
        elif moment.has_row or moment.loss is not None:
            self.finite_running += 1
            if self.is_dead and not self.is_certain and self.finite_running >= RECOVERED_STEPS:
                self.is_dead = False
            if not self.is_dead:
                self.close(moment.step)
            elif self.episode is not None:
                self.episode.last_step = moment.step

    @staticmethod
    def _layers(moment: Moment) -> list[int]:
        if moment.row is None:
            return []
        bad = moment.measurements.nonfinite[moment.row] > 0
        grown = np.where(bad, moment.depth.rise[moment.row], np.nan)
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
        if self.is_certain:
            end = "They reached the weights: nothing after this step is learned."
        elif self.is_dead:
            end = "The run has not been finite since."
        else:
            end = "Nothing shows that they reached the weights."
        return f"{what}{where}, from step {episode.first_step} on. {end}"
