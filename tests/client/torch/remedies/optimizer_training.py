"""Trainings with remedies of optimizers and gradients, and the same trainings written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from tests.client.torch.remedies.training import apply
from torch import Tensor, nn
from torch.optim import Optimizer

from gradmedic.protocol.numbers import CLIP_EPSILON
from gradmedic.protocol.remedies import Remedy
from gradmedic.torch.remedies.gradients.clip import LEAST_ROW_NORM

STEPS = 8
PARAMETERS: dict[str, dict[str, Any]] = {
    "clip_grad_norm": {"max_norm": 0.5},
    "clip_grad_value": {"clip_value": 0.05},
    "clip_grad_norm_per_layer": {"max_norm": 0.2},
    "adaptive_clip": {"clipping": 0.1},
    "limit_learning_rate": {"max_learning_rate": 0.07},
    "scale_learning_rate": {"factor": 0.3},
    "warm_up": {"steps": 5},
    "switch_optimizer": {"optimizer": "Adam", "learning_rate": 0.01},
    "weight_decay": {"weight_decay": 0.1},
    "l1_penalty": {"strength": 0.01},
    "rescale_loss_gradient": {"factor": 0.25},
    "reduce_weight_decay": {"factor": 0.1},
    "skip_nonfinite_steps": {},
}
STEP_REMEDIES = list(PARAMETERS)
"""Remedies that change the steps of any optimizer, also of plain gradient descent."""


def remedies(*ids: str) -> list[Remedy]:
    """Return remedies with the parameters of the tests."""
    return [Remedy(id=id, parameters=PARAMETERS[id]) for id in ids]


def perceptron() -> nn.Sequential:
    """Return a small model, always the same."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a training, always the same; their targets are far off."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        yield torch.randn(8, 6, generator=generator), 5 * torch.randn(8, 1, generator=generator)


def sgd(model: nn.Module) -> Optimizer:
    """Return the optimizer of most tests."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


Schedule = Callable[[Optimizer], torch.optim.lr_scheduler.LRScheduler]


def train(
    given: list[Remedy],
    make: Callable[[nn.Module], Optimizer] = sgd,
    *,
    schedule: Schedule | None = None,
    is_scheduled_first: bool = False,
    with_closure: bool = False,
) -> tuple[nn.Module, list[float]]:
    """Train with remedies; return the model and the learning rates that the script saw."""
    model = perceptron()
    optimizer = make(model)
    scheduler = schedule(optimizer) if schedule and is_scheduled_first else None
    apply(model, optimizer, *given)
    if schedule and scheduler is None:
        scheduler = schedule(optimizer)
    seen = []
    for inputs, targets in batches():

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = ((model(inputs) - targets) ** 2).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        if with_closure:
            assert optimizer.step(closure) is not None  # type: ignore[arg-type]
        else:
            closure()
            optimizer.step()
        seen.append(float(optimizer.param_groups[0]["lr"]))
        if scheduler is not None:
            scheduler.step()
    return model, seen


def train_by_hand(ids: tuple[str, ...], schedule: Callable[[int], float] = lambda _: 1.0) -> list[Tensor]:
    """Train as `train(remedies(*ids))` should, with SGD with momentum or the other optimizer written out."""
    p = {id: PARAMETERS[id] for id in ids}
    model = perceptron()
    weights = [w.detach().clone().requires_grad_() for w in model.parameters()]
    momentum: list[Tensor | None] = [None] * len(weights)
    first = [torch.zeros_like(w) for w in weights]
    second = [torch.zeros_like(w) for w in weights]
    adam_steps = 0
    for step, (inputs, targets) in enumerate(batches()):
        hidden = torch.tanh(inputs @ weights[0].T + weights[1])
        loss = ((hidden @ weights[2].T + weights[3] - targets) ** 2).mean()
        gradients = [g.clone() for g in torch.autograd.grad(loss, weights)]
        rate = 0.1 * schedule(step)
        if "limit_learning_rate" in p:
            rate = min(rate, 0.07)
        if "scale_learning_rate" in p:
            rate *= 0.3
        if "warm_up" in p:
            rate *= min(1.0, (step + 1) / 5)
        if "switch_optimizer" in p:
            rate *= 0.01 / 0.1
        if "rescale_loss_gradient" in p:
            gradients = [0.25 * g for g in gradients]
        if "skip_nonfinite_steps" in p and not all(np.isfinite(g.numpy()).all() for g in gradients):
            continue
        if "clip_grad_value" in p:
            gradients = [torch.from_numpy(np.clip(g.numpy(), -0.05, 0.05)) for g in gradients]
        if "clip_grad_norm_per_layer" in p:
            gradients = [g * min(1.0, 0.2 / (float((g**2).sum() ** 0.5) + CLIP_EPSILON)) for g in gradients]
        if "clip_grad_norm" in p:
            total = sum(float((g**2).sum()) for g in gradients) ** 0.5
            gradients = [g * min(1.0, 0.5 / (total + CLIP_EPSILON)) for g in gradients]
        if "adaptive_clip" in p:
            gradients = [clip_rows_by_hand(w.detach(), g, 0.1) for w, g in zip(weights, gradients, strict=True)]
        if "l1_penalty" in p:
            gradients = [g + 0.01 * torch.sign(w.detach()) for w, g in zip(weights, gradients, strict=True)]
        decay = 0.01 * (0.1 if "reduce_weight_decay" in p else 1.0)
        with torch.no_grad():
            adam_steps += 1
            for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
                if "weight_decay" in p and w.ndim == 2:
                    w -= rate * 0.1 * w
                g = g + decay * w
                if "switch_optimizer" in p:
                    first[i] = 0.9 * first[i] + 0.1 * g
                    second[i] = 0.999 * second[i] + 0.001 * g * g
                    mean, square = first[i] / (1 - 0.9**adam_steps), second[i] / (1 - 0.999**adam_steps)
                    w -= rate * mean / (square.sqrt() + 1e-8)
                    continue
                held = momentum[i]
                momentum[i] = held = g if held is None else 0.9 * held + g
                w -= rate * held
    return [w.detach() for w in weights]


def clip_rows_by_hand(weights: Tensor, gradient: Tensor, clipping: float) -> Tensor:
    """Clip as Brock et al. 2021 write it, row by row."""
    if weights.ndim == 1:
        bound = clipping * max(float(weights.norm()), LEAST_ROW_NORM)
        return gradient * min(1.0, bound / max(float(gradient.norm()), CLIP_EPSILON))
    rows = [clip_rows_by_hand(w.ravel(), g.ravel(), clipping) for w, g in zip(weights, gradient, strict=True)]
    return torch.stack(rows).reshape(gradient.shape)


def assert_same(model: nn.Module, expected: list[Tensor], tolerance: float = 1e-5) -> None:
    """Compare the weights of a model with those of a loop by hand."""
    for parameter, reference in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), reference, rtol=tolerance, atol=tolerance)
