"""A second moment of Adam that lags behind the gradient. Loss spikes follow from it, or a loss that is stuck."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import ClassVar

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_view import StepView
from gradmedic_diagnosis.detectors.zero_gradient import CONVERGED_SHARE
from gradmedic_diagnosis.loss_progress import UNMOVED_SHARE

UNDERESTIMATE = 2.3
"""Root mean square of g/sqrt(v) of a layer from which its second moment is an underestimate (Wortsman et al. 2023,
arXiv 2304.13013, section 3.4). It is 1 for gradients that keep their size."""
OVERESTIMATE = 0.3
"""Ratio of the middle layer below which the second moment is an overestimate: gradients are a third of what updates are
divided by. A judgement; the decay that leads to it is that of arXiv 2506.04805, section 3."""
LONG = 3
"""Consecutive probes with an overestimate that are long. Gradients are small for a few steps after any large one."""
DECAYED_LEAD = 40
"""Most steps by which the end of a long overestimate precedes its spike: meanwhile the gradient grows again, from step
to step, until updates overshoot."""
LEAD = 8
"""Most steps by which an underestimate precedes its loss spike (arXiv 2304.13013, section 3.4)."""
SPIKE = 0.5
"""A loss that is this share of the current loss above it is a spike, if it also stands out from the noise."""
SPIKE_DEVIATIONS = 6.0
"""Mean absolute deviations of the loss by which a spike stands out: five standard deviations of a normal number."""
NOISE_HORIZON = 40
"""Losses over which the deviation is averaged."""
SPIKES = 2
"""Spikes that an odd second moment must precede. Any one spike may have another reason."""
EXPLAINED_SHARE = 0.5
"""Share of the spikes with a probe before them that an odd second moment must precede."""
CALM_STEPS = 20
"""Steps without a spike after which the next one is a new one."""
EPSILON_SHARE = 0.5
"""Share of a layer's elements whose root of the second moment is below epsilon, from which the layer is left out: its
updates are divided by epsilon, and so is the gradient of its ratio."""
FIRST_STEPS = 20
"""Steps at the start that do not count: the second moment is that of few gradients."""
RESOLVED_STEPS = 200
"""Steps without a spike after which the trouble is over."""
STALLED_RATIO = 0.01
"""Ratio of the middle layer below which updates are hundreds of times smaller than Adam's usual ones. A judgement."""
STALLED_PROBES = 5
STALLED_STEPS = 50
"""Consecutive probes, and steps from the first to the last of them, that must show it."""
KEPT_SHARE = 0.1
"""Share of the first gradient that the present one must have. Then it is the second moment that is too large: one huge
gradient is remembered. A gradient that has become small with the loss, as where a training converges, has less."""
STALL_SCORE = 0.95
"""Updates that are too small for the weights are the same thing, less exactly."""
LARGE_UPDATE = 0.1
"""Update over weight from which updates themselves make the gradient huge: a hundred times the usual one. Then the
second moment only remembers what a learning rate did that is too high, and is no cause."""
CAUSE_SCORE = 0.8
"""It is seen before each spike, but a spike may raise it too."""


class StaleSecondMoment(Detector):
    """Loss spikes come right after a probe that shows Adam's second moment far below or far above the gradient.

    It is a warning only if the loss has not fallen. A usual beta2 of 0.999 with spikes that recover is a note at most.

    A second form: the second moment of one huge gradient makes all later updates tiny, and the loss is stuck although
    the gradient is as large as at the start.
    """

    id = "stale_second_moment"
    verdict = "healthy"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "steps": "steps",
        "noise": "noise",
        "highest": "highest",
        "highest_step": "highest_step",
        "lowest": "lowest",
        "low_probes": "low_probes",
        "low_step": "low_step",
        "probe_step": "probe_step",
        "spike_step": "spike_step",
        "spikes": "spikes",
        "under": "under",
        "over": "over",
        "since_step": "since",
        "first_norm": "first_norm",
        "stalled_probes": "stalled_probes",
        "stalled_since": "stalled_since",
        "largest_update": "largest_update",
    }

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        """Steps with a finite loss."""
        self.noise = 0.0
        """Mean absolute deviation of the loss from the current loss, as a share of it."""
        self.highest = math.nan
        """Largest ratio of a layer at the last probe with an underestimate."""
        self.highest_step = -LEAD - 1
        """Step of that probe."""
        self.lowest = math.nan
        """Ratio of the middle layer at the last probe with an overestimate."""
        self.low_probes = 0
        """Consecutive probes with an overestimate."""
        self.low_step = -DECAYED_LEAD - 1
        """Step of the last probe of a long overestimate."""
        self.probe_step = -LEAD - 1
        """Step of the last probe."""
        self.spike_step = -1
        """Last step of the last spike; -1 before one."""
        self.spikes = 0
        """Spikes with a probe before them."""
        self.under = 0
        """Those after an underestimate."""
        self.over = 0
        """Those after a long overestimate."""
        self.since_step = 0
        """Step of the first spike that is counted."""
        self.first_norm = math.nan
        """Network-wide gradient norm of the first sampled step that has one."""
        self.stalled_probes = 0
        """Consecutive probes with a ratio below `STALLED_RATIO` and a gradient that is not small."""
        self.stalled_since = 0
        """Step of the first of them."""
        self.largest_update = 0.0
        """Largest update over weight."""

    @property
    def is_fault(self) -> bool:
        """Whether an open finding asks for attention while the loss looks converged: if updates are tiny."""
        return self._is_stall

    @property
    def cause_score(self) -> float:
        """Score of an open warning."""
        if not self.is_open or self.finding_state is None or self.finding_state.severity != "warning":
            return 0.0
        if not self._is_stall:
            return CAUSE_SCORE
        return STALL_SCORE if self.largest_update < LARGE_UPDATE else 0.0

    @property
    def _is_stall(self) -> bool:
        """Whether the finding is about a training that stands still."""
        return self.finding_state is not None and "share_of_first_gradient" in self.finding_state.evidence

    def observe(self, view: StepView) -> None:
        """Remember odd probes, and look for a spike after them, or for a loss that is stuck."""
        if view.row is not None and math.isnan(self.first_norm) and 0 < view.gradient_norm < math.inf:
            self.first_norm = view.gradient_norm
        if view.row is not None and self.largest_update < view.update_ratio < math.inf:
            self.largest_update = view.update_ratio
        if view.is_skipped or view.loss is None or not math.isfinite(view.loss):
            return
        is_spike = self._follow_loss(view.loss, view.progress.current)
        ratios = view.probes.get("second_moment_ratio")
        if ratios and self.steps > FIRST_STEPS:
            known = _list_ratios(ratios, view.probes.get("epsilon_share") or {})
            self._read_probe(view.step, known)
            if known and view.row is not None:
                self._look_for_stall(view, median(known))
        if self.probe_step < 0:
            return
        if not is_spike:
            if self.is_open and not self._is_stall and view.step - self.spike_step > RESOLVED_STEPS:
                self.close_finding(view.step)
            return
        is_new = self.spike_step < 0 or view.step - self.spike_step > CALM_STEPS
        self.spike_step = view.step
        if is_new:
            self._count_spike(view)

    def _read_probe(self, step: int, ratios: list[float]) -> None:
        if not ratios:
            return
        self.probe_step = step
        if max(ratios) >= UNDERESTIMATE:
            self.highest, self.highest_step = max(ratios), step
        if median(ratios) <= OVERESTIMATE:
            self.lowest = median(ratios)
            self.low_probes += 1
            if self.low_probes >= LONG:
                self.low_step = step
        else:
            self.low_probes = 0

    def _look_for_stall(self, view: StepView, ratio: float) -> None:
        """Report that the second moment of a huge gradient makes all updates tiny, if the loss is stuck."""
        share = view.gradient_norm / self.first_norm
        if not (ratio < STALLED_RATIO and share >= KEPT_SHARE):
            self.stalled_probes = 0
            if self.is_open and self._is_stall:
                self.close_finding(view.step)
            return
        if self.stalled_probes == 0:
            self.stalled_since = view.step
        self.stalled_probes += 1
        is_long = self.stalled_probes >= STALLED_PROBES and view.step - self.stalled_since >= STALLED_STEPS
        has_converged = view.objective.fallen_share >= CONVERGED_SHARE
        if not is_long or not view.is_stuck or has_converged or (self.is_open and not self._is_stall):
            return
        evidence = {"second_moment_ratio": ratio, "share_of_first_gradient": share}
        if not math.isnan(view.update_ratio):
            evidence["update_to_weight"] = view.update_ratio
        beta2 = self._read_beta2(view)
        if beta2 is not None and 0 < beta2 < 1:
            evidence |= {"beta2": beta2, "half_life_steps": math.log(0.5) / math.log(beta2)}
        self.update_finding(view.step, "warning", [], evidence, since=self.stalled_since)

    def _follow_loss(self, loss: float, level: float) -> bool:
        """Return whether a loss is a spike, and add it to the noise."""
        self.steps += 1
        deviation = (loss - level) / abs(level) if level else 0.0
        is_spike = deviation > max(SPIKE, SPIKE_DEVIATIONS * self.noise) and self.steps > FIRST_STEPS
        self.noise += (min(abs(deviation), SPIKE) - self.noise) / min(self.steps, NOISE_HORIZON)
        return is_spike

    def _count_spike(self, view: StepView) -> None:
        is_under = view.step - self.highest_step <= LEAD
        is_over = view.step - self.low_step <= DECAYED_LEAD
        if not (is_under or is_over or view.step - self.probe_step <= LEAD):
            return  # no probe shows what was before the spike
        if not self.under + self.over:
            self.since_step = view.step
        self.spikes += 1
        self.under += is_under
        self.over += is_over and not is_under
        explained = self.under + self.over
        if explained < SPIKES or explained < EXPLAINED_SHARE * self.spikes or (self.is_open and self._is_stall):
            return
        ratio = self.highest if self.under >= self.over else self.lowest
        evidence = {"spikes": float(self.spikes), "spikes_after_it": float(explained), "second_moment_ratio": ratio}
        if (beta2 := self._read_beta2(view)) is not None:
            evidence["beta2"] = beta2
        has_learned = not view.measures_progress or view.objective.fallen_share >= UNMOVED_SHARE
        self.update_finding(view.step, "note" if has_learned else "warning", [], evidence, since=self.since_step)

    @staticmethod
    def _read_beta2(view: StepView) -> float | None:
        return next((each.beta2 for each in view.training.optimizers if each.beta2 is not None), None)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain which way the second moment is off, and how often a spike followed."""
        del layers
        evidence = finding.evidence
        ratio, beta2 = evidence["second_moment_ratio"], evidence.get("beta2")
        if "share_of_first_gradient" in evidence:
            forgets = "" if beta2 is None else (
                f" With a beta2 of {beta2:g} it takes {evidence['half_life_steps']:.0f} steps to forget half of it."
            )  # fmt: skip
            return (
                f"Adam's second moment is that of a gradient that was far larger: the root mean square of g/sqrt(v) is "
                f"{ratio:.2g} (healthy: about 1), so that updates are that much too small, and the loss is stuck. The "
                f"gradient itself has {evidence['share_of_first_gradient']:.2g} times its first size.{forgets} A "
                "smaller beta2 forgets faster; clipping would have kept the large gradient out."
            )
        way, size = ("below", "large") if ratio > 1 else ("above", "small, until it has decayed and they are too large")
        return (
            f"{evidence['spikes_after_it']:.0f} of {evidence['spikes']:.0f} loss spikes came when Adam's second moment "
            f"was far {way} the gradient: the root mean square of g/sqrt(v) was {ratio:.2g} (healthy: about 1), so "
            f"that updates are too {size}. "
            + ("A smaller beta2" if beta2 is None else f"A beta2 below {beta2:g}")
            + " follows the gradient faster."
        )


def _list_ratios(ratios: Mapping[str, float], epsilon_shares: Mapping[str, float]) -> list[float]:
    """Return the ratios of the layers with a gradient whose second moment, and not epsilon, divides the updates.

    A ratio of 0 says that the gradient is exactly zero, and nothing of the second moment.
    """
    return [
        ratio
        for layer, ratio in ratios.items()
        if 0 < ratio < math.inf and not epsilon_shares.get(layer, 0.0) > EPSILON_SHARE
    ]
