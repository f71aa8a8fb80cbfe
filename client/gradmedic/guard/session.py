"""The guards of a run, which act in the steps of its optimizers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from gradmedic.configuration import Configuration
from gradmedic.exceptions import UnhealthyRunError
from gradmedic.guard.policy import GuardPolicy
from gradmedic.protocol.guards import GuardAction
from gradmedic.recording.events import VerdictEvent

if TYPE_CHECKING:
    from gradmedic.torch.guards.rewinding import Rewinder
    from gradmedic.torch.guards.step_guard import StepGuard
    from gradmedic.torch.watch import Watch

logger = logging.getLogger("gradmedic")


class GuardSession:
    """Carries out what the owner of a run allows guards to do. Used by the training thread.

    Args:
        configuration: the arguments of `gradmedic.init()`.
        url: page of the run, for people.
        find_last_step: function that returns the number of the last step that was logged.
        go_back: function that lets the run go on behind a step; it takes the step and the guard's action.
    """

    def __init__(
        self,
        configuration: Configuration,
        url: str,
        find_last_step: Callable[[], int],
        go_back: Callable[[int, GuardAction], None],
    ) -> None:
        self.policy = GuardPolicy.from_choices(
            on_nonfinite=configuration.on_nonfinite, on_unhealthy=configuration.on_unhealthy
        )
        """What guards may do."""
        self._url = url
        self._find_last_step = find_last_step
        self._go_back = go_back
        self._configuration = configuration
        self.rewind_callbacks: list[Callable[[int], object]] = []
        """Functions that are called with the step after each rewind."""
        self._rewinder: Rewinder | None = None
        self._guards: list[StepGuard] = []
        self._stop_reason: str | None = None
        self._has_logged = False

    def attach(self, watch: Watch) -> None:
        """Guard the optimizers of a watch from now on. Called in every process, after the watch has begun to measure.

        Args:
            watch: a watch. In a process that does not measure, it has not begun.
        """
        if not self.policy.is_active:
            return
        from gradmedic.torch.guards.begin import begin_guard  # needs torch

        for guard in self._guards:
            if any(mine is other for mine in guard.optimizers for other in watch.optimizers):
                guard.close()  # in a process that does not measure, nothing else ends it
        self._guards = [guard for guard in self._guards if not guard.is_over]
        guard = begin_guard(self.policy, self, watch)
        self._guards.append(guard)
        if self.policy.rewinds:
            if self._rewinder is None:
                from gradmedic.torch.guards.rewinding import begin_rewinder

                self._rewinder = begin_rewinder(self._configuration, self._go_back, self.rewind_callbacks)
            self._rewinder.watch(watch, guard)

    def forget_after(self, step: int) -> None:
        """Forget the states of the training after a step: the script has gone back to a checkpoint of its own."""
        if self._rewinder is not None:
            self._rewinder.forget_after(step)

    def note_verdict(self, event: VerdictEvent) -> None:
        """Note that the service's verdict has become unhealthy."""
        if self._rewinder is not None:
            self._rewinder.note_verdict(event)

    def end_step(self, step: int, loss: object) -> None:
        """End a step of the run, after it was recorded: perhaps keep the state of the training, or go back to one.

        Args:
            step: number of the step.
            loss: what `log()` was given as the loss.
        """
        if self._rewinder is None:
            return
        try:
            self._rewinder.end_step(step, loss)
        except Exception as error:
            self._end_rewinder()
            logger.warning("gradmedic: this training is no longer rewound: %r", error)

    def clip(self, max_norm: float) -> None:
        """Limit the norm of the gradients from the next update on."""
        for guard in self._guards:
            guard.clip(max_norm)

    def stop(self, reason: str) -> None:
        """Let the next `log()` raise `UnhealthyRunError`; until then no step is taken.

        Args:
            reason: the sentence, without a full stop.
        """
        self._stop_reason = self._stop_reason or reason

    def is_stopping(self) -> bool:
        """Return whether the training is about to be stopped.

        Raises:
            UnhealthyRunError: it is, and the script has never called `log()`, which would raise this.
        """
        if self._stop_reason is not None and not self._has_logged:
            self._raise()
        return self._stop_reason is not None

    def raise_error(self) -> None:
        """Raise the exception that ends the training, if there is one. Called at the end of each `log()`.

        Raises:
            UnhealthyRunError: a gradient was not finite, and `init(on_nonfinite="stop")` asked to stop.
        """
        self._has_logged = True
        if self._stop_reason is not None:
            self._raise()

    def close(self) -> None:
        """Leave every optimizer as it was."""
        self._end_rewinder()
        while self._guards:
            self._guards.pop().close()

    def _end_rewinder(self) -> None:
        if self._rewinder is not None:
            self._rewinder.close()
            self._rewinder = None

    def _raise(self) -> None:
        reason, self._stop_reason = self._stop_reason, None
        raise UnhealthyRunError(
            f'{reason}. The step was not taken, because of on_nonfinite="stop". See {self._url}',
            verdict="exploding",
            since_step=max(0, self._find_last_step()),
        )
