"""Remedies that add or reduce weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from gradmedic.torch.remedies.step_remedy import OptimizerContext, StepRemedy


class WeightDecay(StepRemedy):
    """Shrinks weight matrices by learning rate times `weight_decay`, as AdamW does (Loshchilov and Hutter 2019).

    Biases and other vectors stay.
    """

    id = "weight_decay"
    order = 10

    def reason_against(self, context: OptimizerContext) -> str | None:
        """Return why there is nothing to decay."""
        if (reason := super().reason_against(context)) is not None:
            return reason
        groups = context.optimizer.param_groups
        if not any(parameter.ndim >= 2 for group in groups for parameter in group["params"]):
            return "the optimizer updates no matrix"
        return None

    @torch.no_grad()
    def change_weights(self, optimizer: Optimizer) -> None:
        """Shrink the matrices."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.ndim >= 2 and parameter.requires_grad:
                    parameter.mul_(1 - group["lr"] * self.parameters["weight_decay"])


class ReduceWeightDecay(StepRemedy):
    """Multiplies the optimizer's own weight decay by `factor`."""

    id = "reduce_weight_decay"
    order = 10

    def reason_against(self, context: OptimizerContext) -> str | None:
        """Return why there is nothing to reduce."""
        if (reason := super().reason_against(context)) is not None:
            return reason
        if not any(group.get("weight_decay") for group in context.optimizer.param_groups):
            return f"{context.name} decays no weights"
        return None

    def choose_settings(self, group: Mapping[str, Any], steps_taken: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the reduced weight decay."""
        if not group.get("weight_decay"):
            return {}
        return {"weight_decay": group["weight_decay"] * float(self.parameters["factor"])}
