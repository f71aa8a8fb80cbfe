"""A recurrence that forgets: nothing of the loss's gradient arrives at the first time steps of a sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gradmedic_diagnosis.detectors.base import STUCK_PATIENCE, Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import MAX_LAYERS_NAMED, StepView
from gradmedic_diagnosis.loss_progress import CONSTANT_SHARE, UNMOVED_SHARE
from gradmedic_diagnosis.probes import Probes

FORGOTTEN = 1e-4
"""Share of the last time step's gradient below which nothing arrives at the first one. The noise of the last steps is
as large as their gradient, and the mean over n examples lowers it by sqrt(n): it takes 1e8 examples to see the rest."""
REMEMBERED = 1e-3
"""Share from which the finding is resolved, so that a share near the bound does not open and close it."""
SMALLEST_SHARE = 1e-30
"""Lower bound of a share, as evidence."""
PERSISTENCE = 3
"""Consecutive probes that must agree: the first weights, and single batches, do not decide it."""
CAUSE_SCORE = 0.65
"""Most gated cells forget at first, so a stuck loss may have another reason as well: causes with evidence of their own
come first."""


class ForgettingRecurrence(Detector):
    """The gradient dies on its way back through time. It is a warning only while the objective shows no learning.

    Of recurrent modules that read sequences of one length, one after another, it is enough that one remembers.
    """

    id = "forgetting_recurrence"
    verdict = "healthy"
    stored_keys: ClassVar[Mapping[str, str]] = {"probes": "probes", "since_step": "since"}

    def __init__(self) -> None:
        super().__init__()
        self.probes = 0
        """Consecutive probes that found it."""
        self.since_step = 0

    @property
    def cause_score(self) -> float:
        """Score of an open warning."""
        return CAUSE_SCORE if self.is_open and self.finding_state and self.finding_state.severity == "warning" else 0.0

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the next probe of a recurrent module."""
        return columns.first_probe("time_gradient_factor") if self.is_at_rest else 0

    def observe(self, view: StepView) -> None:
        """Read the factor per time step of each recurrent module, and whether the objective learns."""
        if "time_gradient_factor" in view.probes:
            self._read(view)
        elif self.is_open and self.finding_state is not None:
            is_warning = self.finding_state.severity == "warning"
            if self._is_stuck(view) is not is_warning:
                self.update_finding(
                    view.step, "note" if is_warning else "warning", self.finding_state.layers, self._evidence(view)
                )

    def _read(self, view: StepView) -> None:
        found = find_forgetting(view.probes)
        if found is None:
            return
        module, factor, time_steps = found
        share = compute_share(factor, time_steps)
        if share >= (REMEMBERED if self.is_open else FORGOTTEN):
            self.probes = 0
            self.close_finding(view.step)
            return
        if self.probes == 0:
            self.since_step = view.step
        self.probes += 1
        if self.probes < PERSISTENCE and not self.is_open:
            return
        evidence = {
            "factor_per_time_step": factor,
            "time_steps": time_steps,
            "share_at_first_time_step": max(share, SMALLEST_SHARE),
            "loss_fallen": view.objective.fallen_share,
        }
        if view.training.batch_size == time_steps:
            evidence["batch_size"] = time_steps
        names = view.architecture.names
        layers = [i for i, name in enumerate(names) if name.startswith(f"{module}.")][:MAX_LAYERS_NAMED]
        severity = "warning" if self._is_stuck(view) else "note"
        self.update_finding(view.step, severity, layers, evidence, since=self.since_step)

    def _evidence(self, view: StepView) -> dict[str, float]:
        known = {} if self.finding_state is None else self.finding_state.evidence
        return {**known, "loss_fallen": view.objective.fallen_share}

    def _is_stuck(self, view: StepView) -> bool:
        """Whether the objective never moved, or is no better than a constant output; true until it moves again."""
        objective = view.objective
        if self.is_open and not math.isnan(self.stuck_level):
            if objective.has_fallen_below(self.stuck_level):
                self.stuck_level = math.nan
        elif view.is_stuck and objective.count >= STUCK_PATIENCE and not view.has_several_streams:
            is_constant = objective.current >= (1 - CONSTANT_SHARE) * view.constant_level
            if objective.fallen_share < UNMOVED_SHARE or is_constant:
                self.stuck_level = objective.slow_average
        return not math.isnan(self.stuck_level)

    def close_finding(self, step: int) -> None:
        """Resolve the finding, and forget the level at which the objective was stuck."""
        super().close_finding(step)
        self.stuck_level = math.nan

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain how little arrives, and what would be healthy."""
        evidence = finding.evidence
        factor, steps, share = (
            evidence[name] for name in ("factor_per_time_step", "time_steps", "share_at_first_time_step")
        )
        module = layers[0].rpartition(".")[0] if layers else "A recurrent module"
        text = (
            f"{module} passes a share of {factor:.2g} of the gradient from one time step to the one before. Over "
            f"{steps:.0f} time steps {share:.1g} of it arrives; from about {REMEMBERED:g} on, the first can be learned."
        )
        if finding.severity == "note":
            return f"{text} The loss learns, so the last time steps may be enough."
        text += " And the objective is no better than what a model without memory reaches."
        if "batch_size" in evidence:
            text += (
                f" The batch has {evidence['batch_size']:.0f} examples, too: does the module take the batch for the "
                "time? For inputs [batch, time, feature] it needs batch_first=True."
            )
        return text


def find_forgetting(probes: Probes) -> tuple[str, float, float] | None:
    """Return the module that least of the gradient passes, its factor per time step and its number of time steps.

    It is None if no factor is known. Of modules with sequences of one length, the one where most arrives counts.
    """
    lengths = probes.get("time_steps", {})
    best: dict[float, tuple[float, str]] = {}
    for module, factor in probes.get("time_gradient_factor", {}).items():
        length = lengths.get(module, math.nan)
        if math.isfinite(factor) and length > 1 and best.get(length, (-1.0, ""))[0] < factor:
            best[length] = (factor, module)
    found = [(module, factor, length) for length, (factor, module) in best.items()]
    return min(found, key=lambda entry: compute_share(entry[1], entry[2]), default=None)


def compute_share(factor: float, time_steps: float) -> float:
    """Return the share of the last time step's gradient that arrives at the first one; infinite if it overflows."""
    try:
        return float(factor ** (time_steps - 1))
    except OverflowError:
        return math.inf
