"""Applies the remedies of a trial to the models and optimizers of one `watch()`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.remedies import Remedy, remedy_errors
from gradmedic.torch.remedies.base import NotApplicable
from gradmedic.torch.remedies.module_remedies import ModuleRemedies
from gradmedic.torch.remedies.module_remedy import ModuleContext, ModuleRemedy
from gradmedic.torch.remedies.optimizer_remedies import OptimizerRemedies, StepObserver, has_remedies
from gradmedic.torch.remedies.registry import REMEDY_CLASSES
from gradmedic.torch.remedies.step_remedy import StepRemedy


class AppliedRemedies:
    """The remedies of a trial, all of which are applied to the models and optimizers of one `watch()`.

    Remedies that change modules act at once. The others begin to act with `attach_before_measurement` and
    `attach_after_measurement`, between which a `Watch` registers its own hooks.

    Args:
        model: one model, or several by name.
        optimizer: one optimizer, or several. Those that have remedies already are left out, because a script may watch
            two models of one optimizer.
        remedies: remedies of the trial. Those that only the script can carry out are left out.
        seed: seed of the trial.
        has_scaler: whether the script scales its losses dynamically itself.

    Raises:
        NotApplicable: a remedy cannot be applied to any optimizer, or to any model.
        ConfigurationError: a remedy is unknown, is named twice, or has a parameter out of range.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Module],
        optimizer: Optimizer | Iterable[Optimizer],
        remedies: Sequence[Remedy],
        *,
        seed: int = 0,
        has_scaler: bool = False,
    ) -> None:
        errors = [f"{error.path}: {error.message}" for error in remedy_errors("remedies", remedies)]
        if errors:
            raise ConfigurationError("; ".join(errors))
        models = dict(model) if isinstance(model, Mapping) else {"": model}
        if len(models) == 1:
            models = {"": next(iter(models.values()))}
        optimizers = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
        optimizers = [candidate for candidate in optimizers if not has_remedies(candidate)]
        context = ModuleContext(optimizers=optimizers, seed=seed)
        step_classes: list[tuple[type[StepRemedy], Remedy]] = []
        module_remedies: list[ModuleRemedy] = []
        for remedy in remedies:
            remedy_class = REMEDY_CLASSES.get(remedy.id)
            if remedy_class is not None and issubclass(remedy_class, StepRemedy):
                step_classes.append((remedy_class, remedy))
            elif remedy_class is not None and issubclass(remedy_class, ModuleRemedy):
                module_remedies.append(remedy_class(remedy.parameters, context))
        for module_remedy in module_remedies:
            if has_scaler and module_remedy.scales_losses:
                raise NotApplicable(f"{module_remedy.id}: the script scales its losses dynamically already")
        self._optimizer_remedies: list[OptimizerRemedies] = []
        self._module_remedies: ModuleRemedies | None = None
        self.not_applied: list[str] = []
        """Why remedies could not be applied to some of the optimizers."""
        if module_remedies and optimizers:
            self._module_remedies = ModuleRemedies(models, module_remedies)
            self._module_remedies.apply()
        for candidate in optimizers:
            step_remedies = [step_class(remedy.parameters, candidate) for step_class, remedy in step_classes]
            if self._module_remedies is not None:
                step_remedies += self._module_remedies.step_remedies(candidate)
            try:
                self._optimizer_remedies.append(OptimizerRemedies(candidate, list(models.values()), step_remedies))
            except NotApplicable as reason:
                self.not_applied.append(str(reason))
        if self.not_applied and not self._optimizer_remedies:
            self.close()
            raise NotApplicable("; ".join(dict.fromkeys(self.not_applied)))

    @property
    def optimizer_count(self) -> int:
        """Number of optimizers that the remedies are applied to."""
        return len(self._optimizer_remedies)

    @property
    def skipped_steps(self) -> int:
        """Number of optimizer steps that remedies skipped, as `skip_spikes` does."""
        return sum(remedies.skipped_steps for remedies in self._optimizer_remedies)

    @property
    def places(self) -> dict[str, list[str]]:
        """Where in the models each remedy that changes modules was applied, by its id."""
        return {} if self._module_remedies is None else self._module_remedies.places

    def attach_before_measurement(self) -> None:
        """Register the optimizers' hooks that run before those of a `Watch`."""
        for remedies in self._optimizer_remedies:
            remedies.attach_before_measurement()

    def attach_after_measurement(self, observer: StepObserver | None = None) -> None:
        """Register the optimizers' hooks that run between the measurement and the step.

        Args:
            observer: the `Watch` that measures, if there is one.
        """
        for remedies in self._optimizer_remedies:
            remedies.attach_after_measurement(observer)

    def follow_measurement(self, observer: StepObserver) -> None:
        """Act after a new observer has measured, at the steps of the optimizers that it observes."""
        for remedies in self._optimizer_remedies:
            remedies.follow_measurement(observer)

    def reason_to_end(self) -> str | None:
        """Return which remedy turned out not to be applicable, and why; None as long as none did."""
        for remedies in self._optimizer_remedies:
            if remedies.failure is not None:
                return remedies.failure
        if self._module_remedies is None:
            return None
        return self._module_remedies.reason_to_end(
            is_step_over=any(remedies.has_stepped for remedies in self._optimizer_remedies)
        )

    def close(self) -> None:
        """Leave every optimizer as it was. Models stay as they were changed."""
        for remedies in self._optimizer_remedies:
            remedies.close()
        if self._module_remedies is not None:
            self._module_remedies.close()
