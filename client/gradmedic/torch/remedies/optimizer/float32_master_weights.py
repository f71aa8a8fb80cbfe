"""The remedy that lets an optimizer step on float32 copies of weights that have 16 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradmedic.torch.remedies.step_remedy import OptimizerContext, StepRemedy

LOW_PRECISION: Final = (torch.bfloat16, torch.float16)


class Float32MasterWeights(StepRemedy):
    """Keeps a float32 copy of each 16-bit parameter, which the optimizer steps; the parameter is the rounded copy.

    For the length of a step the parameter has the copy's memory and a float32 gradient, so that the optimizer also
    keeps its state in float32 (Micikevicius et al. 2018, Mixed precision training, section 3.1). Where a script changes
    a weight itself, the copy follows.
    """

    id = "float32_master_weights"
    order = 5  # the others change the copies

    def __init__(self, parameters: Mapping[str, Any], optimizer: Optimizer) -> None:
        super().__init__(parameters, optimizer)
        self._copies: dict[int, Tensor] = {}
        """Float32 weights by id of the parameter."""
        self._replaced: list[tuple[Tensor, Tensor, Tensor]] = []
        """While the optimizer steps: the parameters, with their own memory and gradients."""

    def reason_against(self, context: OptimizerContext) -> str | None:
        """Return why no copies are needed."""
        if (reason := super().reason_against(context)) is not None:
            return reason
        if context.new_optimizer is not None:
            return f"{context.new_optimizer} steps in place of {context.name}"
        if context.name == "LBFGS":
            return "LBFGS evaluates the model in the middle of a step"
        groups = context.optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        if any(hasattr(parameter, "device_mesh") for parameter in parameters):
            return "the parameters are sharded"
        if not any(parameter.dtype in LOW_PRECISION for parameter in parameters):
            return "the optimizer updates no parameter in bfloat16 or float16"
        return None

    def start_step(self, optimizer: Optimizer) -> None:
        """Round the copies of a step that raised."""
        self.finish_step(optimizer, is_skipped=False)

    @torch.no_grad()
    def change_weights(self, optimizer: Optimizer) -> None:
        """Give each parameter its float32 copy."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or parameter.dtype not in LOW_PRECISION:
                    continue
                weights, gradient = parameter.data, parameter.grad
                copied = self._copies.get(id(parameter))
                if copied is None or copied.shape != weights.shape or copied.device != weights.device:
                    copied = weights.float()
                else:  # what the script changed since the last step
                    copied = torch.where(copied.to(weights.dtype) == weights, copied, weights.float())
                self._copies[id(parameter)] = copied
                self._replaced.append((parameter, weights, gradient))
                parameter.grad = None
                parameter.data = copied
                parameter.grad = gradient.float()
                _widen_state(optimizer, parameter)

    @torch.no_grad()
    def finish_step(self, optimizer: Optimizer, *, is_skipped: bool) -> None:  # noqa: ARG002
        """Give each parameter its own memory again, with the rounded weights."""
        for parameter, weights, gradient in self._replaced:
            self._copies[id(parameter)] = parameter.data
            weights.copy_(parameter.data)
            parameter.grad = None
            parameter.data = weights
            parameter.grad = gradient
        self._replaced.clear()


def _widen_state(optimizer: Optimizer, parameter: Tensor) -> None:
    """Bring the optimizer's state of a parameter to float32: it was loaded, or is from before the remedy."""
    state = optimizer.state.get(parameter, {})
    for name, value in state.items():
        if isinstance(value, Tensor) and value.dtype in LOW_PRECISION:
            state[name] = value.float()
