"""Residual branches that start small."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import Tensor, nn

from gradmedic.torch.remedies import NotApplicable

pytestmark = pytest.mark.usefixtures("one_thread")

SCALED = remedy("depth_scaled_initialization")


def encoder(layers: int = 4, *, norm_first: bool = True) -> nn.TransformerEncoder:
    """Return a transformer of torch."""
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def tokens() -> Tensor:
    """Return a batch of sequences."""
    return batch(rows=4, columns=40).reshape(4, 5, 8)


class Block(nn.Module):
    """A residual block that is written by hand, with a name that says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.drop = nn.Linear(6, 12), nn.Linear(12, 6), nn.LayerNorm(6), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the input and the branch."""
        result: Tensor = x + self.drop(self.b(torch.relu(self.a(self.norm(x)))))
        return result


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_last_layers_of_the_branches_are_scaled(norm_first: bool) -> None:
    """In a transformer of torch, the last layers of attention and perceptron are scaled by their number."""
    model = encoder(norm_first=norm_first)
    before = copy.deepcopy(model.state_dict())
    optimizer = sgd(model, 0.0)
    state = torch.get_rng_state()
    applied = apply(model, optimizer, SCALED)
    model(tokens())
    assert not torch.equal(state, torch.get_rng_state())  # dropout of the call itself
    for name, parameter in model.state_dict().items():
        is_last = name.endswith(("out_proj.weight", "linear2.weight"))
        assert torch.equal(parameter, before[name] * 8**-0.5 if is_last else before[name]), name
    assert len(applied.places["depth_scaled_initialization"]) == 8
    model(tokens())
    assert torch.equal(model.layers[0].linear2.weight, before["layers.0.linear2.weight"] * 8**-0.5)  # once


def test_dropout_is_that_of_the_control() -> None:
    """The first output differs by the weights alone: random numbers are the control's."""
    states = []
    for given in ([], [SCALED]):
        model = encoder()
        apply(model, sgd(model), *given)
        torch.manual_seed(7)
        model(tokens())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_blocks_by_hand_and_a_copy() -> None:
    """Blocks of a script's own are found by what they compute; a copy from before the first call is the same."""
    model: Any = nn.Sequential(*(Block() for _ in range(4)))
    apply(model, None, SCALED)
    copied = copy.deepcopy(model)
    before = model[0].b.weight.detach().clone()
    for each in (model, copied):
        each(batch())
        assert torch.equal(each[0].b.weight, before / 2)


class Scaled(nn.Sequential):
    """Blocks whose script scales them itself."""

    def __init__(self) -> None:
        super().__init__(*(Block() for _ in range(4)))
        with torch.no_grad():
            for block in self:
                block.b.weight /= 2  # type: ignore[operator,union-attr]


def zeros() -> nn.Module:
    """Return blocks whose branches start at zero."""
    model: Any = nn.Sequential(*(Block() for _ in range(4)))
    for block in model:
        nn.init.zeros_(block.b.weight)
    result: nn.Module = model
    return result


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (perceptron, "fewer than 4 residual branches"),
        (lambda: nn.Sequential(Block(), Block()), "fewer than 4 residual branches"),
        (Scaled, "start with small weights already"),
        (zeros, "start at zero"),
    ],
)
def test_models_with_nothing_to_scale(make: Callable[[], nn.Module], reason: str) -> None:
    """A model without residual branches, or with small ones already, is not applicable after the first step."""
    model = make()
    optimizer = sgd(model)
    applied = apply(model, optimizer, SCALED)
    step(model, optimizer, lambda m: m(batch()).square().mean())
    assert reason in str(applied.reason_to_end())


def test_trained_weights_stay() -> None:
    """After steps of the optimizer the weights were learned, and stay."""
    model = encoder()
    optimizer = sgd(model)
    step(model, optimizer, lambda m: m(tokens()).square().mean())
    with pytest.raises(NotApplicable, match="has made steps already"):
        apply(model, optimizer, SCALED)
