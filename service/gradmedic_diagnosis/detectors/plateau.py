"""Slow convergence: the loss has stopped falling, for no reason that the gradients give."""

from __future__ import annotations

from collections.abc import Sequence

from gradmedic_diagnosis.detectors.base import Detector, Episode, Moment

PATIENCE = 120
"""Steps of the run before a flat loss is called a plateau."""
CONVERGED = 0.9
"""A loss that has lost this share of its start has converged rather than stalled."""


class Plateau(Detector):
    """The loss is stuck above a tenth of its start. A note, never an alarm: it may be all there is to learn."""

    id = "plateau"
    verdict = "healthy"

    def observe(self, moment: Moment) -> None:
        """Ask whether the loss is stuck."""
        progress = moment.progress
        if moment.loss is None or moment.is_multi_stream or progress.count < PATIENCE:
            return
        if progress.fallen >= CONVERGED or not moment.is_stuck:
            self.close(moment.step)
        else:
            evidence = {"loss": progress.fast, "loss_fallen": progress.fallen}
            self.open(moment.step, "note", [], evidence, since=moment.step - progress.count // 2)

    def explain(self, episode: Episode, names: Sequence[str]) -> str:
        """Give the level and how far it is below the start."""
        del names
        level, fallen = episode.evidence["loss"], max(0.0, episode.evidence["loss_fallen"])
        return f"The loss has been flat at {level:.3g} ({fallen:.0%} below its start) for half of the run."
