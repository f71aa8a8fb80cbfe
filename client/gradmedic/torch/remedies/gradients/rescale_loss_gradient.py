"""The remedy that multiplies the gradient of the loss."""

from __future__ import annotations

from typing import Final

import torch

from gradmedic.torch.remedies.step_remedy import OptimizerContext, StepGradients, StepRemedy

SCALE_INVARIANT: Final = (
    "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Rprop",
)  # fmt: skip
"""Optimizers that divide by the gradient's own scale."""


class RescaleLossGradient(StepRemedy):
    """Multiplies all gradients by `factor`."""

    id = "rescale_loss_gradient"
    order = 20

    def reason_against(self, context: OptimizerContext) -> str | None:
        """Return why a factor has no effect."""
        if (reason := super().reason_against(context)) is not None:
            return reason
        stepping = context.new_optimizer or context.name
        if stepping in SCALE_INVARIANT:
            return f"{stepping} divides by the gradient's own scale: it has no effect"
        return None

    def prepare_gradients(self, step: StepGradients) -> None:
        """Multiply the gradients."""
        torch._foreach_mul_(step.gradients, self.parameters["factor"])
