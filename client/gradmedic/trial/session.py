"""The part of a run that only trials use: it applies the remedies and ends the script when the trial is over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from gradmedic.exceptions import TrialEnded
from gradmedic.recording.facts import check_origin
from gradmedic.trial.instructions import TrialEnvironment
from gradmedic.trial.report import ReportFile, describe_environment

if TYPE_CHECKING:
    import torch

    from gradmedic.protocol.origins import Origin
    from gradmedic.torch.origin.checked_steps import CheckedSteps
    from gradmedic.torch.remedies import AppliedRemedies
    from gradmedic.torch.trial_evaluation import TrialEvaluator
    from gradmedic.torch.watch import Watch

logger = logging.getLogger("gradmedic")

FINISH_SECONDS = 60.0
"""Seconds that the end of a trial waits for a service that is away, however short a timeout the script gives. Its
outcome depends on the steps that the service has. What is left then stays on disk, and the worker sends it."""


class TrialSession:
    """Carries out the instructions of a trial. It does nothing in a run that is no trial.

    Args:
        environment: environment variables of this process.
        finish_run: function that finishes the run before the script ends.
    """

    def __init__(self, environment: TrialEnvironment, finish_run: Callable[[], object]) -> None:
        self._instructions = environment.instructions
        self._seed = environment.seed or 0
        self._report = environment.report
        self._finish_run = finish_run
        self._applied: list[AppliedRemedies] = []
        self._last_step = -1  # within the budget
        self._evaluator: TrialEvaluator | None = None
        self._checked_steps: CheckedSteps | None = None

    @property
    def is_trial(self) -> bool:
        """Whether this process is a trial of a rerun."""
        return self._instructions is not None

    def stop_reporting(self) -> None:
        """Write no report: the first process of the training writes it."""
        self._report = ReportFile()

    def report_start(self) -> None:
        """Report versions and machine, and that no step was logged so far."""
        self._report.update(environment=describe_environment(), last_step=-1)

    def report_last_step(self, last_step: int) -> None:
        """Report the last step, before the script waits until the service has it.

        Args:
            last_step: number of the last step that the script has logged; -1 if it has logged none. A step beyond the
                budget does not count, because the service takes none.
        """
        if self._instructions is not None:
            steps = self._instructions.steps
            is_beyond = steps is not None and last_step >= steps
            self._report.update(last_step=self._last_step if is_beyond else last_step)

    def apply_remedies(
        self,
        model: torch.nn.Module | Mapping[str, torch.nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        has_scaler: bool,
    ) -> AppliedRemedies | None:
        """Apply the trial's remedies to optimizers and models, and return them; None if there are none.

        Raises:
            TrialEnded: the remedies cannot be applied.
        """
        if self._instructions is None:
            return None
        from gradmedic.torch.remedies import AppliedRemedies, NotApplicable
        from gradmedic.torch.seeding import describe_device

        models = model if isinstance(model, Mapping) else {"": model}
        device = describe_device(next(iter(models.values())))
        self._report.update(watched=True, environment={**describe_environment(), "device": device})
        if self._instructions.locate_from is not None:
            self._check_operations(models, optimizers, self._instructions.locate_from)
            return None
        if not self._instructions.remedies:
            self._keep_batches(models.values())
            return None
        try:
            applied = AppliedRemedies(
                model,
                optimizers,
                self._instructions.remedies,
                seed=self._seed,
                has_scaler=has_scaler,
            )
        except NotApplicable as reason:
            self._end_as_not_applicable(str(reason))
        self._keep_batches(models.values())
        self._applied.append(applied)
        self._report.update(
            applied=sum(remedies.optimizer_count for remedies in self._applied), not_applied=applied.not_applied
        )
        return applied

    def follow_measurement(self, watch: Watch) -> None:
        """Let the remedies of earlier calls act after a new watch has measured, where it watches their optimizers."""
        for applied in self._applied[:-1]:
            applied.follow_measurement(watch)

    def finish_step(self, loss: object) -> None:
        """Begin the next step, after the script has logged a loss or None."""
        if self._evaluator is not None:
            self._evaluator.finish_step(loss)
        if self._checked_steps is not None:
            self._checked_steps.finish_step(loss)

    def end_if_over(self, steps: int, *, is_stop_requested: bool) -> None:
        """End the script if a remedy turned out not to apply, the steps are done, or the service asked for it.

        Args:
            steps: number of steps logged so far.
            is_stop_requested: whether the service asked the run to stop.

        Raises:
            TrialEnded: the trial is over.
        """
        if self._instructions is None:
            return
        budget = self._instructions.steps
        if budget is None or steps <= budget:
            self._last_step = steps - 1
        for applied in self._applied:
            if (reason := applied.reason_to_end()) is not None:
                self._end_as_not_applicable(reason)
        if self._checked_steps is not None and self._checked_steps.end_step(steps):
            self._end("a number was not finite")
        if budget is not None and steps >= budget:
            self._end(f"its {budget} steps are done")
        if is_stop_requested:
            self._end("the service needs no more of this trial")

    def close(self) -> None:
        """Evaluate the models, and remove the remedies from the optimizers."""
        if self._checked_steps is not None:
            self._checked_steps.close()
        if self._evaluator is not None and (evaluation := self._evaluator.evaluate()) is not None:
            self._report.update(evaluation=evaluation)
        if skipped_steps := sum(applied.skipped_steps for applied in self._applied):
            self._report.update(skipped_steps=skipped_steps)
        for applied in self._applied:
            applied.close()

    def _check_operations(
        self, models: Mapping[str, torch.nn.Module], optimizers: Sequence[torch.optim.Optimizer], start: int
    ) -> None:
        """Check each operation from a step on.

        Raises:
            TrialEnded: the operations cannot be checked.
        """
        from gradmedic.torch.origin.checked_steps import CannotCheck, CheckedSteps

        if self._checked_steps is None:
            self._checked_steps = CheckedSteps(start, self._report_origin)
        try:
            self._checked_steps.watch(models, optimizers)
        except CannotCheck as reason:
            self._end_as_not_applicable(str(reason))

    def _report_origin(self, origin: Origin) -> None:
        """Report an origin, in values that the service takes."""
        self._report.update(
            origin=check_origin(origin, lambda _kind, message: logger.warning("gradmedic: %s", message))
        )

    def _keep_batches(self, models: Iterable[torch.nn.Module]) -> None:
        """Keep the last batches of models for their evaluation at the end, unless other processes train with them."""
        from gradmedic.torch.distributed import get_group_size
        from gradmedic.torch.trial_evaluation import TrialEvaluator

        if get_group_size() == 1:
            self._evaluator = self._evaluator or TrialEvaluator()
            self._evaluator.keep_batches(models)

    def _end_as_not_applicable(self, reason: str) -> NoReturn:
        self._report.update(not_applicable=reason)
        self._end(f"not applicable: {reason}")

    def _end(self, reason: str) -> NoReturn:
        self._finish_run()
        self._report.update(ended=reason)
        raise TrialEnded(reason)
