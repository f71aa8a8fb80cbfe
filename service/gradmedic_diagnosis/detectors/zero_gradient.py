"""Layers whose gradient is exactly zero: dead units, symmetric initialization, a collapsed network, a dead state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import MAX_LAYERS_NAMED, StepView
from gradmedic_diagnosis.layer_averages import DEAD_SHARE

DEAD_LAYERS_SHARE = 0.5
"""Share of the weight matrices with exactly zero gradients from which the network counts as dead."""
PERSISTENCE = 20
"""Consecutive sampled steps with a dead network before there is a finding: one batch can leave every unit of a small
layer inactive."""
REVIVAL_STEPS = 10
"""Consecutive sampled steps with gradients after which a dead network counts as alive again: one lucky batch is no
cure."""
PATIENCE = 60
"""Losses of the run before a partly dead network and a stuck loss together support a verdict. A network that is dead
throughout can never move again and supports it at once."""
CONVERGED_SHARE = 0.5
"""A loss that fell by this share of its start has converged. Zero gradients are then no failure: nothing is left to
learn, or the script froze layers by hand."""
STRENGTH = 0.9


class ZeroGradient(Detector):
    """At least half of the weight matrices have gradients that are exactly zero, and the loss has not converged.

    A second form: every recurrent matrix has zero gradients now, and once had others. A hidden state that is dead after
    its first time step carries nothing on, while input and output weights still learn from single inputs.
    """

    id = "zero_gradient"
    verdict = "vanishing"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "dead_steps": "running", "since_step": "since", "alive_steps": "alive", "had_gradient": "had_gradient",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.dead_steps = 0
        """Consecutive sampled steps with a dead network or hidden state."""
        self.since_step = 0
        self.alive_steps = 0
        """Consecutive sampled steps in which neither is dead, at most `REVIVAL_STEPS`."""
        self.had_gradient = False
        """Whether any gradient was not zero so far."""

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the first one with dead layers that may matter, or without a signal from the loss."""
        if not self.is_at_rest or self.dead_steps or "output_gradient_norm" in columns.block.series:
            return 0
        dead_share = columns.depth_profile.dead_share
        may_be_dead = dead_share > 0 if columns.architecture.recurrent else dead_share >= DEAD_LAYERS_SHARE
        stop = columns.first_row(may_be_dead)
        rows = columns.rows_before[stop]
        is_read = columns.has_row_statistics[:rows] & ~columns.is_row_skipped[:rows]
        norms = columns.measurements.total_gradient_norm[:rows][is_read]
        self.had_gradient = self.had_gradient or bool((norms > 0).any())
        self.alive_steps = min(self.alive_steps + int(np.count_nonzero(is_read)), REVIVAL_STEPS)
        return stop

    def observe(self, view: StepView) -> None:
        """Count sampled steps with a dead network, and check whether the loss is stuck."""
        if view.row is None or not view.has_statistics or view.is_skipped:
            return
        self.had_gradient = self.had_gradient or view.gradient_norm > 0
        if view.output_gradient_norm == 0:  # the loss sends no gradient: no unit of the network is to blame
            self.dead_steps = 0
            self.close_finding(view.step)
            return
        is_network_dead = view.dead_share >= DEAD_LAYERS_SHARE
        if view.dead_share == 0 or not (is_network_dead or self._has_dead_state(view)):
            self.dead_steps = 0
            self.alive_steps = min(self.alive_steps + 1, REVIVAL_STEPS)
            if self.alive_steps == REVIVAL_STEPS:
                self.close_finding(view.step)
            return
        self.alive_steps = 0
        if self.dead_steps == 0:
            self.since_step = view.step
        self.dead_steps += 1
        if self.dead_steps < PERSISTENCE:
            return
        progress = view.objective
        has_converged = progress.count > 0 and progress.fallen_share >= CONVERGED_SHARE
        if view.dead_share == 1 and view.gradient_norm == 0:
            is_no_failure = has_converged or self._may_have_solved_its_task(view)
            self.strength = 0.0 if is_no_failure else STRENGTH
        else:
            is_old = progress.count >= PATIENCE
            has_not_learned = not has_converged or (self._has_died(view) and progress.fell_only_at_first())
            self.update_strength_while_stuck(view, STRENGTH, has_evidence=is_old and has_not_learned)
        is_dead = view.depth_profile.zero_share[view.row] > DEAD_SHARE
        if view.architecture.is_path.any():
            is_dead &= view.architecture.is_path
        layers = [int(i) for i in view.architecture.order if is_dead[i]][:MAX_LAYERS_NAMED]
        evidence = {"dead_share": view.dead_share, "dead_layers": float(np.count_nonzero(is_dead))}
        if not is_network_dead:
            layers, evidence["dead_state"] = list(view.architecture.recurrent)[:MAX_LAYERS_NAMED], 1.0
        severity = "critical" if self.strength else "note"
        self.update_finding(view.step, severity, layers, evidence, since=self.since_step)

    @staticmethod
    def _has_dead_state(view: StepView) -> bool:
        """Whether all plain recurrent matrices have zero gradients and once had others."""
        layers = list(view.architecture.recurrent)
        if not layers:
            return False
        is_dead = view.depth_profile.zero_share[view.row, layers] > DEAD_SHARE
        return bool((is_dead & (view.averages.nonzero_count[layers] > 0)).all())

    def _may_have_solved_its_task(self, view: StepView) -> bool:
        """Whether the gradient was once not zero, under a loss that measures no progress.

        With equal rewards, as of a policy that has solved its task, all gradients are zero. The gradient at the
        model's output would tell such a run from a dead network; here the client did not measure it.
        """
        return not view.measures_progress and math.isnan(view.output_gradient_norm) and self.had_gradient

    @staticmethod
    def _has_died(view: StepView) -> bool:
        """Whether the script cannot have frozen the dead layers: all are dead, or one of them once was not."""
        is_dead = (view.depth_profile.zero_share[view.row] > DEAD_SHARE) & view.architecture.is_path
        return view.dead_share == 1 or bool((view.averages.nonzero_count[is_dead] > 0).any())

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain how many layers are dead."""
        evidence = finding.evidence
        if "dead_state" in evidence:
            return (
                f"The gradient of {layers[0]} is exactly zero now and once was not: the hidden state is dead after "
                f"its first time step, and nothing is learned from earlier time steps."
            )
        count, share = int(evidence["dead_layers"]), evidence["dead_share"]
        matrices = f"1 weight matrix ({share:.0%}) has" if count == 1 else f"{count} weight matrices ({share:.0%}) have"
        text = f"{matrices} gradients that are exactly zero"
        return text + (f", the first being {layers[0]}." if layers else ".")
