"""A small training, to which tests apply remedies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradmedic.protocol.remedies import Remedy
from gradmedic.torch.remedies import AppliedRemedies

Loss = Callable[[nn.Module], Tensor]

open_remedies: list[AppliedRemedies] = []
"""Remedies that the running test applied. They are closed after it."""


def remedy(id: str, **parameters: Any) -> Remedy:
    """Return a remedy."""
    return Remedy(id=id, parameters=parameters)


def sgd(model: nn.Module, rate: float = 0.1) -> Optimizer:
    """Return stochastic gradient descent with momentum."""
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)


def apply(
    model: nn.Module, optimizer: Optimizer | None = None, *remedies: Remedy, seed: int = 0, **more: Any
) -> AppliedRemedies:
    """Apply remedies as `watch()` does."""
    applied = AppliedRemedies(model, optimizer if optimizer is not None else sgd(model), remedies, seed=seed, **more)
    open_remedies.append(applied)
    applied.attach_before_measurement()
    applied.attach_after_measurement()
    return applied


def step(model: nn.Module, optimizer: Optimizer, loss: Loss) -> float:
    """Make one step."""
    optimizer.zero_grad()
    value = loss(model)
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return value.item()


def perceptron(activation: nn.Module | None = None, depth: int = 3, width: int = 5) -> Any:
    """Return hidden layers of one width between 6 inputs and 2 outputs, always the same."""
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    size = 6
    for _ in range(depth):
        layers += [nn.Linear(size, width), nn.Sigmoid() if activation is None else activation]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, 2))


def batch(seed: int = 1, rows: int = 8, columns: int = 6) -> Tensor:
    """Return a batch, without touching the global generator."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
