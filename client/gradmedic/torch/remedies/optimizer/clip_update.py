"""The remedy that clips the update of Adam and its relatives, tensor by tensor (Wortsman et al. 2023, StableAdamW)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradmedic.torch.remedies.optimizer.second_moment import read_beta2
from gradmedic.torch.remedies.step_remedy import OptimizerContext, StepRemedy

_LEAST_SQUARE = 1e-30
"""Lower bound of a squared gradient's average that another number is divided by."""


class ClipUpdate(StepRemedy):
    """Divides the learning rate of each tensor by `max(1, RMS / threshold)`.

    RMS is the root mean square of the gradient over the root of its corrected second moment. It is about 1 as long as
    gradients are as large as before, and larger where the second moment is out of date. The update is proportional to
    the learning rate, decay included, so a part of it is taken back after the step. An update that is within the bound
    stays as it is, to the bit.
    """

    id = "clip_update"
    order = 60

    def __init__(self, parameters: Mapping[str, Any], optimizer: Optimizer) -> None:
        super().__init__(parameters, optimizer)
        self._before: list[tuple[Tensor, Tensor]] = []
        """Parameters of the step, and copies of their weights before it."""

    def reason_against(self, context: OptimizerContext) -> str | None:
        """Return why the optimizer has no second moment."""
        if (reason := super().reason_against(context)) is not None:
            return reason
        if context.new_optimizer is not None:
            return f"{context.new_optimizer} steps in place of {context.name}"
        if any("betas" not in group or read_beta2(context.name, group) is None
               for group in context.optimizer.param_groups):  # fmt: skip
            return f"{context.name} keeps no second moment as Adam does"
        return None

    def start_step(self, optimizer: Optimizer) -> None:  # noqa: ARG002
        """Forget a step that raised."""
        self._before.clear()

    @torch.no_grad()
    def change_weights(self, optimizer: Optimizer) -> None:
        """Copy the weights."""
        self._before = [
            (parameter, parameter.detach().clone())
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]

    @torch.no_grad()
    def finish_step(self, optimizer: Optimizer, *, is_skipped: bool) -> None:
        """Take back the part of each update that is beyond the bound."""
        before, self._before = self._before, []
        if is_skipped:
            return
        groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
        for parameter, weights in before:
            group = groups[id(parameter)]
            square = _read_second_moment(optimizer, group, parameter)
            if square is None:
                self.failure = f"{type(optimizer).__name__} keeps no second moment under the names of torch's Adam"
                return
            gradient = parameter.grad
            if gradient is None:
                continue
            if group.get("weight_decay") and _adds_decay_to_gradient(optimizer, group):
                gradient = gradient.add(weights, alpha=float(group["weight_decay"]))
            floor = max(float(group.get("eps") or 0.0) ** 2, _LEAST_SQUARE)
            wide = gradient.abs().to(torch.promote_types(square.dtype, torch.float32))
            rms = (wide.square() / square.to(wide.dtype).clamp(min=floor)).mean().sqrt()
            share_taken_back = 1 - 1 / (rms / self.parameters["threshold"]).clamp(min=1.0)
            # Of a share of 0 nothing changes. A share that is NaN would destroy what is finite.
            parameter.lerp_(weights, share_taken_back.nan_to_num(0.0).to(parameter.dtype))


def _read_second_moment(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> Tensor | None:
    """Return Adam's second moment of a parameter after a step, corrected for its start at zero; None without one."""
    state = optimizer.state.get(parameter, {})
    square = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
    steps = state.get("step", group.get("step"))
    if not isinstance(square, Tensor) or square.shape != parameter.shape or steps is None:
        return None
    corrected: Tensor = square / (1 - group["betas"][1] ** steps)
    return corrected


def _adds_decay_to_gradient(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    """Whether weight decay is part of the gradient that the second moment averages, as in Adam and not in AdamW."""
    return type(optimizer).__name__ in ("Adam", "NAdam", "RAdam") and not group.get("decoupled_weight_decay")
