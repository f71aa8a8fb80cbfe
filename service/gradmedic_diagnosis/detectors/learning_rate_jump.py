"""A learning rate that jumps, and a loss that jumps with it and does not come back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView
from gradmedic_diagnosis.loss_progress import BLOW_UP, RECENT_COUNT

RISE = 3.0
"""Factor by which the rate rises in a jump. The largest stable rate of a network is about the one at which it was
trained before (Cohen et al. 2021, section 3), and schedules that change the rate step by step do so by less."""
SPAN = 5
"""Steps within which it rises."""
SETTLED = 3
"""Steps before, and after, that must agree on the rise. Optimizers that take turns have rates that alternate."""
WATCHED_LOSSES = 50
"""Losses after a jump that may be its consequence."""
LOST_GAIN = 0.25
LOST_LEVEL = 0.1
"""Share of what the run had gained, and of its level, by which the current loss must rise, as for a `worsening` loss.
It must also rise by the range of the nine losses before the jump, which noise alone does not do to a median."""
PATIENCE = 200
"""Losses that a run has to come back to a rate that it was trained with before: after a warm restart, the loss is high
for a part of a cycle (Loshchilov and Hutter 2017, section 4), so that until then the finding is a note."""
NEW_RATE_PATIENCE = 20
"""The same where the rate is higher than any before by the factor of a jump. No restart does that."""
RECOVERED_SHARE = 0.5
"""The run has come back when the loss has risen by less than this share of what makes a finding."""
FEWEST_LOSSES = 20
"""Losses before a jump that show the level of the loss."""
CAUSE_SCORE = 0.95


class LearningRateJump(Detector):
    """The rate rises by `RISE` within `SPAN` steps, and soon after it the loss rises far beyond its noise.

    It is a note for as long as the run may come back, as after a warm restart, which returns to a rate that the run was
    trained with before. It is a warning at once if the loss blows up or becomes non-finite. A rate that rises without
    harm is no finding.
    """

    id = "learning_rate_jump"
    verdict = "healthy"
    stored_keys: ClassVar[Mapping[str, str]] = {"recent": "recent", "jump": "jump", "highest_rate": "highest_rate"}

    def __init__(self) -> None:
        super().__init__()
        self.recent: list[list[float]] = []
        """Step, rate, level of the loss, and range of the recent losses, of the last steps with a rate."""
        self.jump: dict[str, float] | None = None
        """The last jump: its `step`, the rate `before` and `after`, the `level` of the loss and the `rise` that makes a
        finding, the number of `losses` since, the last of them that was bad (`last_bad`), and how many the run has to
        come back (`patience`)."""
        self.highest_rate = 0.0
        """Highest rate before the recent ones."""

    @property
    def cause_score(self) -> float:
        """Score of an open warning."""
        is_warning = self.finding_state is not None and self.finding_state.severity == "warning"
        return CAUSE_SCORE if self.is_open and is_warning else 0.0

    def pass_over(self, columns: StepColumns) -> int:
        """Read all steps of a block without learning rates, unless a jump is followed."""
        is_silent = self.jump is None and "learning_rate" not in columns.block.series
        return len(columns) if self.is_at_rest and is_silent else 0

    def observe(self, view: StepView) -> None:
        """Look for a jump of the rate, and for what the loss does after one."""
        if self.jump is not None and view.loss is not None and not view.is_skipped:
            self._follow(view, self.jump)
        if math.isnan(view.learning_rate) or view.has_several_streams or view.progress.count < FEWEST_LOSSES:
            return
        losses = view.progress.recent_losses
        self.recent.append([view.step, view.learning_rate, view.progress.current, max(losses) - min(losses)])
        if len(self.recent) > 2 * SETTLED + SPAN:
            self.highest_rate = max(self.highest_rate, self.recent.pop(0)[1])
        if view.learning_rate > self.recent[0][1] > 0 and self.jump is None:
            self._look_for_jump(view)

    def _look_for_jump(self, view: StepView) -> None:
        """Remember a jump whose new rate has lasted for `SETTLED` steps."""
        rates = [rate for _, rate, _, _ in self.recent]
        if len(rates) < 2 * SETTLED or view.loss is None:
            return
        after = min(rates[-SETTLED:])
        for last in reversed(range(SETTLED - 1, len(rates) - SETTLED)):  # the last rate before the rise
            before = max(rates[last - SETTLED + 1 : last + 1])
            if len(rates) - SETTLED - last <= SPAN and after >= RISE * before > 0:
                _, _, level, noise = self.recent[last]
                gain = view.progress.start - level
                self.jump = {
                    "step": self.recent[last + 1][0],
                    "before": before,
                    "after": after,
                    "level": level,
                    "rise": max(LOST_GAIN * gain, LOST_LEVEL * abs(level), noise),
                    "losses": 0.0,
                    "last_bad": 0.0,
                    "patience": NEW_RATE_PATIENCE if after >= RISE * self.highest_rate else PATIENCE,
                }
                self._follow(view, self.jump)
                return

    def _follow(self, view: StepView, jump: dict[str, float]) -> None:
        """Compare the loss with its level before the jump."""
        jump["losses"] += 1
        is_finite = view.loss is not None and math.isfinite(view.loss)
        level = view.progress.current
        rise = level - jump["level"]
        is_destroyed = not is_finite or view.loss_ratio >= BLOW_UP
        has_risen = rise >= jump["rise"]
        if is_destroyed or has_risen:
            jump["last_bad"] = jump["losses"]
        if self.is_open:
            if is_destroyed or jump["losses"] >= jump["patience"]:
                self._report(view, jump, "warning")
            is_settled = jump["losses"] - jump["last_bad"] >= RECENT_COUNT
            if is_settled and rise <= RECOVERED_SHARE * jump["rise"]:
                self.close_finding(view.step)
                self._forget()
        elif is_destroyed or has_risen:
            self._report(view, jump, "warning" if is_destroyed else "note")
        elif jump["losses"] >= WATCHED_LOSSES:
            self._forget()

    def _report(self, view: StepView, jump: dict[str, float], severity: str) -> None:
        evidence = {
            "learning_rate_before": jump["before"],
            "learning_rate_after": jump["after"],
            "rise": jump["after"] / jump["before"],
            "loss_before": jump["level"],
            "loss": view.loss if view.loss is not None else math.nan,
        }
        is_warning = severity == "warning" or (self.is_open and self.cause_score > 0)
        self.update_finding(view.step, "warning" if is_warning else "note", [], evidence, since=int(jump["step"]))

    def _forget(self) -> None:
        """Drop the jump, and the rates from before it."""
        self.jump = None
        self.highest_rate = max([self.highest_rate, *(rate for _, rate, _, _ in self.recent)])
        self.recent.clear()

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain the rise of the rate and of the loss."""
        del layers
        evidence = finding.evidence
        text = (
            f"The learning rate rose {evidence['rise']:.3g}-fold at step {finding.first_step}, from "
            f"{evidence['learning_rate_before']:.3g} to {evidence['learning_rate_after']:.3g} (a warm-up rises by less "
            f"than {RISE:g} within {SPAN} steps), and the loss went from {evidence['loss_before']:.3g} to "
            f"{evidence['loss']:.3g}."
        )
        if finding.severity == "note":
            return f"{text} After a warm restart it comes back within the cycle."
        return f"{text} It has not come back. A rerun with a smaller rate or a slower rise can confirm it."
