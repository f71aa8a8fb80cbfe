"""Vanishing through time: a recurrent matrix that shrinks every signal, and a loss that never moved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradmedic_diagnosis.detectors.base import Detector, Episode, Moment
from gradmedic_diagnosis.measurements import Architecture, Measurements

CONTRACTION = 0.7
"""Per-step factor (typical singular value times the activation's largest slope) below which a signal loses a decade in
seven steps. A factor below 1 is sufficient to vanish (Pascanu et al. 2013, section 2.1)."""
PATIENCE = 120
"""Steps of the run before a stuck loss speaks."""
NEVER_MOVED = 0.1
"""The loss has fallen by less than this share of its start; or, under a strong contraction, ..."""
STRONG_CONTRACTION = 0.5
"""... it fell at first only, to what the last few inputs tell."""


class ContractingRecurrence(Detector):
    """Weight gradients look moderate, since the last time steps feed them; only the recurrent matrix gives it away."""

    id = "contracting_recurrence"
    verdict = "vanishing"
    remembered = ("since", "norms")

    def __init__(self) -> None:
        super().__init__()
        self.since: int | None = None
        self.norms: list[float] = []
        """Last known weight norm of each recurrent matrix; NaN where there is none."""

    def applies(self, architecture: Architecture, measurements: Measurements) -> bool:  # noqa: ARG002 (the base's)
        """Only where there is a plain recurrent matrix."""
        return bool(architecture.recurrent)

    def observe(self, moment: Moment) -> None:
        """Estimate the per-step factor from the matrix's norm: its Frobenius norm over the root of its rank."""
        if moment.row is None or moment.is_multi_stream:
            return
        layers = list(moment.architecture.recurrent)
        norms = moment.measurements.weight_norm[moment.row, layers]
        known = np.isfinite(norms) & moment.measurements.present[moment.row, layers]
        norms = np.where(known, norms, [*self.norms, *[np.nan] * (len(layers) - len(self.norms))])
        self.norms = norms.tolist()
        side = np.sqrt(moment.architecture.sqrt_numel[layers])
        factors = norms / side * moment.architecture.recurrent_slope[layers]
        if not np.isfinite(factors).all() or float(factors.max()) >= CONTRACTION:
            self.since = None
            self.close(moment.step)
            return
        if self.since is None:
            self.since = moment.step
        progress = moment.progress
        never_moved = progress.count >= PATIENCE and progress.fallen < NEVER_MOVED
        holds = never_moved or (float(factors.max()) < STRONG_CONTRACTION and progress.fell_at_first_only())
        if not self.speak_while_stuck(moment, 0.75, holds=holds):
            self.close(moment.step)
        else:
            evidence = {"factor_per_time_step": float(factors.max()), "loss_fallen": progress.fallen}
            self.open(moment.step, "critical", layers, evidence, since=self.since)

    def explain(self, episode: Episode, names: Sequence[str]) -> str:
        """Give the factor per time step."""
        factor = episode.evidence["factor_per_time_step"]
        return (
            f"{names[0]} shrinks gradients to about {factor:.2g} of their size per time step, so that "
            f"nothing older than a few steps is learned, and the loss is stuck."
        )
