"""The remedy that scales losses dynamically, for scripts that compute in float16 without a loss scaler."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradmedic.torch.remedies.gradients.loss_scale import LossScale, share_loss_scale
from gradmedic.torch.remedies.module_remedy import ModuleRemedy
from gradmedic.torch.remedies.step_remedy import StepGradients, StepRemedy


class ScaleLoss(ModuleRemedy):
    """Scales every loss, and looks at the models to find out whether anything is computed in float16."""

    id = "scale_loss"
    needs_parameters = True
    acts_at_calls = True
    scales_losses = True

    _loss_scale: LossScale | None = None

    def start(self) -> None:
        """Scale the losses from now on."""
        self._loss_scale = share_loss_scale(self.context.optimizers)

    def step_remedies(self, optimizer: Optimizer) -> Sequence[StepRemedy]:
        """Return what finds overflows in the gradients of an optimizer."""
        return [] if self._loss_scale is None else [_ScaledGradients(self.id, self._loss_scale, optimizer)]

    def observe_call(self, part: nn.Module) -> None:
        """Find out whether a part of a model computes in float16."""
        if self._loss_scale is not None and _computes_in_float16(part):
            self._loss_scale.has_seen_float16 = True

    @property
    def failure_after_step(self) -> str | None:
        """Reason why scaling has no effect."""
        if self._loss_scale is not None and not self._loss_scale.has_seen_float16:
            return "nothing is computed in float16"
        return None

    def close(self) -> None:
        """Scale no more losses."""
        if self._loss_scale is not None:
            self._loss_scale.close()


class _ScaledGradients(StepRemedy):
    """Divides the gradients of one optimizer by the scale, and skips steps that overflowed."""

    order = 10

    def __init__(self, id: str, loss_scale: LossScale, optimizer: Optimizer) -> None:
        super().__init__({}, optimizer)
        self.id = id
        self._loss_scale = loss_scale

    def start_step(self, optimizer: Optimizer) -> None:
        """Forget whether the step before overflowed: an optimizer that is not fused accepts no `found_inf`."""
        if hasattr(optimizer, "found_inf"):
            del optimizer.found_inf

    def receive_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Divide the gradients that are still scaled."""
        self._loss_scale.unscale(parameters)

    def prepare_gradients(self, step: StepGradients) -> None:
        """Decide whether the step is skipped."""
        if step.is_first_step and _is_called_by_loss_scaler():
            self.failure = "the script scales its losses dynamically already"
        step.is_skipped = self._loss_scale.update(step.gradients)

    def finish_step(self, optimizer: Optimizer, *, is_skipped: bool) -> None:
        """Mark the step as a loss scaler marks it, so that `Watch` reads it there."""
        optimizer.found_inf = torch.tensor(float(is_skipped))  # type: ignore[attr-defined]  # as a loss scaler sets it


def _is_called_by_loss_scaler() -> bool:
    """Whether torch's own loss scaler called the step that is computed now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith("torch/amp/grad_scaler.py"):
            return True
        frame = frame.f_back
    return False


def _computes_in_float16(model: nn.Module) -> bool:
    """Whether a model computes in float16, by its parameters or by autocast."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        return False
    device = parameter.device.type
    is_cast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return is_cast or parameter.dtype == torch.float16
