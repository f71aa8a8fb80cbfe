"""The level of a run: the light that a person reads, from verdict, learning and open findings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS, Learning, Level, Verdict
from gradmedic_diagnosis.state import Persistent

WARNING_STEPS = 20
"""Consecutive steps for which warnings must be open before they ask for attention, and closed before they no longer do:
as many losses as a state of learning must hold (`HOLD_LOSSES`). Otherwise each spike would turn the light on."""


@dataclass(slots=True)
class LevelTracker(Persistent):
    """The level of one run, step by step."""

    is_warned: bool = False
    """Whether warnings ask for attention."""
    steps_against: int = 0
    """Consecutive steps on which the open findings disagree with that."""

    def judge(
        self,
        verdict: Verdict,
        learning: Learning,
        *,
        has_open_warning: Callable[[], bool],
        has_open_fault: Callable[[], bool],
    ) -> Level:
        """Read the next step and return the level. The two functions are called only where they matter.

        A warning is no news about a run that learns. A fault of the script is.
        """
        if verdict in UNHEALTHY_VERDICTS:
            return "critical"
        self._follow(has_warning=learning == "unknown" and has_open_warning())
        if learning in ("stuck", "worsening") or self.is_warned or has_open_fault():
            return "attention"
        return "unknown" if verdict == "undetermined" else "ok"

    def _follow(self, *, has_warning: bool) -> None:
        if has_warning == self.is_warned:
            self.steps_against = 0
            return
        self.steps_against += 1
        if self.steps_against >= WARNING_STEPS:
            self.is_warned, self.steps_against = has_warning, 0
