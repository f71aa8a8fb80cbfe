"""Weights in bfloat16 or float16 that updates do not change: each update rounds to nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView
from gradmedic_diagnosis.detectors.zero_gradient import CONVERGED_SHARE
from gradmedic_diagnosis.loss_progress import UNMOVED_SHARE

STALLED_SHARE = 0.5
"""Share of the elements with a gradient that no update changed from one probe to the next, from which most of the
update is lost. The share is 0 in float32, and in bfloat16 at rates at which training works (Zamirai et al. 2020, arXiv
2010.06192, section 3)."""
FROZEN_SHARE = 0.9
"""Share from which the model hardly trains at all."""
PROBES = 3
"""Consecutive probes that must agree: the three first steps are probed."""
PATIENCE = 50
"""Steps of the run before there is a finding, as for weights that never moved."""
SAME_RATE = 1.1
"""A learning rate that is higher than at the last probe by more than this factor is still being warmed up."""
DECAYED_RATE = 0.5
"""Below this share of its highest value the rate has been decayed on purpose, and small updates are wanted."""
CAUSE_SCORE = 0.96
"""The weights themselves show it. Updates that are too small for the weights are the same thing, less exactly."""


class LowPrecisionStall(Detector):
    """Most weights with a gradient stay bit for bit the same from probe to probe, at a rate that is not decayed.

    It is a warning if the loss has not moved or is no better than that of a constant output, or if hardly a weight
    changes. Else it is a note: the part of the update that is left may be enough.
    """

    id = "low_precision_stall"
    verdict = "healthy"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "steps": "steps", "probes": "probes", "since_step": "since", "share": "share", "rate": "rate",
        "highest_rate": "highest_rate",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        """Steps so far that no loss scaler skipped."""
        self.probes = 0
        """Consecutive probes on which most weights were unchanged."""
        self.since_step = 0
        self.share = math.nan
        """Share of the last probe."""
        self.rate = math.nan
        """Learning rate of the last probe."""
        self.highest_rate = 0.0
        """Highest learning rate so far."""

    @property
    def is_fault(self) -> bool:
        """Whether an open finding asks for attention while the loss falls: a warning, if hardly a weight changes."""
        return self._is_warning and self.share >= FROZEN_SHARE

    @property
    def _is_warning(self) -> bool:
        return self.finding_state is not None and self.finding_state.severity == "warning"

    @property
    def cause_score(self) -> float:
        """Score of an open warning."""
        return CAUSE_SCORE if self.is_open and self._is_warning else 0.0

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the next probe of the weights, unless the last ones have to be judged."""
        if not self.is_at_rest or self.probes >= PROBES:
            return 0
        stop = columns.first_probe("unchanged_share")
        is_read = ~columns.block.skipped[:stop]
        self.steps += int(np.count_nonzero(is_read))
        rates = columns.block.series.get("learning_rate")
        if rates is not None:
            known = rates.values[:stop][is_read & rates.present[:stop]]
            self.highest_rate = max(self.highest_rate, float(np.fmax.reduce(known, initial=-math.inf)))
        return stop

    def observe(self, view: StepView) -> None:
        """Read a probe, and judge the last ones once the run is old enough."""
        if view.is_skipped:
            return
        self.steps += 1
        if view.learning_rate > self.highest_rate:
            self.highest_rate = view.learning_rate
        shares = view.probes.get("unchanged_share")
        if shares:
            self._read_probe(view, shares.get("", math.nan))
        if self.probes < PROBES or self.steps < PATIENCE:
            return
        if view.learning_rate > SAME_RATE * self.rate or view.learning_rate < DECAYED_RATE * self.highest_rate:
            self.probes = 0  # the next probes decide
            self.close_finding(view.step)
            return
        fallen = view.objective.fallen_share if view.measures_progress else 0.0
        learned = view.learned_share if view.measures_progress else 0.0
        is_warning = learned < CONVERGED_SHARE and (learned < UNMOVED_SHARE or self.share >= FROZEN_SHARE)
        evidence = {"unchanged_share": self.share, "loss_fallen": fallen}
        if not math.isnan(self.rate):
            evidence["learning_rate"] = self.rate
        if not math.isnan(view.update_ratio):
            evidence["update_to_weight"] = view.update_ratio
        self.update_finding(view.step, "warning" if is_warning else "note", [], evidence, since=self.since_step)

    def _read_probe(self, view: StepView, share: float) -> None:
        is_stalled = share >= STALLED_SHARE and view.gradient_norm > 0 and view.learning_rate != 0
        if not is_stalled:
            self.probes = 0
            self.close_finding(view.step)
        elif self.probes == 0:
            self.since_step = view.step
        self.probes += is_stalled
        self.share, self.rate = share, view.learning_rate

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain how many weights stay the same, and why."""
        del layers
        evidence = finding.evidence
        rate = f" at a learning rate of {evidence['learning_rate']:.3g}" if "learning_rate" in evidence else ""
        return (
            f"{evidence['unchanged_share']:.0%} of the weights with a gradient stayed bit for bit the same from one "
            f"probe to the next{rate} (healthy: near 0). A weight in bfloat16 changes only by steps of 0.4 to 0.8 % of "
            "itself, and in float16 by 0.05 to 0.1 %; an update below half of that rounds to nothing. Keep the weights "
            "in float32, or round stochastically."
        )
