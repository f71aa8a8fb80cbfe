"""NaN and infinite gradients, weights and losses. They are counted exactly, not averaged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import MAX_LAYERS_NAMED, StepView, rank_layers

PERSISTENT_LOSSES = 2
"""Consecutive non-finite losses from which a run counts as dead. A single one may come from an empty batch, with
nothing that reaches the weights."""
SKIPPED_LOSSES = 10
"""Consecutive skipped steps with a non-finite loss from which a run counts as dead. The loss does not depend on the
loss scale, so no smaller scale mends it; the weights are safe meanwhile, so there is more time than with
`PERSISTENT_LOSSES`."""
SKIPPED_STEPS = 40
"""Consecutive skipped steps from which a run counts as dead, also with finite losses. A scale that begins at 2^16, as
torch's does, is 2^-24 then, the smallest half-precision number."""
RECOVERY_STEPS = 5
"""Consecutive finite steps after which a run no longer counts as dead, unless its weights were non-finite."""
HORIZON = 10
"""Sampled steps over which non-finite gradients are counted."""
CLEANED_STEPS = 3
"""Steps, of about the last `HORIZON`, with non-finite gradients that the script removed: so many support a verdict."""
GROWN_DECADES = 0.3
"""Decades above its baseline (a doubling) from which a layer that grew before it broke is named as the first."""
DEAD_STRENGTH = 1.0
CLEANED_STRENGTH = 0.6


class Nonfinite(Detector):
    """A gradient, weight or loss is NaN or infinite, on a step that was not skipped, or all steps are skipped.

    Once a weight was non-finite the run is dead, and the finding never resolves. A run whose loss stays non-finite
    counts as dead until the loss is finite again.
    """

    id = "nonfinite"
    verdict = "exploding"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "is_dead": "is_dead",
        "had_nonfinite_weights": "is_certain",
        "finite_steps": "finite_running",
        "nonfinite_losses": "losses_running",
        "recent_share": "recent",
        "skipped_steps": "skipped",
        "skipped_losses": "skipped_losses",
    }

    def __init__(self) -> None:
        super().__init__()
        self.is_dead = False
        """Whether the run is not expected to become finite again."""
        self.had_nonfinite_weights = False
        """Whether non-finite weights or updates were seen."""
        self.finite_steps = 0
        """Consecutive finite steps."""
        self.nonfinite_losses = 0
        """Consecutive non-finite losses."""
        self.recent_share = 0.0
        """Share of about the last `HORIZON` sampled steps that had non-finite gradients."""
        self.skipped_steps = 0
        """Consecutive steps that a loss scaler or a guard skipped."""
        self.skipped_losses = 0
        """Consecutive skipped steps with a non-finite loss."""

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the first one that is not finite or is skipped."""
        if not self.is_at_rest or self.is_dead or self.nonfinite_losses:
            return 0
        stop = min(columns.first_nonfinite, columns.first_step(columns.block.skipped))
        if stop == 0:
            return 0
        self.skipped_steps = self.skipped_losses = 0
        rows = columns.rows_before[stop]
        if self.recent_share:
            for _ in range(rows):
                self.recent_share += (0.0 - self.recent_share) / HORIZON
        is_read = columns.has_loss[:stop].copy()
        is_read[columns.block.sampled[:stop]] |= columns.has_row_statistics[:rows]
        self.finite_steps += int(np.count_nonzero(is_read))
        return stop

    def observe(self, view: StepView) -> None:
        """Check one step for non-finite values. A skipped step counts only in a long row; absent layers never do."""
        if view.is_skipped:
            self._observe_skipped(view)
            return
        self.skipped_steps = self.skipped_losses = 0
        is_loss_bad = view.loss is not None and not math.isfinite(view.loss)
        if view.loss is not None:
            self.nonfinite_losses = self.nonfinite_losses + 1 if is_loss_bad else 0
        are_weights_bad, are_gradients_bad = False, False
        if view.row is not None:
            are_gradients_bad = view.nonfinite_count > 0
            are_weights_bad = view.has_nonfinite_weights
            self.recent_share += ((1.0 if are_gradients_bad else 0.0) - self.recent_share) / HORIZON
            self.had_nonfinite_weights = self.had_nonfinite_weights or (
                are_weights_bad and view.measurements.has_weight_norms
            )
        is_loss_persistent = self.nonfinite_losses >= PERSISTENT_LOSSES
        if are_weights_bad or is_loss_persistent or (is_loss_bad and are_gradients_bad):
            self.is_dead = True
        if are_gradients_bad or are_weights_bad or is_loss_bad:
            self.finite_steps = 0
            if self.is_open and self.finding_state is not None:
                self.finding_state.last_step = view.step  # the evidence stays that of the step that broke first
            else:
                self.update_finding(view.step, "critical", self._find_layers(view), self._collect_evidence(view))
            was_often_cleaned = self.recent_share * HORIZON >= CLEANED_STEPS - 0.5
            self.strength = DEAD_STRENGTH if self.is_dead else CLEANED_STRENGTH if was_often_cleaned else 0.0
        elif view.has_statistics or view.loss is not None:
            self.finite_steps += 1
            if self.is_dead and not self.had_nonfinite_weights and self.finite_steps >= RECOVERY_STEPS:
                self.is_dead = False
            if not self.is_dead:
                self.close_finding(view.step)
            elif self.finding_state is not None:
                self.finding_state.last_step = view.step

    def _observe_skipped(self, view: StepView) -> None:
        """Count the skipped steps, and those with a non-finite loss, in a row."""
        self.skipped_steps += 1
        if view.loss is not None:
            self.skipped_losses = 0 if math.isfinite(view.loss) else self.skipped_losses + 1
        if self.skipped_losses < SKIPPED_LOSSES and self.skipped_steps < SKIPPED_STEPS:
            return
        self.is_dead, self.finite_steps, self.strength = True, 0, DEAD_STRENGTH
        if self.is_open and self.finding_state is not None:
            self.finding_state.last_step = view.step
            if "skipped_steps" in self.finding_state.evidence:
                self.finding_state.evidence["skipped_steps"] = float(self.skipped_steps)
            return
        evidence = {**self._collect_evidence(view), "skipped_steps": float(self.skipped_steps)}
        if not math.isnan(view.loss_scale):
            evidence["loss_scale"] = view.loss_scale
        since = max(0, view.step + 1 - self.skipped_steps)
        self.update_finding(view.step, "critical", self._find_layers(view), evidence, since=since)

    @staticmethod
    def _find_layers(view: StepView) -> list[int]:
        if view.row is None:
            return []
        is_bad = view.measurements.nonfinite_count[view.row] > 0
        rise = np.where(is_bad, view.depth_profile.rise[view.row], np.nan)
        if is_bad.any() and np.nanmax(rise, initial=0.0) >= GROWN_DECADES:
            return rank_layers(rise)
        # Backpropagation carries NaN from the output to the input: the bad layer nearest the output had it first.
        return [int(i) for i in view.architecture.order[::-1] if is_bad[i]][:MAX_LAYERS_NAMED]

    @staticmethod
    def _collect_evidence(view: StepView) -> dict[str, float]:
        evidence = {"nonfinite_count": float(view.nonfinite_count)}
        if view.row is not None:
            evidence["layers_affected"] = float((view.measurements.nonfinite_count[view.row] > 0).sum())
            if view.measurements.has_weight_norms:
                weights = view.measurements.weight_norm[view.row][view.measurements.present[view.row]]
                evidence["nonfinite_weights"] = float((~np.isfinite(weights)).sum())
        if view.loss is not None:
            evidence["loss"] = float(view.loss)
        inputs = view.probes.get("input_nonfinite_count", {}).get("", math.nan)
        if not math.isnan(inputs):
            evidence["input_nonfinite_count"] = inputs
        return evidence

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain what is non-finite, and whether the run can recover."""
        if "skipped_steps" in finding.evidence:
            steps, loss = int(finding.evidence["skipped_steps"]), finding.evidence.get("loss", 0.0)
            what = "the gradients are" if math.isfinite(loss) else "the loss itself is"
            finite = _name_finite(finding.evidence)
            known = f", while {finite} {'are' if 'weights' in finite else 'is'}" if finite else ""
            has_scale = "loss_scale" in finding.evidence
            who = "The loss scaler" if has_scale else "A guard or a loss scaler"
            scale = "; a smaller scale did not help" if has_scale else ""
            return (
                f"{who} skipped {steps} steps in a row from step {finding.first_step} on, because {what} not "
                f"finite{known}{scale}. Nothing is learned on these steps."
            )
        count = int(finding.evidence.get("nonfinite_count", 0))
        what = f"{count} gradient elements are NaN or infinite" if count else "The loss is NaN or infinite"
        where = f", first in {layers[0]}" if layers else ""
        if self.had_nonfinite_weights:
            outcome = "They reached the weights: nothing is learned after this step."
        elif self.is_dead:
            outcome = "The run has not been finite since."
        else:
            outcome = "Nothing shows that they reached the weights."
        return f"{what}{where}, from step {finding.first_step} on. {_describe_pass(finding.evidence)}{outcome}"


def _describe_pass(evidence: Mapping[str, float]) -> str:
    """Return a sentence about what was finite in the step that broke, and the pass that failed first.

    It is empty where neither loss, input nor weights of the step are known.
    """
    weights, inputs = evidence.get("nonfinite_weights"), evidence.get("input_nonfinite_count")
    if weights:
        layers = "1 layer" if weights == 1 else f"{int(weights)} layers"
        return f"The weights of {layers} were not finite before that step: an earlier step broke them. "
    if inputs:
        known = "" if weights is None else "; the weights were finite"
        return f"The input of that step already had {int(inputs)} NaN or infinite elements{known}. "
    finite = _name_finite(evidence)
    were = "were" if "weights" in finite else "was"
    loss = evidence.get("loss")
    if loss is None:
        return f"No loss was logged at that step; {finite} {were} finite. " if finite else ""
    if math.isfinite(loss):
        known = f", and so {were} {finite}" if finite else ""
        return f"The loss of that step was finite{known}: the backward pass failed. "
    if evidence.get("nonfinite_count"):
        known = f"; {finite} {were} finite" if finite else ""
        return f"The loss of that step was not finite either{known}: the forward pass failed first. "
    return f"{finite.capitalize()} {were} finite: the forward pass failed. " if finite else ""


def _name_finite(evidence: Mapping[str, float]) -> str:
    """Return which of input and weights are known to be finite, as words of a sentence; empty for neither."""
    names = {"its input": "input_nonfinite_count", "the weights": "nonfinite_weights"}
    return " and ".join(name for name, number in names.items() if evidence.get(number) == 0)
