"""Remedies that change how an optimizer divides by the size of earlier gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from gradmedic.torch.remedies.step_remedy import OptimizerContext, StepRemedy

_OTHER_EPSILON: Final = ("Muon",)
"""Optimizers whose `eps` is not added to a second moment."""
_OTHER_BETAS: Final = ("Lion",)
"""Optimizers whose second beta belongs to no second moment."""


class OptimizerEpsilon(StepRemedy):
    """Sets the number that the optimizer adds to the denominator of its updates to `epsilon`."""

    id = "optimizer_epsilon"
    order = 10

    def reason_against(self, context: OptimizerContext) -> str | None:
        """Return why there is no other epsilon to set."""
        if (reason := super().reason_against(context)) is not None:
            return reason
        if context.new_optimizer is not None:
            return f"{context.new_optimizer} steps in place of {context.name}, with an epsilon of its own"
        groups = context.optimizer.param_groups
        if context.name in _OTHER_EPSILON or not all(_is_number(group.get("eps")) for group in groups):
            return f"{context.name} divides by no second moment to which one epsilon is added"
        if all(group["eps"] == self.parameters["epsilon"] for group in groups):
            return f"the epsilon of {context.name} is {self.parameters['epsilon']:g} already"
        return None

    def choose_settings(self, group: Mapping[str, Any], steps_taken: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the other epsilon."""
        return {"eps": float(self.parameters["epsilon"])}


class Beta2(StepRemedy):
    """Sets the second beta of Adam and its relatives to `beta2`: how long they remember the size of gradients.

    The smoothing constant of RMSprop is the same.
    """

    id = "beta2"
    order = 20

    def reason_against(self, context: OptimizerContext) -> str | None:
        """Return why there is no other second beta to set."""
        if (reason := super().reason_against(context)) is not None:
            return reason
        if context.new_optimizer is not None:
            return f"{context.new_optimizer} steps in place of {context.name}, with betas of its own"
        values = [read_beta2(context.name, group) for group in context.optimizer.param_groups]
        if any(value is None for value in values):
            return f"{context.name} averages no squared gradients by a second beta"
        if all(value == self.parameters["beta2"] for value in values):
            return f"the second beta of {context.name} is {self.parameters['beta2']:g} already"
        return None

    def choose_settings(self, group: Mapping[str, Any], steps_taken: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the other second beta."""
        value = float(self.parameters["beta2"])
        if "betas" not in group:
            return {"alpha": value}
        first, _, *others = group["betas"]
        return {"betas": (first, value, *others)}


def read_beta2(optimizer: str, group: Mapping[str, Any]) -> float | None:
    """Return the second beta of a group of an optimizer of this class name; None if it has none."""
    betas = group.get("betas")
    if optimizer not in _OTHER_BETAS and isinstance(betas, (tuple, list)) and len(betas) >= 2 and _is_number(betas[1]):
        return float(betas[1])
    if optimizer == "RMSprop" and _is_number(group.get("alpha")):
        return float(group["alpha"])
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
