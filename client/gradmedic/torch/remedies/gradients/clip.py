"""Remedies that clip gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from gradmedic.protocol.numbers import CLIP_EPSILON
from gradmedic.torch.clipping import compute_clip_coefficient
from gradmedic.torch.remedies.step_remedy import StepGradients, StepRemedy

LEAST_ROW_NORM = 1e-3
"""Least norm of a row's weights that adaptive clipping counts with (Brock et al. 2021, section 4.1). With a smaller
one, a row of zeros could never move."""


class ClipGradValue(StepRemedy):
    """Limits each element of the gradients to `clip_value`."""

    id = "clip_grad_value"
    order = 40
    needs_real_gradients = True

    def change_gradients(self, step: StepGradients) -> None:
        """Clip the elements."""
        torch._foreach_clamp_min_(step.gradients, -self.parameters["clip_value"])
        torch._foreach_clamp_max_(step.gradients, self.parameters["clip_value"])
        step.report_clipping(None)


class ClipGradNormPerLayer(StepRemedy):
    """Limits the norm of each layer's gradient to `max_norm`."""

    id = "clip_grad_norm_per_layer"
    order = 50

    def change_gradients(self, step: StepGradients) -> None:
        """Clip the norm of each gradient."""
        for gradient in step.gradients:
            gradient.mul_(compute_clip_coefficient(self.parameters["max_norm"], torch.linalg.vector_norm(gradient)))
        step.report_clipping(None)


class ClipGradNorm(StepRemedy):
    """Limits the norm of all gradients together to `max_norm` (Pascanu et al. 2013)."""

    id = "clip_grad_norm"
    order = 60

    def change_gradients(self, step: StepGradients) -> None:
        """Clip the total norm."""
        coefficient = compute_clip_coefficient(
            self.parameters["max_norm"], torch.nn.utils.get_total_norm(step.gradients)
        )
        for gradient in step.gradients:
            gradient.mul_(coefficient.to(gradient.device))
        step.report_clipping(coefficient)


class AdaptiveClip(StepRemedy):
    """Limits the norm of each row's gradient to `clipping` times the norm of the row's weights (Brock et al. 2021)."""

    id = "adaptive_clip"
    order = 70
    needs_real_gradients = True

    def change_gradients(self, step: StepGradients) -> None:
        """Clip the norm of each row."""
        for parameter, gradient in zip(step.parameters, step.gradients, strict=True):
            _clip_rows(parameter, gradient, self.parameters["clipping"])
        step.report_clipping(None)


def _clip_rows(parameter: Tensor, gradient: Tensor, clipping: float) -> None:
    """Clip the rows of one gradient in place. A vector counts as one row."""
    shape = (len(parameter), -1) if parameter.ndim > 1 else (1, -1)
    limits = parameter.reshape(shape).norm(dim=1).clamp(min=LEAST_ROW_NORM) * clipping
    norms = gradient.reshape(shape).norm(dim=1)
    factors = (limits / norms.clamp(min=CLIP_EPSILON)).clamp(max=1.0)
    gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)) if gradient.ndim > 1 else factors.reshape(()))
