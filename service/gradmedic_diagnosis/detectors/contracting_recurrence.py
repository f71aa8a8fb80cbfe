"""Vanishing through time: a recurrent matrix shrinks every signal, and the loss never moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from gradmedic_diagnosis.architecture import Architecture
from gradmedic_diagnosis.detectors.base import STUCK_PATIENCE, Detector, FindingState
from gradmedic_diagnosis.detectors.step_view import StepView
from gradmedic_diagnosis.loss_progress import UNMOVED_SHARE
from gradmedic_diagnosis.measurements import Measurements

CONTRACTION = 0.7
"""Factor per time step (typical singular value times the activation's largest slope) below which a signal loses a
decade in seven time steps. A factor below 1 is sufficient for vanishing (Pascanu et al. 2013, section 2.1)."""
STRONG_CONTRACTION = 0.5
"""Factor per time step below which a loss that fell only at first counts as evidence, too: it fell as far as the last
few inputs allow."""
STRENGTH = 0.75


class ContractingRecurrence(Detector):
    """A recurrent matrix whose factor per time step is small, while the loss is stuck.

    The gradients of the weights look moderate, since they come from the last time steps. Only the matrix itself shows
    that nothing arrives from earlier ones, or the gradient at each time step where the client measures it.
    """

    id = "contracting_recurrence"
    verdict = "vanishing"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "since_step": "since", "weight_norms": "norms", "measured_factors": "measured",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.since_step: int | None = None
        self.weight_norms: list[float] = []
        """Last known weight norm of each recurrent matrix; NaN where there is none."""
        self.measured_factors: dict[str, float] = {}
        """Last measured factor per time step of each recurrent module."""

    def is_applicable(self, architecture: Architecture, measurements: Measurements) -> bool:  # noqa: ARG002 (the base's)
        """Return whether there is a plain recurrent matrix."""
        return bool(architecture.recurrent)

    def observe(self, view: StepView) -> None:
        """Read the factor per time step, or estimate it: the matrix's Frobenius norm over the root of its rank."""
        if "time_gradient_factor" in view.probes:
            measured = view.probes["time_gradient_factor"].items()
            self.measured_factors.update((module, factor) for module, factor in measured if math.isfinite(factor))
        if view.row is None or view.has_several_streams:
            return
        layers = list(view.architecture.recurrent)
        norms = view.measurements.weight_norm[view.row, layers]
        is_known = np.isfinite(norms) & view.measurements.present[view.row, layers]
        norms = np.where(is_known, norms, [*self.weight_norms, *[np.nan] * (len(layers) - len(self.weight_norms))])
        self.weight_norms = norms.tolist()
        side = np.sqrt(view.architecture.sqrt_numel[layers])
        factors = norms / side * view.architecture.largest_slope[layers]
        if self.measured_factors:
            modules = [view.architecture.names[i].rpartition(".")[0] for i in layers]
            known = np.array([self.measured_factors.get(module, np.nan) for module in modules])
            factors = np.where(np.isfinite(known), known, factors)
        if not np.isfinite(factors).all() or float(factors.max()) >= CONTRACTION:
            self.since_step = None
            self.close_finding(view.step)
            return
        if self.since_step is None:
            self.since_step = view.step
        factor, progress = float(factors.max()), view.progress
        has_never_moved = progress.count >= STUCK_PATIENCE and progress.fallen_share < UNMOVED_SHARE
        has_evidence = has_never_moved or (factor < STRONG_CONTRACTION and progress.fell_only_at_first())
        if not self.update_strength_while_stuck(view, STRENGTH, has_evidence=has_evidence):
            self.close_finding(view.step)
        else:
            evidence = {"factor_per_time_step": factor, "loss_fallen": progress.fallen_share}
            self.update_finding(view.step, "critical", layers, evidence, since=self.since_step)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain the factor per time step."""
        factor = finding.evidence["factor_per_time_step"]
        return (
            f"{layers[0]} shrinks gradients to about {factor:.2g} of their size per time step. "
            f"Nothing older than a few time steps is learned, and the loss is stuck."
        )
