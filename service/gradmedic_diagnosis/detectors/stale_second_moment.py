"""A second moment of Adam that lags behind the gradient, and loss spikes that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import ClassVar

from gradmedic_diagnosis.detectors.base import UNMOVED_SHARE, Detector, FindingState
from gradmedic_diagnosis.detectors.step_view import StepView

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
FIRST_STEPS = 20
"""Steps at the start that do not count: the second moment is that of few gradients."""
RESOLVED_STEPS = 200
"""Steps without a spike after which the trouble is over."""
CAUSE_SCORE = 0.8
"""It is seen before each spike, but a spike may raise it too."""


class StaleSecondMoment(Detector):
    """Loss spikes come right after a probe that shows Adam's second moment far below or far above the gradient.

    It is a warning only if the loss has not fallen. A usual beta2 of 0.999 with spikes that recover is a note at most.
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

    @property
    def cause_score(self) -> float:
        """Score of an open warning."""
        return CAUSE_SCORE if self.is_open and self.finding_state and self.finding_state.severity == "warning" else 0.0

    def observe(self, view: StepView) -> None:
        """Remember odd probes, and look for a spike after them."""
        if view.is_skipped or view.loss is None or not math.isfinite(view.loss):
            return
        is_spike = self._follow_loss(view.loss, view.progress.current)
        ratios = view.probes.get("second_moment_ratio")
        if ratios and self.steps > FIRST_STEPS:
            self._read_probe(view.step, [ratio for ratio in ratios.values() if math.isfinite(ratio)])
        if self.probe_step < 0:
            return
        if not is_spike:
            if self.is_open and view.step - self.spike_step > RESOLVED_STEPS:
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
        if explained < SPIKES or explained < EXPLAINED_SHARE * self.spikes:
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
        way, size = ("below", "large") if ratio > 1 else ("above", "small, until it has decayed and they are too large")
        return (
            f"{evidence['spikes_after_it']:.0f} of {evidence['spikes']:.0f} loss spikes came when Adam's second moment "
            f"was far {way} the gradient: the root mean square of g/sqrt(v) was {ratio:.2g} (healthy: about 1), so "
            f"that updates are too {size}. "
            + ("A smaller beta2" if beta2 is None else f"A beta2 below {beta2:g}")
            + " follows the gradient faster."
        )
