"""A loss scaler that has run out of scale: it skips most steps, and a smaller scale does not help any more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView

USELESS_SCALE = 1.0
"""Scale at which gradients are no longer enlarged. DeepSpeed, Apex and Megatron refuse to go below it
(`min_loss_scale`): "Current loss scale already at minimum. Exiting run"."""
RECENT_STEPS = 20
"""Steps of which the skipped ones are counted. A scaler that works skips one in `growth_interval` (2,000) steps, and at
the start about as many in a row as its first scale is powers of two too high."""
SKIPPED_SHARE = 0.5
"""Share of the recent steps that must be skipped. A scaler that halves now and then skips far fewer."""
RECOVERED_SHARE = 0.1
"""Share of the recent steps below which the scaler works again."""
CAUSE_SCORE = 0.95

_RECENT_BITS = (1 << RECENT_STEPS) - 1


class LossScaleExhausted(Detector):
    """Most of the recent steps are skipped at a loss scale of 1 or below, where it enlarges nothing.

    What overflows there is the loss or the gradient itself, so that halving the scale cannot end it.
    """

    id = "loss_scale_exhausted"
    verdict = "healthy"
    needed_series = "loss_scale"
    stored_keys: ClassVar[Mapping[str, str]] = {"recent": "recent", "highest_scale": "highest", "since_step": "since"}

    def __init__(self) -> None:
        super().__init__()
        self.recent = 0
        """Bit set of the last `RECENT_STEPS` steps with a loss scale: bit 0 is the last one, and a bit is 1 if the step
        was skipped at a useless scale."""
        self.highest_scale = 0.0
        """Highest loss scale so far."""
        self.since_step = 0
        """First of those steps."""

    @property
    def is_fault(self) -> bool:
        """Whether an open finding asks for attention while the loss falls: always, since the steps are lost."""
        return True

    @property
    def cause_score(self) -> float:
        """Score of an open finding: the scaler itself shows it."""
        return CAUSE_SCORE if self.is_open else 0.0

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the first one that is skipped at a useless scale."""
        series = columns.block.series["loss_scale"]
        if not self.is_at_rest or self.recent:
            return 0
        stop = columns.first_step(series.present & columns.block.skipped & (series.values <= USELESS_SCALE))
        scales = columns.present_values("loss_scale", stop)
        self.highest_scale = max(self.highest_scale, float(np.fmax.reduce(scales, initial=-math.inf)))
        return stop

    def observe(self, view: StepView) -> None:
        """Count the skipped steps, and look at the scale."""
        scale = view.loss_scale
        if math.isnan(scale):
            return
        self.highest_scale = max(self.highest_scale, scale)
        is_lost = view.is_skipped and scale <= USELESS_SCALE
        if self.recent == 0:
            if not is_lost:
                return
            self.since_step = view.step
        self.recent = (self.recent << 1 | is_lost) & _RECENT_BITS
        share = self.recent.bit_count() / RECENT_STEPS
        if is_lost and share >= SKIPPED_SHARE:
            evidence = {"loss_scale": scale, "highest_loss_scale": self.highest_scale, "skipped_share": share}
            self.update_finding(view.step, "warning", [], evidence, since=self.since_step)
        elif share < RECOVERED_SHARE:
            self.close_finding(view.step)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain where the scale is, where it was, and how many steps are lost."""
        del layers
        evidence = finding.evidence
        return (
            f"The loss scale has fallen from {evidence['highest_loss_scale']:.4g} to {evidence['loss_scale']:.2g}, and "
            f"{evidence['skipped_share']:.0%} of the last {RECENT_STEPS} steps were skipped at a scale of 1 or below. "
            "There it enlarges nothing: what overflows is the loss or the gradient itself. Usual scales are 2^10 to "
            "2^16, with one skipped step in 2000."
        )
