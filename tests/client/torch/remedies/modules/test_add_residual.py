"""Residual connections, compared with models that are written with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

RESIDUAL = remedy("add_residual")


def test_around_every_block_of_equal_shape() -> None:
    """The input of each layer is added behind its activation, except of the first layer, which changes the width."""
    model = perceptron(nn.Tanh())
    applied = apply(model, None, RESIDUAL)
    first, second, third, last = (m for m in model if isinstance(m, nn.Linear))
    x = batch()
    hidden = torch.tanh(first(x))
    for layer in (second, third):
        hidden = hidden + torch.tanh(layer(hidden))
    for _ in range(2):
        torch.testing.assert_close(model(x), last(hidden), rtol=0, atol=0)
    assert applied.places["add_residual"] == ["2", "4"]


def test_linear_layers_in_a_row() -> None:
    """Without activations each layer is a block of its own."""
    torch.manual_seed(3)
    model = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(3)))
    apply(model, None, RESIDUAL)
    x = batch()
    a, b, c = model.parameters()
    hidden = x + x @ a.T
    hidden = hidden + hidden @ b.T
    torch.testing.assert_close(model(x), hidden @ c.T)


def test_convolutions_of_equal_shape() -> None:
    """A convolution is a block if it keeps channels and size."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 4, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 2),
    )  # fmt: skip
    applied = apply(model, None, RESIDUAL)
    x = batch(columns=12).reshape(8, 2, 6)
    one = torch.relu(model[0](x))
    two = one + torch.relu(model[2](one))
    torch.testing.assert_close(model(x), model[7](torch.relu(model[4](two)).flatten(1)))
    assert applied.places["add_residual"] == ["2"]


class Functional(nn.Module):
    """Its blocks end in one shared activation, which works in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        for layer in list(self.layers)[:-1]:
            x = self.act(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


def test_a_shared_activation_ends_the_block_of_the_layer_before_it() -> None:
    """Each block gets its own input added, although one module ends all blocks; gradients are those of the sum."""
    model, x = Functional(), batch()
    apply(model, None, RESIDUAL)
    model(x).sum().backward()
    hidden = x
    weights = [p.detach().clone().requires_grad_() for p in model.parameters() if p.ndim == 2]
    for layer, weight in zip(list(model.layers)[:-1], weights, strict=False):
        hidden = hidden + torch.relu(nn.functional.linear(hidden, weight, layer.bias))  # type: ignore[arg-type]
    nn.functional.linear(hidden, weights[-1], model.layers[-1].bias).sum().backward()  # type: ignore[arg-type,no-untyped-call]
    for layer, weight in zip(model.layers, weights, strict=True):
        torch.testing.assert_close(layer.weight.grad, weight.grad)


def test_recomputed_blocks_have_exact_gradients() -> None:
    """The input of a block is also added when a checkpoint recomputes the block in the backward pass."""

    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.is_recomputed = perceptron(nn.Tanh()), True

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.inner, x, use_reentrant=False) if self.is_recomputed else self.inner(x)
            return out

    model = Recomputed()
    apply(model, None, RESIDUAL)
    found = []
    for model.is_recomputed in (True, False):
        model.zero_grad()
        model(batch()).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for recomputed, plain in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)


class Existing(nn.Module):
    """Has a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        x = self.a(x)
        out: Tensor = self.c(x + torch.relu(self.b(x)))
        return out


class Recurrent(nn.Module):
    """Calls one layer several times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        for _ in range(4):
            x = torch.tanh(self.layer(x))
        out: Tensor = self.out(x)
        return out


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), "the shape of its input"),
        (Existing, "have a residual connection already"),
        (Recurrent, "is a recurrence or shared"),
    ],
    ids=["shapes", "existing", "recurrent"],
)
def test_models_without_a_place_are_refused_with_a_reason(model: Callable[[], Any], reason: str) -> None:
    """Blocks that change the shape, have a residual connection, or are called several times are refused."""
    made = model()
    applied = apply(made, optimizer := sgd(made), RESIDUAL)
    step(made, optimizer, lambda m: m(batch()).sum())
    assert reason in str(applied.reason_to_end())
