"""The remedy that lets another optimizer step in place of the script's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from gradmedic.torch.remedies.step_remedy import OptimizerContext, StepRemedy


class SwitchOptimizer(StepRemedy):
    """Updates the weights by `optimizer` with `learning_rate`.

    The script's optimizer finds no gradients and changes nothing. A schedule of the script goes on: what it multiplies
    its own learning rate by also multiplies the new one.
    """

    id = "switch_optimizer"
    order = 90

    def __init__(self, parameters: Mapping[str, Any], optimizer: Optimizer) -> None:
        super().__init__(parameters, optimizer)
        self.new_optimizer = str(parameters["optimizer"])
        self._factor = parameters["learning_rate"] / _find_base_rate(optimizer)
        self._inner: Optimizer | None = None

    def reason_against(self, context: OptimizerContext) -> str | None:
        """Return why the optimizer cannot be replaced."""
        if (reason := super().reason_against(context)) is not None:
            return reason
        if context.name == "LBFGS":
            return "LBFGS evaluates its closure several times a step, others once"
        if context.name == self.new_optimizer:
            return f"the script's optimizer is {context.name} already"
        return None

    def choose_settings(self, group: Mapping[str, Any], steps_taken: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the new learning rate: the script's, by the ratio of the two."""
        return {"lr": group["lr"] * float(self._factor)}

    def step_instead(self, optimizer: Optimizer) -> None:
        """Let the new optimizer step. It takes the groups as they are now: a script may add or reload some."""
        groups = [
            {
                "params": list(group["params"]),
                "lr": float(group["lr"]),
                "weight_decay": float(group.get("weight_decay") or 0.0),
                "maximize": bool(group.get("maximize", False)),
            }
            for group in optimizer.param_groups
        ]
        if self._inner is None:
            inner_class: Callable[..., Optimizer] = getattr(torch.optim, str(self.new_optimizer))
            self._inner = inner_class(groups, lr=groups[0]["lr"])
        inner_groups = self._inner.param_groups
        for inner_group, group in zip(inner_groups, groups, strict=False):
            inner_group.update(group)
        for group in groups[len(inner_groups) :]:
            self._inner.add_param_group(group)
        self._inner.step()


def _find_base_rate(optimizer: Optimizer) -> float:
    """Return the learning rate that the script chose: the one that a scheduler multiplies or rises to."""
    rates = [
        float(rate)
        for group in optimizer.param_groups
        if (rate := group.get("max_lr", group.get("initial_lr", group.get("lr")))) is not None
    ]
    default = optimizer.defaults.get("lr")
    return max(rates, default=0.0) or float(default or 0.0) or 1.0
