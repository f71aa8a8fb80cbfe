"""The remedies of a trial, as one `watch()` asks for them: those of the optimizers and those of the modules.

One idea: as a whole or not at all. What is raced under a candidate's name is all that the candidate says; a remedy that
found no place ends the trial with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.remedies import REMEDIES, Remedy, remedy_errors
from gradmedic.torch.modules.treatment import ModuleRemedies
from gradmedic.torch.remedies import NotApplicable, Observer, OptimizerRemedies, is_treated


def optimizers_of(optimizer: Optimizer | Iterable[Optimizer]) -> list[Optimizer]:
    """Return the optimizers that `watch()` was given."""
    return [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)


class Treatment:
    """The remedies of all optimizers and models that one `watch()` names.

    Args:
        optimizers: those that are treated already are left alone: a script may watch two models of one optimizer.
        models: whose parameters they update, by name.
        remedies: of the trial.
        seed: of the trial.
        has_scaler: the script scales its losses dynamically itself.

    Raises:
        NotApplicable: no optimizer, or no model, can take them.
        ConfigurationError: a remedy is unknown, named twice, or has a parameter out of range.
    """

    def __init__(
        self,
        optimizers: Iterable[Optimizer],
        models: Mapping[str, nn.Module] | Iterable[nn.Module],
        remedies: Sequence[Remedy],
        *,
        seed: int = 0,
        has_scaler: bool = False,
    ) -> None:
        errors = [f"{error.path}: {error.message}" for error in remedy_errors("remedies", remedies)]
        if errors:
            raise ConfigurationError("; ".join(errors))
        named = models if isinstance(models, Mapping) else {str(i): m for i, m in enumerate(models)}
        if len(named) == 1:
            named = {"": next(iter(named.values()))}
        if has_scaler and any(remedy.id == "scale_loss" for remedy in remedies):
            raise NotApplicable("scale_loss: the script scales its losses dynamically already")
        untreated = [optimizer for optimizer in optimizers if not is_treated(optimizer)]
        self._of_modules: ModuleRemedies | None = None
        self._surgeries: list[OptimizerRemedies] = []
        self.not_applied: list[str] = []
        """Reasons of the optimizers that were left alone."""
        changing = [remedy for remedy in remedies if REMEDIES[remedy.id].tier == 2]
        if changing and untreated:
            self._of_modules = ModuleRemedies(named, untreated, changing, seed)
            self._of_modules.apply()
        of_steps = [remedy for remedy in remedies if REMEDIES[remedy.id].tier == 1 or remedy.id == "scale_loss"]
        loss_scale = None if self._of_modules is None else self._of_modules.loss_scale
        for optimizer in untreated:
            try:
                self._surgeries.append(OptimizerRemedies(optimizer, list(named.values()), of_steps, loss_scale))
            except NotApplicable as reason:
                self.not_applied.append(str(reason))
        if self.not_applied and not self._surgeries:
            self.close()
            raise NotApplicable("; ".join(dict.fromkeys(self.not_applied)))

    @property
    def count(self) -> int:
        """How many optimizers are treated."""
        return len(self._surgeries)

    @property
    def places(self) -> dict[str, list[str]]:
        """Where in the models remedies were applied, by remedy."""
        return {} if self._of_modules is None else self._of_modules.places

    def before(self) -> None:
        """See `OptimizerRemedies.before`."""
        for surgery in self._surgeries:
            surgery.before()

    def after(self, listener: Observer | None = None) -> None:
        """See `OptimizerRemedies.after`."""
        for surgery in self._surgeries:
            surgery.after(listener)

    def reason_to_end(self) -> str | None:
        """Say which remedy turned out not to be applicable, and why; None as long as nothing is known against one."""
        for surgery in self._surgeries:
            if surgery.reason is not None:
                return surgery.reason
        if self._of_modules is None:
            return None
        return self._of_modules.reason_to_end(is_step_over=any(surgery.has_stepped for surgery in self._surgeries))

    def close(self) -> None:
        """Leave every optimizer as it was, and the models as they are."""
        for surgery in self._surgeries:
            surgery.close()
        if self._of_modules is not None:
            self._of_modules.close()
