"""A guard action before the step is known that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gradmedic.protocol.guards import GuardAction


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionDraft:
    """What a guard did in an optimizer's step. The `log()` that follows gives the step its number."""

    action: str
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    explanation: str

    def at(self, step: int) -> GuardAction:
        """Return the action of a step."""
        return GuardAction(
            step=step,
            action=self.action,
            reason=self.reason,
            numbers=dict(self.numbers),
            explanation=self.explanation,
        )
