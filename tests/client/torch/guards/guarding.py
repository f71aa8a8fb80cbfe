"""Trainings with a guard, without a service."""

from __future__ import annotations

from tests.client.torch.recording import Recording

from gradmedic.exceptions import UnhealthyRunError
from gradmedic.guard.policy import GuardPolicy
from gradmedic.torch.guards.begin import begin_guard
from gradmedic.torch.guards.step_guard import StepGuard

SKIP = GuardPolicy.from_choices(on_nonfinite="record", on_unhealthy="skip")
SKIP_NONFINITE = GuardPolicy.from_choices(on_nonfinite="skip", on_unhealthy="warn")
STOP = GuardPolicy.from_choices(on_nonfinite="stop", on_unhealthy="warn")


class Switch:
    """Notes why a training is to be stopped."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.has_logged = True

    def stop(self, reason: str) -> None:
        """Note a reason."""
        self.reasons.append(reason)

    def is_stopping(self) -> bool:
        """Return whether there is a reason; raise it if the script never logs."""
        if self.reasons and not self.has_logged:
            raise UnhealthyRunError(self.reasons[0], verdict="exploding", since_step=0)
        return bool(self.reasons)


_guards: list[StepGuard] = []


def guard(recording: Recording, policy: GuardPolicy, switch: Switch | None = None) -> StepGuard:
    """Guard the optimizers of a recording until the end of the test."""
    _guards.append(begin_guard(policy, switch or Switch(), recording.watch))
    return _guards[-1]


def close_guards() -> None:
    """End the guards of this test, as a run does with its own."""
    while _guards:
        _guards.pop().close()
