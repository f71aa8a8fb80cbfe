"""Residual branches that start at zero."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")

ZERO = remedy("zero_residual_branches")


class Block(nn.Module):
    """A residual block whose branch, or path, is scaled, with the normalization behind the sum or none."""

    def __init__(self, *, is_normalized: bool = False, path: float = 1.0, branch: float | None = None) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 6)
        self.norm = nn.LayerNorm(6) if is_normalized else nn.Identity()
        self.path = path
        self.branch = 1.0 if branch is None else nn.Parameter(torch.tensor(branch))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both."""
        result: Tensor = self.norm(self.path * x + self.branch * self.b(torch.relu(self.a(x))))
        return result


def test_a_deep_model_starts_as_its_identity_path() -> None:
    """The first output is that of the layers outside of the branches; all other weights stay."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 6), *(Block(branch=0.7) for _ in range(6)), nn.Linear(6, 2))
    before = copy.deepcopy(model.state_dict())
    applied = apply(model, sgd(model, 0.0), ZERO)
    x = batch()
    torch.testing.assert_close(model(x), model[-1](model[0](x)))
    assert applied.places["zero_residual_branches"] == [f"{index}.b" for index in range(1, 7)]
    for name, parameter in model.state_dict().items():
        is_last = ".b." in name
        assert torch.equal(parameter, torch.zeros_like(parameter) if is_last else before[name]), name


@pytest.mark.parametrize("is_normalized", [True, False])
def test_a_scaled_path_is_a_path(is_normalized: bool) -> None:
    """A branch is found where the path beside it is scaled by a number, also in front of a normalization."""
    model = nn.Sequential(*(Block(is_normalized=is_normalized, path=1.5) for _ in range(4)))
    apply(model, sgd(model, 0.0), ZERO)
    model(batch())
    assert all(not bool(block.b.weight.any() or block.b.bias.any()) for block in model)  # type: ignore[union-attr,operator]


def test_a_branch_grows_from_zero() -> None:
    """Zero branches learn: the first step moves their last layers, and the second one the layers before."""
    model = nn.Sequential(*(Block() for _ in range(4)))
    optimizer = sgd(model)
    apply(model, optimizer, ZERO)
    weights = [model[0].a.weight.detach().clone()]  # type: ignore[union-attr,operator]
    for _ in range(2):
        step(model, optimizer, lambda m: (m(batch()) - 1).square().mean())
        weights.append(model[0].a.weight.detach().clone())  # type: ignore[union-attr,operator]
    assert bool(model[0].b.weight.any())  # type: ignore[union-attr,operator]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_a_model_without_branches_has_no_place() -> None:
    """Plain layers are not applicable after the first step."""
    model = perceptron()
    optimizer = sgd(model)
    applied = apply(model, optimizer, ZERO)
    step(model, optimizer, lambda m: m(batch()).square().mean())
    assert "fewer than 4 residual branches" in str(applied.reason_to_end())
