"""The remedy that clips each tensor's gradient by its own running norm (Wang et al. 2025, AdaGC)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradmedic.torch.clipping import compute_clip_coefficient
from gradmedic.torch.remedies.step_remedy import StepGradients, StepRemedy

WARM_UP_STEPS = 100
"""Steps at the start in which the norm of all gradients is clipped, until the running norms are known (AdaGC,
algorithm 1)."""
SMOOTHING = 0.98
"""Weight of the past in a running norm (AdaGC, section 4)."""


class AdaptiveClipPerTensor(StepRemedy):
    """Limits each tensor's gradient to `relative_norm` times the running average of its norm.

    For the first 100 steps it limits the norm of all gradients to `max_norm`, and the running norms are the smallest
    ones seen. A norm of zero does not count: the tensor could never move again.
    """

    id = "adaptive_clip_per_tensor"
    order = 75
    needs_real_gradients = True

    def __init__(self, parameters: Mapping[str, Any], optimizer: Optimizer) -> None:
        super().__init__(parameters, optimizer)
        self._steps = 0
        self._running: dict[int, Tensor] = {}
        """Running norm by id of the parameter; infinite before the first norm that counts."""

    def change_gradients(self, step: StepGradients) -> None:
        """Clip the gradients and update the running norms."""
        self._steps += 1
        norms = torch._foreach_norm(step.gradients)
        if self._steps <= WARM_UP_STEPS:
            total = torch.linalg.vector_norm(torch.stack([norm.float().to(norms[0].device) for norm in norms]))
            coefficient = compute_clip_coefficient(self.parameters["max_norm"], total)
            for parameter, gradient, norm in zip(step.parameters, step.gradients, norms, strict=True):
                factor = coefficient.to(gradient.device)
                gradient.mul_(factor)
                running = self._read_running_norm(parameter, norm)
                clipped = norm.float() * factor
                self._running[id(parameter)] = torch.where(_counts(clipped), torch.minimum(running, clipped), running)
            step.report_clipping(coefficient)
            return
        for parameter, gradient, norm in zip(step.parameters, step.gradients, norms, strict=True):
            running = self._read_running_norm(parameter, norm)
            factor = compute_clip_coefficient(self.parameters["relative_norm"] * running, norm.float())
            gradient.mul_(factor)
            clipped = norm.float() * factor
            averaged = torch.where(running.isinf(), clipped, SMOOTHING * running + (1 - SMOOTHING) * clipped)
            self._running[id(parameter)] = torch.where(_counts(clipped), averaged, running)
        step.report_clipping(None)

    def _read_running_norm(self, parameter: Tensor, norm: Tensor) -> Tensor:
        return self._running.get(id(parameter), torch.full_like(norm, torch.inf, dtype=torch.float32))


def _counts(norm: Tensor) -> Tensor:
    return norm.isfinite() & (norm > 0)
