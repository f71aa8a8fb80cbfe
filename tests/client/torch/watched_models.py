"""Small models and optimizers for the tests of `Watch`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def norm(tensor: object) -> float:
    """Return the L2 norm in float64, by numpy."""
    assert isinstance(tensor, Tensor)
    return float(np.linalg.norm(tensor.detach().double().numpy().ravel()))


def arrays(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Return copies of the parameters."""
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def backward(model: nn.Module, scale: float = 1.0) -> Tensor:
    """Compute gradients of a loss on a random batch."""
    inputs = torch.randn(8, next(model.parameters()).shape[-1])
    loss: Tensor = (model(inputs) ** 2).mean() * scale
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def perceptron() -> nn.Sequential:
    """Return a small model with hidden layers."""
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd foreach": lambda p: torch.optim.SGD(p, lr=0.1, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}
