"""A loss far above its running quantiles: a spike that comes back, or a step from which it does not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_view import StepView

WINDOW = 128
"""Losses before a spike that it is compared with, as OLMo-core does (allenai/OLMo-core, `SkipStepOptimizer`)."""
SIGMAS = 6.0
"""Standard deviations above them from which a loss is a spike: OLMo-core's rule. Ours reads the median and the median
absolute deviation, which earlier spikes do not move."""
SIGMA_OF_DEVIATION = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
TAIL = 2.0
"""A spike is also this many times as far above the median as the highest of those losses: so a noise with a heavy tail,
as rewards and single hard batches make, is none."""
FEWEST_SHARE = 0.1
"""And at least this share of the median above it: less is no trouble, however quiet the loss is."""
REFRESH = 8
"""Losses after which the threshold is computed again."""
PERSISTENCE = 3
"""Consecutive losses above the threshold that make a spike, and back below the middle that end it: one odd batch is
none."""
LONG_SPIKE = 128
"""Losses after which a spike that has not come back is a warning."""


class LossSpike(Detector):
    """The loss stands far above its last `WINDOW` values for a few steps.

    It is a note with the number of losses until it was back. It is a warning if it has not come back for long.
    """

    id = "loss_spike"
    verdict = "healthy"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "window": "window",
        "added": "added",
        "median": "median",
        "threshold": "threshold",
        "run_length": "run_length",
        "first_of_run": "first_of_run",
        "spike_losses": "spike_losses",
        "peak": "peak",
    }

    def __init__(self) -> None:
        super().__init__()
        self.window: list[float] = []
        """The last losses outside spikes, at most `WINDOW`, in a ring."""
        self.added = 0
        """Losses that were added to the window so far."""
        self.median = math.nan
        self.threshold = math.inf
        self.run_length = 0
        """Consecutive losses above the threshold; while a spike is open, those that are back."""
        self.first_of_run = 0
        """Step of the first of them."""
        self.spike_losses = 0
        """Losses since the spike began."""
        self.peak = math.nan

    def observe(self, view: StepView) -> None:
        """Compare the loss with those before it."""
        loss = view.loss
        if loss is None or not math.isfinite(loss) or view.is_skipped:
            return
        if view.has_several_streams or not view.is_loss_measure:
            return
        if self.is_open:
            self._follow(view, loss)
        elif loss > self.threshold:
            self.first_of_run = view.step if self.run_length == 0 else self.first_of_run
            self.peak = loss if self.run_length == 0 else max(self.peak, loss)
            self.run_length += 1
            if self.run_length >= PERSISTENCE:
                self.run_length, self.spike_losses = 0, PERSISTENCE
                self._report(view.step, "note")
        else:
            self.run_length = 0
            self._add(loss)

    def _add(self, loss: float) -> None:
        """Add an ordinary loss, and now and then compute the threshold again."""
        if len(self.window) < WINDOW:
            self.window.append(loss)
        else:
            self.window[self.added % WINDOW] = loss
        self.added += 1
        if len(self.window) < WINDOW or self.added % REFRESH:
            return
        ordered = sorted(self.window)
        self.median = median = ordered[WINDOW // 2]
        deviation = sorted([abs(each - median) for each in ordered])[WINDOW // 2]
        distance = max(
            SIGMAS * SIGMA_OF_DEVIATION * deviation, TAIL * (ordered[-1] - median), FEWEST_SHARE * abs(median)
        )
        self.threshold = median + distance

    def _follow(self, view: StepView, loss: float) -> None:
        """Wait for the loss to come back."""
        self.spike_losses += 1
        self.peak = max(self.peak, loss)
        self.run_length = self.run_length + 1 if loss <= (self.median + self.threshold) / 2 else 0
        if self.run_length >= PERSISTENCE:
            self._report(view.step, "note", losses_to_recover=float(self.spike_losses - PERSISTENCE))
            self.close_finding(view.step)
            self.run_length = 0
        else:
            self._report(view.step, "warning" if self.spike_losses >= LONG_SPIKE else "note")

    def _report(self, step: int, severity: str, **more: float) -> None:
        evidence = {"loss_before": self.median, "peak": self.peak, "threshold": self.threshold, **more}
        evidence["losses"] = float(self.spike_losses)
        self.update_finding(step, "warning" if severity == "warning" else "note", [], evidence, self.first_of_run)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain how high the loss rose, and whether it came back."""
        del layers
        evidence = finding.evidence
        text = (
            f"The loss rose from {evidence['loss_before']:.3g} to {evidence['peak']:.3g} at step {finding.first_step}; "
            f"up to {evidence['threshold']:.3g} is in the range of the {WINDOW} losses before."
        )
        if "losses_to_recover" in evidence:
            return f"{text} It was back after {evidence['losses_to_recover']:.0f} losses."
        return f"{text} It has not come back for {evidence['losses']:.0f} losses."
