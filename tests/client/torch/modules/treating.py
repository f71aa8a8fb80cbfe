"""What the tests of changed modules share: a training with remedies, beside one without."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradmedic.protocol.remedies import Remedy
from gradmedic.torch.treatment import Treatment

Loss = Callable[[nn.Module], Tensor]

open_treatments: list[Treatment] = []
"""Those of the test that runs; they are closed behind it."""


def remedy(id: str, **parameters: Any) -> Remedy:
    """Return a remedy."""
    return Remedy(id=id, parameters=parameters)


def sgd(model: nn.Module, rate: float = 0.1) -> Optimizer:
    """Return the optimizer of most tests."""
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)


def treat(
    model: nn.Module, optimizer: Optimizer | None = None, *remedies: Remedy, seed: int = 0, **more: Any
) -> Treatment:
    """Apply remedies as `watch()` does."""
    optimizers: Iterable[Optimizer] = [optimizer if optimizer is not None else sgd(model)]
    treatment = Treatment(optimizers, {"": model}, remedies, seed=seed, **more)
    open_treatments.append(treatment)
    treatment.before()
    treatment.after()
    return treatment


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
