"""Warns if the metric that `init(objective=...)` names is not logged."""

from __future__ import annotations

from collections.abc import Container

from gradmedic.protocol.runs import Objective
from gradmedic.recording.one_time_warnings import OneTimeWarnings

PATIENCE_STEPS = 100
"""Steps after which a metric should have appeared: a script that evaluates its model less often than that is rare."""


class ObjectiveCheck:
    """Looks for the metric of an objective in the steps of a run. Used by the recorder's thread.

    Args:
        objective: what counts as progress; None if it was not declared.
        warnings: take the warning.
    """

    def __init__(self, objective: Objective | None, warnings: OneTimeWarnings) -> None:
        self._metric = None if objective is None else objective.metric
        self._warnings = warnings
        self._steps = 0

    def note_step(self, metrics: Container[str]) -> None:
        """Note the names of the metrics of a step. Warn if too many steps lack the metric."""
        if self._metric is None:
            return
        if self._metric in metrics:
            self._metric = None
            return
        self._steps += 1
        if self._steps == PATIENCE_STEPS:
            self._warn(f"in the first {PATIENCE_STEPS} steps")

    def finish(self) -> None:
        """Warn if no step had the metric."""
        if self._metric is not None and self._steps:
            self._warn("by this run")

    def _warn(self, when: str) -> None:
        self._warnings.warn(
            "objective",
            f"the metric {self._metric!r} of the objective was not logged {when}; give it to log(), as in "
            f"log(loss, metrics={{{self._metric!r}: 0.5}})",
        )
