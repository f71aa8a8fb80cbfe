"""Scripts of 16 bits that are computed in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import Tensor, nn

from gradmedic.torch.remedies import NotApplicable

WIDE = remedy("use_float32")


class Casting(nn.Module):
    """Computes a product of large numbers in 16 bits."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = nn.Linear(6, 6), dtype

    def forward(self, x: Tensor) -> Tensor:
        """Return products of all pairs of outputs, brought back to their size."""
        out = 300 * self.layer(x).to(self.dtype)
        product: Tensor = (out @ out.T).float() / 300**2
        return product


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16])
def test_casts_of_the_model_are_undone(cast: torch.dtype) -> None:
    """A model that casts inside of its forward computes what it computes in float32."""
    torch.manual_seed(1)
    model, exact = Casting(cast), Casting(torch.float32)
    exact.load_state_dict(model.state_dict())
    assert not torch.equal(model(batch()), exact(batch()))
    expected = exact(batch())
    applied = apply(model, None, WIDE)
    assert torch.equal(model(batch()), expected)
    applied.close()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_of_16_bits_trains_in_float32(dtype: torch.dtype) -> None:
    """Weights, inputs and targets in 16 bits train as if they had been float32, and state_dict's keys stay."""

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        value: Tensor = (model(x) - x[:, :2]).square().mean() * 1e-6
        return value

    low = perceptron().to(dtype)
    exact = copy.deepcopy(low).float()
    keys = list(low.state_dict())
    optimizer, other = sgd(low, 1e4), sgd(exact, 1e4)
    apply(low, optimizer, WIDE)
    x = batch().to(dtype)
    exact_x = torch.tensor(x.tolist())
    for _ in range(3):
        assert step(low, optimizer, lambda m: loss(m, x)) == step(exact, other, lambda m: loss(m, exact_x))
    assert all(torch.equal(one, two) for one, two in zip(low.parameters(), exact.parameters(), strict=True))
    assert list(low.state_dict()) == keys


def test_autocast_is_switched_off() -> None:
    """Under autocast the model computes in float32, until the remedy ends."""
    model = nn.Linear(6, 6)
    expected = model(batch())
    applied = apply(model, sgd(model), WIDE)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(batch()), expected)
    assert applied.places["use_float32"] == ["autocast"]
    applied.close()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(batch()).dtype == torch.bfloat16


def test_results_in_place_are_written_to_their_tensor() -> None:
    """A function that writes into a 16-bit tensor of the script still does."""
    applied = apply(nn.Linear(1, 1), None, WIDE)
    kept = torch.zeros(2, dtype=torch.float32).new_zeros(2)
    kept.add_(torch.ones(2))
    assert kept.tolist() == [1.0, 1.0]
    applied.close()
    low = torch.zeros(2, dtype=torch.float16)
    applied = apply(nn.Linear(1, 1), None, WIDE)
    same = low
    low.add_(torch.ones(2))
    low += torch.ones(2)
    low[0] = 7
    applied.close()
    assert low is same
    assert low.tolist() == [7.0, 2.0]
    assert low.dtype == torch.float16


def test_a_script_in_float32_has_no_place() -> None:
    """A script without 16 bits is not applicable after the first step."""
    model = perceptron()
    optimizer = sgd(model)
    applied = apply(model, optimizer, WIDE)
    step(model, optimizer, lambda m: m(batch()).square().mean())
    assert "computes nothing in float16 or bfloat16" in str(applied.reason_to_end())


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model in bfloat16 whose optimizer has made a step."""
    model = perceptron().bfloat16()
    optimizer = sgd(model)
    step(model, optimizer, lambda m: m(batch().bfloat16()).square().mean())
    return model, optimizer


def wrapped() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model under DataParallel."""
    model = nn.DataParallel(perceptron())
    return model, sgd(model)


@pytest.mark.parametrize(("make", "reason"), [(trained, "has a state in 16 bits"), (wrapped, "threads of its own")])
def test_what_cannot_be_widened(make: Callable[[], tuple[nn.Module, torch.optim.Optimizer]], reason: str) -> None:
    """A state of the optimizer in 16 bits, and threads that the mode does not see, are refused."""
    model, optimizer = make()
    with pytest.raises(NotApplicable, match=reason):
        apply(model, optimizer, WIDE)
