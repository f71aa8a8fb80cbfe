"""The loss blows up, and the updates are large enough to be the reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_view import StepView
from gradmedic_diagnosis.loss_progress import BLOW_UP, SLOW_HORIZON, STUCK_EVERY
from gradmedic_diagnosis.measurements import HEALTHY_UPDATE_RATIO

PERSISTENCE = 5
"""Consecutive steps with a blown-up loss: a network that one bad update disturbed may recover within a few."""
SUDDEN_RATIO = 1000.0
"""With a loss of this many times its reference, one step is enough."""
REPLACING_UPDATE_RATIO = 10.0
"""After an update of this many times the weights, one step is enough, too: nothing of the network before it is left."""
REWRITING_UPDATE_RATIO = 0.5
"""Network-wide update over weight that rewrites the weights instead of adjusting them. Healthy training has
`HEALTHY_UPDATE_RATIO`; in our recordings any threshold between 0.3 and 10 separates the two."""
REWRITING_MEMORY = 20
"""Steps for which an update of that size explains a blown-up loss."""
REWRITING_GROWTH_DECADES = 2.0
"""Without weight norms, the gradient must be this far above its baseline instead."""
WEAKLY_REWRITING_UPDATE_RATIO = 0.1
"""Update over weight from which a blow-up of the loss counts against a run that never learns afterwards."""
AFTERMATH_STEPS = 60
"""Losses after such a blow-up within which the run must learn again."""
AFTERMATH_FALL = 0.2
"""If the loss is stuck and has fallen by less than this share of its level right after the blow-up, the blow-up ended
the training, whatever the loss is now."""
WEIGHT_GROWTH = 2.0
"""Slow divergence: the loss is `BLOW_UP` times its start and the weights have grown by at least this factor, for
`SLOW_PERSISTENCE` consecutive steps."""
STILL_GROWING = 1.1
"""Weights of this many times their average over `SLOW_HORIZON` steps still grow. If they have grown by `WEIGHT_GROWTH`
already, a gradient that vanishes is more likely a consequence: in our recordings, the weights of no run that only
vanishes double."""
SLOW_PERSISTENCE = 10
SLOW_PERSISTENCE_WITHOUT_WEIGHTS = 20
"""Without weight norms, the loss must stay that high for this many consecutive steps, and gradients, where there are
any, must have grown by `SLOW_GROWTH_DECADES`."""
SLOW_GROWTH_DECADES = 0.3
RECOVERY_STEPS = 20
"""Consecutive steps at or below the old reference, while the loss falls, after which a blow-up is resolved. As many
losses after a blow-up, its aftermath has a level of its own."""
RECOVERY_DEAD_SHARE = 0.5
"""A network does not recover while this share of its weight matrices or more is dead."""
STRENGTH = 0.95
AFTERMATH_STRENGTH = 0.8
TINY = 1e-30
"""Lower bound of a divisor that may be zero."""


class LossDivergence(Detector):
    """The loss is far above its reference, and the weights were overwritten, at once or slowly."""

    id = "loss_divergence"
    verdict = "exploding"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "rewriting_steps_left": "reach_left",
        "weakly_rewriting_steps_left": "weak_reach_left",
        "peak_update_ratio": "peak_ratio",
        "blown_up_steps": "running",
        "slow_steps": "slow_running",
        "first_weight_norm": "initial_weight",
        "reference_before": "reference",
        "recovered_steps": "calm",
        "last_blow_up": "blow_up",
        "slow_weight_norm": "slow_weight",
    }

    def __init__(self) -> None:
        super().__init__()
        self.rewriting_steps_left = 0
        """Steps for which a rewriting update still explains a blown-up loss."""
        self.weakly_rewriting_steps_left = 0
        self.peak_update_ratio = 0.0
        """Largest update over weight among the rewriting updates that still count."""
        self.blown_up_steps = 0
        """Consecutive steps with a blown-up loss."""
        self.slow_steps = 0
        """Consecutive steps that agree with a slow divergence."""
        self.first_weight_norm = float("nan")
        self.slow_weight_norm = float("nan")
        """Average of the weight norm over `SLOW_HORIZON` sampled steps."""
        self.reference_before = float("nan")
        """Level to which the loss must return."""
        self.recovered_steps = 0
        """Consecutive steps on which the loss is back at that level."""
        self.last_blow_up: dict[str, float] | None = None
        """The last blow-up that supported no verdict at once: its evidence; `step` and `count` of losses at it; and
        `level`, the loss `RECOVERY_STEPS` losses later."""

    def observe(self, view: StepView) -> None:
        """Compare the loss with its reference, and the update with the weights."""
        self._remember_rewriting_updates(view)
        if math.isnan(view.loss_ratio) or view.is_skipped:
            return
        is_blown_up = view.loss_ratio >= self._blow_up_ratio(view)
        if view.loss is not None and view.loss >= BLOW_UP * view.constant_level:
            is_blown_up = True  # also where the first losses had blown up already
        self.blown_up_steps = self.blown_up_steps + 1 if is_blown_up else 0
        weight_growth = view.weight_norm / self.first_weight_norm if self.first_weight_norm > 0 else float("nan")
        self._count_slow_steps(view, weight_growth)
        is_enough = (
            self.blown_up_steps >= PERSISTENCE
            or view.loss_ratio >= SUDDEN_RATIO
            or self.peak_update_ratio >= REPLACING_UPDATE_RATIO
        )
        is_sudden = self.rewriting_steps_left > 0 and is_blown_up and is_enough
        has_weights = math.isfinite(self.first_weight_norm)
        is_slow = self.slow_steps >= (SLOW_PERSISTENCE if has_weights else SLOW_PERSISTENCE_WITHOUT_WEIGHTS)
        if is_blown_up and self.weakly_rewriting_steps_left:
            self.last_blow_up = {
                "step": view.step,
                "count": view.progress.count,
                **self._collect_evidence(view, weight_growth),
            }
        if is_sudden or is_slow:
            if not self.is_open:
                self.reference_before = view.loss_reference
            evidence = self._collect_evidence(view, weight_growth)
            self.update_finding(view.step, "critical", view.layers_by_growth(), evidence)
            self.strength = STRENGTH
            self.recovered_steps = 0
        elif self.is_open:
            self._watch_recovery(view)
        elif self.last_blow_up is not None:
            self._watch_aftermath(view, self.last_blow_up)

    @staticmethod
    def _blow_up_ratio(view: StepView) -> float:
        """Return how many times its reference a blown-up loss is. A loss that measures no progress has no level."""
        return BLOW_UP if view.is_loss_measure else SUDDEN_RATIO

    def _count_slow_steps(self, view: StepView, weight_growth: float) -> None:
        """Count steps with a loss far above its start, as long as weights or gradients have grown, too."""
        if math.isfinite(self.first_weight_norm):
            if view.row is not None and math.isnan(weight_growth):
                return
            has_grown = view.row is None or weight_growth >= WEIGHT_GROWTH
        else:
            has_grown = view.row is None or view.typical_growth >= SLOW_GROWTH_DECADES
        is_slow = (
            has_grown and not view.has_several_streams and view.progress.ratio_to_start >= self._blow_up_ratio(view)
        )
        self.slow_steps = self.slow_steps + 1 if is_slow else 0

    def forget_trouble(self) -> None:
        """Drop the last blow-up: the run has learned after it."""
        self.last_blow_up = None

    def is_undecided(self, view: StepView) -> bool:
        """Return whether a blow-up is so recent that it is open whether the run learns again, or the weights grow."""
        if view.has_several_streams:
            return False
        has_grown = view.weight_norm >= WEIGHT_GROWTH * self.first_weight_norm > 0
        if has_grown and view.weight_norm >= STILL_GROWING * self.slow_weight_norm:
            return True
        if self.last_blow_up is None:
            return False
        return view.progress.count - self.last_blow_up["count"] < AFTERMATH_STEPS + STUCK_EVERY

    def _watch_aftermath(self, view: StepView, blow_up: dict[str, float]) -> None:
        """Open a finding if the run never learns again after a blow-up that alone supports no verdict."""
        since = view.progress.count - blow_up["count"]
        if since >= RECOVERY_STEPS and "level" not in blow_up:
            blow_up["level"] = view.progress.current
        has_ended = view.is_stuck or view.dead_share >= RECOVERY_DEAD_SHARE
        if since < AFTERMATH_STEPS or "level" not in blow_up or not has_ended:
            return
        fall = (blow_up["level"] - view.progress.current) / max(abs(blow_up["level"]), TINY)
        if fall >= AFTERMATH_FALL:
            self.last_blow_up = None
            return
        evidence = {name: value for name, value in blow_up.items() if name not in ("step", "count", "level")}
        layers = self.finding_state.layers if self.finding_state else []
        self.update_finding(view.step, "critical", layers, evidence, since=int(blow_up["step"]))
        self.reference_before = blow_up["level"]
        self.strength = AFTERMATH_STRENGTH

    def _remember_rewriting_updates(self, view: StepView) -> None:
        if view.row is None:
            self.rewriting_steps_left = max(0, self.rewriting_steps_left - 1)
            self.weakly_rewriting_steps_left = max(0, self.weakly_rewriting_steps_left - 1)
            return
        if math.isnan(self.first_weight_norm) and math.isfinite(view.weight_norm):
            self.first_weight_norm = self.slow_weight_norm = view.weight_norm
        if math.isnan(self.slow_weight_norm):  # a state that version 0.1 stored
            self.slow_weight_norm = view.weight_norm
        if math.isfinite(view.weight_norm):
            self.slow_weight_norm += (view.weight_norm - self.slow_weight_norm) / SLOW_HORIZON
        rewrites = view.update_ratio >= REWRITING_UPDATE_RATIO
        if not math.isfinite(self.first_weight_norm):
            rewrites = view.typical_growth >= REWRITING_GROWTH_DECADES
        self.rewriting_steps_left = REWRITING_MEMORY if rewrites else max(0, self.rewriting_steps_left - 1)
        rewrites_weakly = rewrites or view.update_ratio >= WEAKLY_REWRITING_UPDATE_RATIO
        self.weakly_rewriting_steps_left = (
            REWRITING_MEMORY if rewrites_weakly else max(0, self.weakly_rewriting_steps_left - 1)
        )
        if rewrites_weakly:
            self.peak_update_ratio = max(self.peak_update_ratio, view.update_ratio)
        elif self.weakly_rewriting_steps_left == 0 and not self.is_open:
            self.peak_update_ratio = 0.0

    def _watch_recovery(self, view: StepView) -> None:
        """Resolve the finding when the loss is back at its old reference and falls, with gradients that are alive."""
        is_back = view.loss is not None and view.loss <= self.reference_before
        has_recovered = is_back and view.dead_share < RECOVERY_DEAD_SHARE
        self.recovered_steps = self.recovered_steps + 1 if has_recovered else 0
        if self.recovered_steps >= RECOVERY_STEPS and not view.is_stuck:
            self.close_finding(view.step)

    def _collect_evidence(self, view: StepView, weight_growth: float) -> dict[str, float]:
        evidence = {
            "loss": float(view.loss or 0.0),
            "loss_over_reference": view.loss_ratio,
            "update_to_weight": self.peak_update_ratio,
        }
        if math.isfinite(weight_growth):
            evidence["weight_growth"] = float(weight_growth)
        return evidence

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain the factor of the loss and the size of the updates."""
        evidence = finding.evidence
        text = f"The loss is {evidence['loss_over_reference']:.3g} times its reference"
        if evidence["update_to_weight"] >= WEAKLY_REWRITING_UPDATE_RATIO:
            ratio = evidence["update_to_weight"]
            text += f" after updates of {ratio:.2g} times the weights (healthy: about {HEALTHY_UPDATE_RATIO:g})"
        elif evidence.get("weight_growth", 1.0) >= WEIGHT_GROWTH:
            text += f" and the weights have grown {evidence['weight_growth']:.2g}-fold"
        return text + (f"; the gradient grew most in {layers[0]}." if layers else ".")
