"""Units in the flat part of their activation, where the client watches activations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradmedic_diagnosis.detectors.base import Detector, Episode, Moment, rank
from gradmedic_diagnosis.measurements import Architecture, Measurements
from gradmedic_diagnosis.report import Severity

SATURATED_SHARE = 0.5
"""Share of a layer's activations beyond the bend (a slope of about a hundredth) from which the layer is saturated;
DeepDiagnosis and SageMaker Debugger use the same half."""
PERSISTENCE = 20
"""Sampled steps running."""
MOST = 0.5
"""Share of the watched layers that must be saturated before a stuck loss speaks."""


class Saturation(Detector):
    """Half of a layer's activations are saturated, step after step.

    A finding for any layer; with most watched layers and a stuck loss it speaks for vanishing.
    """

    id = "saturation"
    verdict = "vanishing"
    remembered = ("running", "since")

    def __init__(self) -> None:
        super().__init__()
        self.running = 0
        self.since = 0

    def applies(self, architecture: Architecture, measurements: Measurements) -> bool:  # noqa: ARG002 (the base's)
        """Only where activations are watched."""
        return measurements.saturation is not None

    def observe(self, moment: Moment) -> None:
        """Look at the watched layers; a layer whose share is 0 may have no saturating activation at all."""
        if moment.row is None or moment.measurements.saturation is None:
            return
        share = moment.measurements.saturation[moment.row]
        saturated = share >= SATURATED_SHARE
        if not saturated.any():
            self.running = 0
            self.close(moment.step)
            return
        if self.running == 0:
            self.since = moment.step
        self.running += 1
        if self.running < PERSISTENCE:
            return
        watched = np.count_nonzero(share > 0)
        most = np.count_nonzero(saturated) >= MOST * watched
        self.speak_while_stuck(moment, 0.8, holds=bool(most) and not moment.is_multi_stream)
        evidence = {"saturated_layers": float(np.count_nonzero(saturated)), "largest_share": float(np.nanmax(share))}
        severity: Severity = "critical" if self.signal else "warning"
        self.open(moment.step, severity, rank(np.where(saturated, share, np.nan)), evidence, since=self.since)

    def explain(self, episode: Episode, names: Sequence[str]) -> str:
        """Name the layers and the largest share."""
        evidence = episode.evidence
        return (
            f"{int(evidence['saturated_layers'])} layers have at least half of their activations saturated, "
            f"up to {evidence['largest_share']:.0%} in {names[0]}: their slope there is almost zero."
        )
