"""What a published program is: a function that builds a training, with its fault or as the repaired twin."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

Draw = Callable[[], tuple[Tensor, Tensor]]
"""Returns inputs and targets of the next batch."""


@dataclass(slots=True, kw_only=True)
class Training:
    """A training that can run."""

    models: nn.Module | Mapping[str, nn.Module]
    optimizers: torch.optim.Optimizer | list[torch.optim.Optimizer]
    step: Callable[[], Tensor]
    """Trains for one step, and returns the loss that the script logs."""
    skill: Callable[[], float]
    """Returns how good the models are in evaluation mode: 0 as good as a constant answer, 1 perfect, NaN destroyed."""
    scaler: torch.amp.GradScaler | None = None

    def final_skill(self) -> float:
        """Return the skill without a gradient, all models in evaluation mode; -inf if it is NaN."""
        models = self.models.values() if isinstance(self.models, Mapping) else (self.models,)
        for model in models:
            model.eval()
        with torch.no_grad():
            skill = self.skill()
        return skill if math.isfinite(skill) else -math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A published program."""

    id: str
    """Its row in `SOURCES.md`."""
    kind: str
    """Name of its module."""
    steps: int
    build: Callable[[bool], Training]
    """Builds the training; the argument is whether it is the twin."""


PROGRAMS: Final[dict[str, Program]] = {}
"""The programs of the modules that were imported, by id."""


def published(id: str, *, steps: int) -> Callable[[Callable[[bool], Training]], Callable[[bool], Training]]:
    """Register the decorated function as the program of a source."""

    def register(build: Callable[[bool], Training]) -> Callable[[bool], Training]:
        kind = build.__module__.rpartition(".")[2]
        PROGRAMS[id] = Program(id=id, kind=kind, steps=steps, build=build)
        return build

    return register


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    draw: Draw,
    criterion: Callable[[Tensor, Tensor], Tensor],
    skill: Callable[[], float],
    *,
    clip: float | None = None,
    warmup: int = 0,
) -> Training:
    """Return the usual loop: a batch, the loss, its gradient, an optimizer step.

    Args:
        model: is called with the batch's inputs.
        optimizer: updates the model.
        draw: returns a batch.
        criterion: the loss of outputs and targets.
        skill: see `Training`.
        clip: largest norm of the gradient.
        warmup: number of steps over which the learning rate rises from zero.
    """
    rising = (
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup)) if warmup else None
    )

    def step() -> Tensor:
        x, y = draw()
        loss = criterion(model(x), y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if rising is not None:
            rising.step()
        return loss

    return Training(models=model, optimizers=optimizer, step=step, skill=skill)


def accuracy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Callable[[], float]:
    """Return a skill: the share of right answers beyond that of the commonest class. Logits are `[..., class]`."""

    def skill() -> float:
        logits = model(x)
        if not torch.isfinite(logits).all():
            return math.nan
        right = float((logits.argmax(-1) == y).float().mean())
        commonest = float(y.flatten().bincount().max()) / y.numel()
        return (right - commonest) / (1 - commonest)

    return skill


def explained(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Callable[[], float]:
    """Return a skill: the share of the targets' variance that the outputs explain."""

    def skill() -> float:
        return 1 - float(((model(x).float() - y) ** 2).mean() / y.var(0, correction=0).mean())

    return skill


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross entropy of logits `[..., class]` and classes `[...]`."""
    return functional.cross_entropy(logits.flatten(0, -2), y.flatten())


def sgd(model: nn.Module, lr: float, momentum: float = 0.9) -> torch.optim.SGD:
    """Return SGD with momentum."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


def adam(model: nn.Module, lr: float) -> torch.optim.Adam:
    """Return Adam with its default constants."""
    return torch.optim.Adam(model.parameters(), lr=lr)
