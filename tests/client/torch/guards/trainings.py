"""Small trainings of many kinds, whose batches depend on the number of the step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from tests.client.torch.watched_models import perceptron
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler

Parameters = Iterable[Tensor]

SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]] = {
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=60),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 40),
    "function": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.95**epoch),
    "sequence": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 5), lr_scheduler.ExponentialLR(optimizer, 0.9)], [5]
    ),
}


class TiedModel(nn.Module):
    """Embeds words and predicts them with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.output = nn.Linear(6, 9, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits of shape `[8, 9]`."""
        logits: Tensor = self.output(self.embedding(inputs.argmax(1)))
        return logits


class SparseModel(nn.Module):
    """An embedding with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6, sparse=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return vectors of shape `[8, 6]`."""
        vectors: Tensor = self.embedding(inputs.argmax(1))
        return vectors


class MaskedModel(nn.Module):
    """Has a buffer with infinite elements, and one whose elements share memory."""

    mask: Tensor
    shared: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))
        self.register_buffer("shared", torch.ones(1).expand(6))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs of shape `[8, 6]`."""
        masked: Tensor = (self.inner.weight + self.mask).softmax(1)
        outputs: Tensor = functional.linear(inputs, masked, self.inner.bias) * self.shared
        return outputs


MODELS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": perceptron,
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1)),
    "tied": TiedModel,
    "masked": MaskedModel,
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), nn.Linear(4, 1)),
    "half": lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1)).bfloat16(),
}


class Training:
    """A training whose batch depends on the number of the step alone.

    Args:
        model: the model.
        optimizer: makes the optimizer of the model's parameters.
        scheduler: makes the scheduler of the optimizer.
        scaler: the loss scaler.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Parameters], torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler] | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer(model.parameters())
        self.scheduler = None if scheduler is None else scheduler(self.optimizer)
        self.scaler = scaler

    def step(self, number: int, factor: float = 1.0) -> None:
        """Train on the batch of this number; the loss is multiplied by `factor`."""
        generator = torch.Generator().manual_seed(number)
        inputs = torch.randn(8, 6, generator=generator).to(next(self.model.parameters()).dtype)

        def compute_loss() -> Tensor:
            self.optimizer.zero_grad()
            loss: Tensor = (self.model(inputs).float() ** 2).mean() * factor
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
            return loss

        if isinstance(self.optimizer, torch.optim.LBFGS):
            self.optimizer.step(compute_loss)  # type: ignore[no-untyped-call]
            return
        compute_loss()
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()

    def read(self) -> dict[str, Any]:
        """Return copies of everything that the next step starts from."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        return {name: _flatten(value) for name, value in state.items()}


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Return the numbers of nested mappings and lists by their paths; tensors become lists."""
    if isinstance(value, Tensor):
        return {path: value.detach().double().flatten().tolist()}
    if isinstance(value, dict):
        return {k: v for key, each in value.items() for k, v in _flatten(each, f"{path}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for key, each in enumerate(value) for k, v in _flatten(each, f"{path}/{key}").items()}
    return {} if callable(value) else {path: value}
