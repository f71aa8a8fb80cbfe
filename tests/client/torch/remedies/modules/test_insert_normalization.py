"""Inserted normalization, compared with models that have the layers."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

KINDS: dict[str, Callable[[int], nn.Module]] = {
    "BatchNorm": lambda n: nn.BatchNorm1d(n, affine=False),
    "LayerNorm": lambda n: nn.LayerNorm(n, elementwise_affine=False),
    "RMSNorm": lambda n: nn.RMSNorm(n, elementwise_affine=False),
}
IN_CONVOLUTIONS: dict[str, Callable[[int], nn.Module]] = {
    "BatchNorm": lambda n: nn.BatchNorm2d(n, affine=False),
    "LayerNorm": lambda n: nn.GroupNorm(1, n, affine=False),
    "RMSNorm": lambda n: nn.RMSNorm((n, 8, 8), elementwise_affine=False),
}


def squared(model: nn.Module, x: Tensor) -> Tensor:
    """Return the squared output."""
    value: Tensor = (model(x) ** 2).sum()
    return value


def train_both(model: nn.Module, reference: nn.Module, x: Tensor, kind: str) -> None:
    """Train a model with the remedy and one that has the layers, and compare weights and evaluations."""
    apply(model, optimizer := sgd(model), remedy("insert_normalization", kind=kind))
    other = sgd(reference)
    for _ in range(4):
        step(model, optimizer, lambda m: squared(m, x))
        step(reference, other, lambda m: squared(m, x))
    for one, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.eval()(x), reference.eval()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_perceptron(kind: str) -> None:
    """Training with the remedy is training with the layer between each hidden layer and its activation."""
    model = perceptron()
    reference = nn.Sequential()
    for module in copy.deepcopy(model):
        reference.append(module)
        if isinstance(module, nn.Linear) and module.out_features == 5:
            reference.append(KINDS[kind](5))
    train_both(model, reference, batch(), kind)


@pytest.mark.parametrize("kind", IN_CONVOLUTIONS)
def test_in_a_convolutional_network(kind: str) -> None:
    """In convolutions, moments are computed of each channel, or over the channels and positions of each example."""
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for size in (2, 4):
        layers += [nn.Conv2d(size, 4, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 8 * 8, 2))
    reference = nn.Sequential()
    for module in copy.deepcopy(model):
        reference.append(module)
        if isinstance(module, nn.Conv2d):
            reference.append(IN_CONVOLUTIONS[kind](4))
    train_both(model, reference, batch(columns=2 * 8 * 8).reshape(8, 2, 8, 8), kind)


class OverTime(nn.Module):
    """Applies the same layers at every time step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output `[batch, time, unit]`."""
        out: Tensor = self.b(torch.tanh(self.a(x)))
        return out


def normalized_before(kind: str) -> nn.Sequential:
    """Return a network that is normalized already, before or behind each layer."""
    norms: list[nn.Module] = [nn.BatchNorm1d(6), nn.LayerNorm(6)]
    blocks = (
        [nn.Linear(6, 6), norms[0], nn.ReLU(), nn.Linear(6, 2)],
        [nn.LayerNorm(6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)],
        [nn.Linear(6, 6), nn.ReLU(), norms[1], nn.Linear(6, 2)],
    )
    return nn.Sequential(*blocks[("layer", "before", "behind").index(kind)])


@pytest.mark.parametrize(
    ("model", "x", "kind", "reason"),
    [
        (OverTime, batch(rows=24).reshape(4, 6, 6), "BatchNorm", "includes later ones"),
        (perceptron, batch(rows=1), "BatchNorm", "one example has no variance"),
        (lambda: normalized_before("layer"), batch(), "LayerNorm", "normalized already"),
        (lambda: normalized_before("before"), batch(), "LayerNorm", "normalized already"),
        (lambda: normalized_before("behind"), batch(), "LayerNorm", "normalized already"),
        (lambda: nn.Linear(6, 2), batch(), "LayerNorm", "no hidden layer"),
        (lambda: nn.RNN(6, 4), batch(), "LayerNorm", "no hidden layer"),
    ],
    ids=["time", "one example", "layer", "before", "behind", "output only", "recurrent"],
)
def test_models_without_a_place_are_refused_with_a_reason(
    model: Callable[[], Any], x: Tensor, kind: str, reason: str
) -> None:
    """Models over time, single examples, normalized networks and models without hidden layers are refused."""
    made = model()
    applied = apply(made, optimizer := sgd(made), remedy("insert_normalization", kind=kind))
    step(made, optimizer, lambda m: out[0].sum() if isinstance(out := m(x), tuple) else out.sum())
    assert reason in str(applied.reason_to_end())


def test_a_batch_of_one_example_ends_the_trial() -> None:
    """A batch of one example ends the trial with a reason, unless it is computed without gradients."""
    model = perceptron()
    applied = apply(model, optimizer := sgd(model), remedy("insert_normalization", kind="BatchNorm"))
    with torch.no_grad():
        model.eval()(batch(rows=1))
    model.train()
    step(model, optimizer, lambda m: squared(m, batch()))
    assert applied.reason_to_end() is None
    assert applied.places["insert_normalization"] == ["0", "2", "4"]
    step(model, optimizer, lambda m: squared(m, batch(rows=1)))
    assert "a batch has one example" in str(applied.reason_to_end())


def test_a_first_call_in_evaluation_with_one_example() -> None:
    """A model with batch normalization, called in evaluation with one example, is traced in evaluation."""
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
    applied = apply(model, optimizer := sgd(model), remedy("insert_normalization", kind="LayerNorm"))
    model.eval()(batch(rows=1))
    step(model.train(), optimizer, lambda m: squared(m, batch()))
    assert applied.reason_to_end() is None
    assert applied.places["insert_normalization"] == ["3"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_in_other_precisions(kind: str, dtype: torch.dtype) -> None:
    """The output keeps its dtype."""
    model = perceptron().to(dtype)
    applied = apply(model, optimizer := sgd(model), remedy("insert_normalization", kind=kind))
    for mode in (True, False):
        step(model.train(mode), optimizer, lambda m: squared(m, batch().to(dtype)))
    assert applied.reason_to_end() is None
    assert model(batch().to(dtype)).dtype == dtype


def test_over_time_each_row_is_normalized_by_itself() -> None:
    """Layer normalization uses no other time step: a change of the last one does not change the first."""
    model = OverTime()
    applied = apply(model, optimizer := sgd(model), remedy("insert_normalization", kind="LayerNorm"))
    x = batch(rows=24).reshape(4, 6, 6)
    step(model, optimizer, lambda m: squared(m, x))
    assert applied.reason_to_end() is None
    changed = x.clone()
    changed[:, -1] = 7.0
    assert torch.equal(model(x)[:, 0], model(changed)[:, 0])


def test_layers_with_computed_weights() -> None:
    """A layer with parametrized weights is normalized, and reasons against residual connections are not reported."""
    model = nn.Sequential(spectral_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 2))
    applied = apply(model, optimizer := sgd(model), remedy("insert_normalization", kind="LayerNorm"))
    step(model, optimizer, lambda m: squared(m, batch()))
    assert applied.places["insert_normalization"] == ["0"]
    normalized = normalized_before("layer")
    applied = apply(normalized, optimizer := sgd(normalized), remedy("insert_normalization", kind="LayerNorm"))
    step(normalized, optimizer, lambda m: squared(m, batch()))
    assert applied.reason_to_end() == "insert_normalization: the hidden layers are normalized already"


def test_attention_keeps_its_projections() -> None:
    """Queries, keys, values and terms of a residual sum are not normalized."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.q, self.k, self.v, self.out, self.up, self.down = (nn.Linear(6, 6) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            weights = torch.softmax(self.q(x) @ self.k(x).mT, -1)
            x = x + self.out(weights @ self.v(x))
            out: Tensor = x + self.down(torch.relu(self.up(x)))
            return out

    model = Attention()
    applied = apply(model, optimizer := sgd(model), remedy("insert_normalization", kind="LayerNorm"))
    step(model, optimizer, lambda m: squared(m, batch(rows=24).reshape(4, 6, 6)))
    assert applied.places["insert_normalization"] == ["up"]


def test_copies_have_the_running_moments() -> None:
    """A copy of the model, or one that was saved and loaded, evaluates with the running moments."""
    model = perceptron()
    keys = list(model.state_dict())
    apply(model, optimizer := sgd(model), remedy("insert_normalization", kind="BatchNorm"))
    for seed in range(5):
        step(model, optimizer, lambda m, seed=seed: squared(m, 3 + batch(seed)))  # type: ignore[misc]
    assert list(model.state_dict()) == keys
    model.eval()
    expected = model(batch())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        torch.testing.assert_close(other(batch()), expected, rtol=0, atol=0)
        step(other.train(), sgd(other), lambda m: squared(m, batch()))
    torch.testing.assert_close(model(batch()), expected, rtol=0, atol=0)  # the copies' training is not the model's


def saved(state: dict[str, Any]) -> Any:
    """Return a state as it is read from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("keep", [saved, copy.deepcopy])
def test_a_checkpoint_evaluates_as_it_did(keep: Callable[[Any], Any]) -> None:
    """Running moments are restored with the weights, as in a model with such layers; `state_dict()` has no new keys."""
    model = perceptron()
    reference = nn.Sequential()
    for module in copy.deepcopy(model):
        reference.append(module)
        if isinstance(module, nn.Linear) and module.out_features == 5:
            reference.append(nn.BatchNorm1d(5, affine=False))
    keys = list(model.state_dict())
    apply(model, optimizer := sgd(model), remedy("insert_normalization", kind="BatchNorm"))
    other = sgd(reference)

    def train(seeds: range) -> None:
        for seed in seeds:
            for each, its in ((model, optimizer), (reference, other)):
                step(each.train(), its, lambda m, seed=seed: squared(m, 3 + batch(seed)))  # type: ignore[misc]

    train(range(3))
    expected = model.eval()(batch())
    state, state_of_reference = keep(model.state_dict()), keep(reference.state_dict())
    train(range(3, 9))
    assert not torch.equal(model.eval()(batch()), expected)
    for _ in range(2):  # what is loaded is a copy: training does not change the checkpoint
        assert list(state) == keys
        model.load_state_dict(state)
        reference.load_state_dict(state_of_reference)
        torch.testing.assert_close(model.eval()(batch()), expected, rtol=0, atol=0)
        torch.testing.assert_close(reference.eval()(batch()), expected)
        train(range(2))
        torch.testing.assert_close(model.eval()(batch()), reference.eval()(batch()), rtol=1e-5, atol=1e-6)
    perceptron().load_state_dict(state)  # a model without the remedy takes it
    model.load_state_dict(perceptron().state_dict())  # and gives one
