"""Parts of networks, batches, and measures of skill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

Map = Callable[[Tensor], Tensor]

ACTIVATIONS: Final[dict[str, Map]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.01),
    "elu": functional.elu,
    "selu": torch.selu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": functional.hardsigmoid,
    "softsign": functional.softsign,
    "softplus": functional.softplus,
    "exp": torch.exp,
    "sin": torch.sin,
    "square": torch.square,
    "softmax": lambda x: torch.softmax(x, -1),
}


def batches(x: Tensor, y: Tensor, batch: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return a source of random batches."""

    def draw() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(x), (batch,))
        return x[chosen], y[chosen]

    return draw


def accuracy_skill(logits: Tensor, y: Tensor, classes: int) -> float:
    """Return the accuracy on a scale from 0, for the most frequent class, to 1, for a perfect answer."""
    share = float(torch.bincount(y.flatten(), minlength=classes).max()) / y.numel()
    right = float((logits.argmax(-1) == y).double().mean())
    return (right - share) / (1 - share)


def variance_skill(predicted: Tensor, y: Tensor) -> float:
    """Return the share of the variance that is explained (R squared)."""
    if not bool(torch.isfinite(predicted).all()):
        return -1e9
    residual = (predicted.double() - y.double()).square().mean()
    return float(1 - residual / (y.double() - y.double().mean(0)).square().mean())


def normalization(kind: str, width: int, dims: int = 0) -> nn.Module:
    """Make a normalization: `batch`, `layer`, `rms` or `group`, over features (`dims` 0), sequences or images."""
    match kind:
        case "batch":
            return nn.BatchNorm2d(width) if dims == 2 else nn.BatchNorm1d(width)
        case "layer":
            return nn.LayerNorm(width) if dims == 0 else nn.GroupNorm(1, width)
        case "rms":
            return nn.RMSNorm(width)
        case "group":
            return nn.GroupNorm(4, width)
        case _:
            raise ValueError(f"unknown normalization {kind!r}")
