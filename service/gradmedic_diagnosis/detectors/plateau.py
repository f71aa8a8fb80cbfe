"""Slow convergence: the loss has stopped falling, without a reason in the gradients."""

from __future__ import annotations

from collections.abc import Sequence

from gradmedic_diagnosis.detectors.base import STUCK_PATIENCE, Detector, FindingState
from gradmedic_diagnosis.detectors.step_view import StepView

CONVERGED_SHARE = 0.9
"""A loss that fell by this share of its start has converged: it is no plateau."""


class Plateau(Detector):
    """The loss is stuck above a tenth of its start. A note only: there may be nothing more to learn."""

    id = "plateau"
    verdict = "healthy"

    def observe(self, view: StepView) -> None:
        """Check whether the loss is stuck."""
        progress = view.objective
        if view.loss is None or view.has_several_streams or progress.count < STUCK_PATIENCE:
            return
        if progress.fallen_share >= CONVERGED_SHARE or not view.is_stuck:
            self.close_finding(view.step)
        else:
            evidence = {"loss": progress.current, "loss_fallen": progress.fallen_share}
            self.update_finding(view.step, "note", [], evidence, since=view.step - progress.count // 2)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain the level of the loss, and how far it is below the start."""
        del layers
        level, fallen = finding.evidence["loss"], max(0.0, finding.evidence["loss_fallen"])
        return f"The loss has been flat at {level:.3g} ({fallen:.0%} below its start) for half of the run."
