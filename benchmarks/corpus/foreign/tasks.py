"""Data sets and measures of skill. A skill is 0 for a constant guess and 1 for a perfect one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs and targets, to train on and held out."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw a batch to train on."""
        index = torch.randint(len(self.x), (count,))
        return self.x[index], self.y[index]


def split(x: Tensor, y: Tensor, share: float = 0.8) -> Examples:
    """Split examples at random."""
    order = torch.randperm(len(x))
    first, rest = order[: int(share * len(x))], order[int(share * len(x)) :]
    return Examples(x[first], y[first], x[rest], y[rest])


@functools.cache
def _sklearn(name: str) -> tuple[Tensor, Tensor]:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    return torch.tensor(bunch.data, dtype=torch.float32), torch.tensor(bunch.target)


def digits() -> Examples:
    """Return handwritten digits, 64 inputs from 0 to 1 and ten classes."""
    x, y = _sklearn("digits")
    return split(x / 16, y.long())


def table(name: str) -> Examples:
    """Return a standardized table of scikit-learn: `wine`, `iris`, `breast_cancer`, `diabetes`."""
    x, y = _sklearn(name)
    x = (x - x.mean(0)) / x.std(0)
    if name == "diabetes":
        y = ((y - y.float().mean()) / y.float().std()).float()
        return split(x, y[:, None])
    return split(x, y.long())


def teacher(inputs: int, count: int = 2000, hidden: int = 12) -> Examples:
    """Return a regression whose targets are the standardized output of a random two-layer network."""
    x = torch.randn(count, inputs)
    first, second = torch.randn(inputs, hidden) / math.sqrt(inputs), torch.randn(hidden, 1)
    y = torch.tanh(2 * (x @ first)) @ second
    return split(x, (y - y.mean()) / y.std())


def clusters(classes: int, inputs: int, count: int = 2000, spread: float = 0.5) -> Examples:
    """Return classes that are two Gaussian clusters each."""
    centers = torch.randn(classes * 2, inputs)
    index = torch.randint(classes * 2, (count,))
    return split(centers[index] + spread * torch.randn(count, inputs), index % classes)


@functools.cache
def text() -> tuple[Tensor, int]:
    """Return the documentation of Python as character numbers, and the number of characters."""
    from pydoc_data.topics import topics

    content = "".join(topics[name] for name in sorted(topics))[:150_000].lower()
    characters = sorted(set(content))
    places = {character: place for place, character in enumerate(characters)}
    return torch.tensor([places[character] for character in content]), len(characters)


def windows(ids: Tensor, count: int, length: int) -> Tensor:
    """Draw windows of a sequence, `[count, length]`."""
    return ids[torch.randint(len(ids) - length, (count, 1)) + torch.arange(length)]


def accuracy(outputs: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """Return the accuracy of the largest output, as a skill."""
    classes = int(y.max()) + 1
    right = float((outputs(x).argmax(-1) == y).float().mean())
    return (right - 1 / classes) / (1 - 1 / classes)


def r2(predicted: Tensor, target: Tensor) -> float:
    """Return the share of the variance that is explained."""
    if not bool(torch.isfinite(predicted).all()):
        return -math.inf
    error = (predicted.double() - target.double()).square().mean()
    return float(1 - error / (target.double() - target.double().mean(0)).square().mean())


def nats_skill(loss: float, constant: float) -> float:
    """Return the share of a constant predictor's cross-entropy that is saved, as a skill."""
    return 1 - loss / constant


def rows(model: Any, *names: str) -> list[Any]:
    """Return the parameters of a model whose names contain one of the given texts."""
    return [parameter for name, parameter in model.named_parameters() if any(part in name for part in names)]
