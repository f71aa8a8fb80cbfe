"""Gradients that are clipped by the running norm of each tensor."""

from __future__ import annotations

import pytest
import torch
from tests.client.torch.remedies.training import apply, perceptron, remedy
from torch import Tensor

from gradmedic.protocol.numbers import CLIP_EPSILON
from gradmedic.torch.remedies.gradients.adaptive_clip_per_tensor import SMOOTHING, WARM_UP_STEPS

pytestmark = pytest.mark.usefixtures("one_thread")

CLIP = remedy("adaptive_clip_per_tensor", relative_norm=1.05, max_norm=1.0)


def gradients(step: int) -> list[Tensor]:
    """Return the gradients of a step. After the warm-up the first tensor's gradient jumps once."""
    generator = torch.Generator().manual_seed(step)
    found = [torch.randn(p.shape, generator=generator) for p in perceptron().parameters()]
    if step == WARM_UP_STEPS + 3:
        found[0] *= 100
    return found


def test_the_gradients_are_those_of_the_papers_algorithm() -> None:
    """Each gradient that reaches the optimizer is that of AdaGC, algorithm 1, computed in float64."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    apply(model, optimizer, CLIP)
    running = [float("inf")] * len(list(model.parameters()))
    for step in range(WARM_UP_STEPS + 8):
        raw = gradients(step)
        for parameter, gradient in zip(model.parameters(), raw, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        norms = [float(gradient.double().norm()) for gradient in raw]
        total = sum(norm**2 for norm in norms) ** 0.5
        for i, (parameter, gradient) in enumerate(zip(model.parameters(), raw, strict=True)):
            if step < WARM_UP_STEPS:
                factor = min(1.0, 1.0 / (total + CLIP_EPSILON))
                running[i] = min(running[i], norms[i] * factor)
            else:
                factor = min(1.0, 1.05 * running[i] / (norms[i] + CLIP_EPSILON))
                running[i] = SMOOTHING * running[i] + (1 - SMOOTHING) * norms[i] * factor
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient * factor, rtol=1e-4, atol=1e-7)


def test_a_tensor_without_gradient_at_first_can_move_later() -> None:
    """A gradient of zero, as that of LoRA's first matrix at the first step, gives no bound of zero."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    apply(model, optimizer, CLIP)
    for step in range(WARM_UP_STEPS + 5):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if step <= WARM_UP_STEPS else torch.ones_like(parameter)
        before = model[0].weight.detach().clone()
        optimizer.step()
    assert not torch.equal(before, model[0].weight)


def test_a_gradient_that_is_not_finite_does_not_spoil_the_norms() -> None:
    """After a step with infinite gradients the running norms are those of before."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    apply(model, optimizer, CLIP)
    for step in range(WARM_UP_STEPS + 4):
        value = torch.inf if step == WARM_UP_STEPS + 2 else 1e-3
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optimizer.step()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
