"""Gradients that burst again and again: a training that is unstable, though each burst ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gradmedic.protocol.diagnosis import Severity
from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.growth_in_time import GROWTH_DECADES
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView

BURSTS = 3
"""Bursts before there is a finding: one may be a bad batch, two a coincidence."""
CALM_DECADES = GROWTH_DECADES / 2
"""Growth below which a burst is over."""
MIN_CALM_STEPS = 50
"""Calm steps after which the bursts are over, if that is also as long as they lasted: as long as a layer's baseline
looks back."""


class RecurringGrowth(Detector):
    """The gradients of the typical layer rose by a decade above its baseline, and fell again, several times.

    It is a note once the loss has fallen since the first burst: steep places on the way down do no harm, as recurrent
    networks have them.
    """

    id = "recurring_growth"
    verdict = "exploding"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "bursts": "bursts", "is_in_burst": "is_in_burst", "first_burst": "first", "last_burst": "last",
        "first_level": "first_level",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.bursts = 0
        """Bursts since the last long calm."""
        self.is_in_burst = False
        self.first_burst = 0
        """First step of the first of them."""
        self.last_burst = 0
        """Last step of the last of them."""
        self.first_level = math.nan
        """Slow average of the objective at the first of them."""

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the next burst."""
        if not self.is_at_rest or self.bursts or self.is_in_burst:
            return 0
        return columns.first_row(columns.depth_profile.typical_growth >= GROWTH_DECADES)

    def observe(self, view: StepView) -> None:
        """Count the bursts, and forget them after a long calm."""
        if view.row is None or view.is_skipped:
            return
        if view.typical_growth >= GROWTH_DECADES:
            if not self.is_in_burst:
                self.bursts += 1
                self.is_in_burst = True
                if self.bursts == 1:
                    self.first_burst = view.step
                    self.first_level = view.objective.slow_average if view.objective.count else math.nan
            self.last_burst = view.step
        elif view.typical_growth < CALM_DECADES:
            self.is_in_burst = False
        if self.bursts and view.step - self.last_burst > max(MIN_CALM_STEPS, self.last_burst - self.first_burst):
            self.bursts = 0
            self.close_finding(view.step)
        elif self.bursts >= BURSTS:
            evidence = {"bursts": float(self.bursts), "growth_decades": GROWTH_DECADES}
            is_harmless = view.measures_progress and view.objective.has_fallen_below(self.first_level)
            severity: Severity = "note" if is_harmless else "warning"
            self.update_finding(view.step, severity, view.layers_by_growth(), evidence, since=self.first_burst)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain how often the gradients burst."""
        where = f", most in {layers[0]}" if layers else ""
        return (
            f"Gradients rose to ten times their usual size and fell again {int(finding.evidence['bursts'])} times from "
            f"step {finding.first_step} on{where}: the training is unstable."
        )
