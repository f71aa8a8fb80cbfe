"""Adam's epsilon against its second moment: one that swallows updates, or one that is zero in half precision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import ClassVar

import numpy as np

from gradmedic.protocol.runs import Training
from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import MAX_LAYERS_NAMED, StepView
from gradmedic_diagnosis.detectors.zero_gradient import CONVERGED_SHARE
from gradmedic_diagnosis.precision import is_half_precision

SWALLOWED_SHARE = 0.5
"""Share of a layer's elements below epsilon from which the layer is swallowed, and share of the measured layers that
must be. Single layers, such as embeddings of large models, are often below (Wortsman et al. 2023, arXiv 2309.14322,
section 3.4)."""
SWALLOWED_UPDATE = 0.1
"""Root mean square of the update over the learning rate. Adam's is 0.1 to 1 for any gradient, unless epsilon is far
above the root of the second moment (the same section)."""
PROBES = 3
"""Consecutive probes that must agree."""
VANISHING_GAP = 3.0
"""Decades between the strongest weight matrix and the typical one on the input side from which gradients vanish on
their way through the network. That they fall below epsilon too is a consequence then."""
SMALLEST_HALF = 6e-8
"""Smallest positive number of float16. A smaller epsilon is 0 there, and 0/0 is NaN."""
DESTROYING_UPDATE = 1.0
"""Update over weights from which an update has destroyed the weights: it is as large as they are."""
CAUSE_SCORE = 0.96
"""A number of the optimizer's state shows it. What follows from it, such as weights that do not move, stands behind."""


class OptimizerEpsilon(Detector):
    """Epsilon is so large that updates vanish beside the learning rate, or so small that float16 rounds it to 0.

    The first form holds only while the loss has not converged: the gradients of a task that is solved are tiny. Of the
    second, the first step is the one on which an update destroyed the weights although all gradients were finite.
    """

    id = "optimizer_epsilon"
    verdict = "healthy"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "probes": "probes", "since_step": "since", "had_zero_root": "zero_root", "is_destroyed": "is_destroyed",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.probes = 0
        """Consecutive probes on which most layers were swallowed."""
        self.since_step = 0
        self.had_zero_root = False
        """Whether a layer had elements with a gradient and a second moment below epsilon so far."""
        self.is_destroyed = False
        """Whether an update has destroyed the weights."""

    @property
    def is_fault(self) -> bool:
        """Whether an open finding asks for attention while the loss falls: if the weights are destroyed."""
        return self.finding_state is not None and "swallowed_share" not in self.finding_state.evidence

    @property
    def cause_score(self) -> float:
        """Score of an open finding."""
        return CAUSE_SCORE if self.is_open else 0.0

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the next probe of epsilon, and before the first update that may destroy the weights."""
        if not self.is_at_rest:
            return 0
        stop = columns.first_probe("epsilon_share")
        if self.is_destroyed:
            return stop
        ratios = columns.measurements.update_ratio
        is_destroying = (ratios >= DESTROYING_UPDATE) & (ratios < math.inf)
        return min(stop, columns.first_row(columns.measurements.has_nonfinite_weights | is_destroying))

    def observe(self, view: StepView) -> None:
        """Look at the probes of a step, and at the first non-finite weights."""
        if view.row is None or view.is_skipped:
            return
        shares = view.probes.get("epsilon_share")
        if shares:
            self.had_zero_root = self.had_zero_root or any(share > 0 for share in shares.values())
        if self.is_destroyed:
            return
        # Against weights that start at zero, any update is infinitely large.
        if view.has_nonfinite_weights or DESTROYING_UPDATE <= view.update_ratio < math.inf:
            if view.nonfinite_count == 0:
                self._find_zero_epsilon(view)
            self.is_destroyed = view.has_nonfinite_weights or (self.is_open and self.is_fault)
        if shares and not self.is_destroyed:
            self._look_for_swallowed_updates(view, shares)

    def _find_zero_epsilon(self, view: StepView) -> None:
        epsilon = _read_epsilon(view.training, smallest=True)
        is_half = is_half_precision(view.training)
        if is_half and self.had_zero_root and epsilon < SMALLEST_HALF:
            evidence = {
                "epsilon": epsilon,
                "smallest_number": SMALLEST_HALF,
                "gradient_norm": view.gradient_norm,
                "update_to_weight": view.update_ratio,
            }
            self.update_finding(view.step, "warning", [], evidence)

    def _look_for_swallowed_updates(self, view: StepView, shares: Mapping[str, float]) -> None:
        finite = [share for share in shares.values() if math.isfinite(share)]
        update = view.update_ratio * view.weight_norm / self._norm_of_unit_update(view)
        is_swallowed = (
            bool(finite)
            and view.gradient_norm > 0
            and median(finite) > SWALLOWED_SHARE
            and not update >= SWALLOWED_UPDATE
            and not view.depth_gap >= VANISHING_GAP
            and not (view.measures_progress and view.objective.fallen_share >= CONVERGED_SHARE)
        )
        if not is_swallowed:
            self.probes = 0
            self.close_finding(view.step)
            return
        if self.probes == 0:
            self.since_step = view.step
        self.probes += 1
        if self.probes < PROBES:
            return
        evidence = {"swallowed_share": median(finite)}
        if math.isfinite(update):
            evidence["update_to_learning_rate"] = update
        if not math.isnan(epsilon := _read_epsilon(view.training)):
            evidence["epsilon"] = epsilon
        names = {name: i for i, name in enumerate(view.architecture.names)}
        ordered = sorted((name for name in shares if name in names), key=lambda name: -shares[name])
        layers = [names[name] for name in ordered[:MAX_LAYERS_NAMED]]
        self.update_finding(view.step, "warning", layers, evidence, since=self.since_step)

    @staticmethod
    def _norm_of_unit_update(view: StepView) -> float:
        """Return the norm of an update by the learning rate in each element; NaN where the rate is unknown or 0."""
        present = view.measurements.present[view.row]
        norm = abs(view.learning_rate) * float(np.linalg.norm(view.architecture.sqrt_numel * present))
        return norm if norm > 0 else math.nan

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain which of the two it is, with epsilon and what it should be."""
        del layers
        evidence = finding.evidence
        if "swallowed_share" not in evidence:
            return (
                f"An update destroyed the weights at step {finding.first_step} although all gradients were finite (a "
                f"norm of {evidence['gradient_norm']:.2g}). Small second moments are 0 in float16, whose smallest "
                f"number is {evidence['smallest_number']:.2g}, and so is Adam's epsilon of {evidence['epsilon']:.2g}: "
                "what is left is a division by 0. In float16 an epsilon of 1e-4 is usual; float32 weights need none."
            )
        epsilon = f" of {evidence['epsilon']:.2g}" if "epsilon" in evidence else ""
        text = (
            f"Adam's epsilon{epsilon} is above the root of the second moment of {evidence['swallowed_share']:.0%} of "
            f"the elements in the middle layer (healthy: near 0)"
        )
        if "update_to_learning_rate" in evidence:
            text += (
                f". An update is {evidence['update_to_learning_rate']:.1g} of the learning rate; Adam's is 0.1 to 1 "
                "with a small epsilon"
            )
        return f"{text}."


def _read_epsilon(training: Training, *, smallest: bool = False) -> float:
    """Return the largest or smallest epsilon of the optimizers; NaN where it is unknown."""
    known = [optimizer.epsilon for optimizer in training.optimizers if optimizer.epsilon is not None]
    return (min if smallest else max)(known, default=math.nan)
