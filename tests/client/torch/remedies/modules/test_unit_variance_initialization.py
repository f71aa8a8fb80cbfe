"""Initial weights that are fitted to the first batch."""

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

FITTED = remedy("unit_variance_initialization")


class Sine(nn.Module):
    """A layer of sines of a high frequency."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.phase = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sines, and keep their phases."""
        self.phase = 25 * self.linear(x) + 0.3
        return torch.sin(self.phase)


class Own(nn.Module):
    """A layer with parameters of the script's own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.shift = nn.Parameter(100 * torch.ones(6, 4)), nn.Parameter(torch.ones(4))
        self.out = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product."""
        self.out = x @ self.matrix
        return self.out + self.shift


class Residual(nn.Module):
    """A block with a branch of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 6)
        self.branch = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the input and the branch."""
        self.branch = self.b(torch.tanh(self.a(x)))
        return x + self.branch


def deviation(signal: Tensor) -> float:
    """Return the standard deviation of all elements."""
    return float(signal.detach().std(correction=0))


def test_each_signal_has_unit_variance_on_the_first_batch() -> None:
    """In a deep plain network, the outputs of all layers have unit variance, however small the weights were."""
    model = perceptron(nn.ReLU(), depth=12, width=16)
    for parameter in model.parameters():
        parameter.data *= 1e-3
    outputs: list[Tensor] = []
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    state = torch.get_rng_state()
    applied = apply(model, None, FITTED)
    model(batch(rows=64))
    assert [deviation(output) for output in outputs] == pytest.approx([1.0] * 13, rel=1e-3)
    assert torch.equal(state, torch.get_rng_state())
    assert "0.weight" in applied.places["unit_variance_initialization"]
    first = model[0].weight.detach().clone()
    model(batch(2, rows=64))
    assert torch.equal(first, model[0].weight), "only the first batch counts"


def test_what_the_activation_gets_counts() -> None:
    """A number by which the script multiplies the signal counts: the phases of sines have unit variance."""
    torch.manual_seed(1)
    model = nn.Sequential(Sine(6, 32), Sine(32, 32), nn.Linear(32, 1))
    apply(model, None, FITTED)
    model(batch(rows=64))
    assert [deviation(layer.phase) for layer in list(model)[:2]] == pytest.approx([1.0, 1.0], rel=1e-3)  # type: ignore[arg-type]


def test_parameters_of_the_scripts_own_are_fitted() -> None:
    """A matrix that is no torch layer's is found by its use; what is added to the product stays."""
    model = Own()
    apply(model, None, FITTED)
    model(batch(rows=64))
    assert deviation(model.out) == pytest.approx(1.0, rel=1e-3)
    assert torch.equal(model.shift.detach(), torch.ones(4))


def test_branches_share_one_variance() -> None:
    """Each of n residual branches has the variance 1 / n."""
    torch.manual_seed(1)
    model = nn.Sequential(*(Residual() for _ in range(9)))
    apply(model, None, FITTED)
    model(batch(rows=64))
    assert [deviation(block.branch) for block in model] == pytest.approx([1 / 3] * 9, rel=1e-3)  # type: ignore[arg-type]


class Recurrent(nn.Module):
    """A recurrence by hand: a matrix on input and state, and a vector on the state."""

    def __init__(self, *, is_vector: bool) -> None:
        super().__init__()
        self.inputs = nn.Linear(6 if is_vector else 6 + 8, 8)
        self.factor = nn.Parameter(torch.linspace(1.5, 3.0, 8)) if is_vector else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the last state of sequences `[batch, time, 6]`."""
        state = torch.zeros(len(x), 8)
        for value in x.unbind(1):
            if self.factor is None:
                state = torch.relu(self.inputs(torch.cat([value, state], 1)))
            else:
                state = torch.relu(self.inputs(value) + self.factor * state)
        return state


def test_a_recurrence_stays_bounded() -> None:
    """A matrix that is used at every step is orthogonal; a vector that multiplies the state is between 0 and 1."""
    x = batch(rows=4, columns=6 * 300).reshape(4, 300, 6)
    torch.manual_seed(1)
    for is_vector in (False, True):
        model = Recurrent(is_vector=is_vector)
        apply(model, None, FITTED)
        assert float(model(x).detach().abs().max()) < 100
        if model.factor is None:
            weight = model.inputs.weight.detach()
            torch.testing.assert_close(weight @ weight.T, torch.eye(8), rtol=1e-5, atol=1e-5)
        else:
            assert bool(((model.factor >= 0) & (model.factor <= 1)).all())


def test_a_copy_has_the_same_weights() -> None:
    """A copy from before the first call gets the weights of the original, on another batch too."""
    model: Any = perceptron(nn.ReLU(), depth=4)
    apply(model, None, FITTED)
    copied = copy.deepcopy(model)
    model(batch())
    copied(batch(2))
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), copied.parameters(), strict=True))


def test_embeddings_and_tied_weights_stay() -> None:
    """An embedding, and the output layer that shares its weights, keep them."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.hidden = nn.Embedding(9, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 9, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.relu(self.hidden(self.embedding(x))))
            return out

    model = Tied()
    before = copy.deepcopy(model.state_dict())
    apply(model, None, FITTED)
    model(torch.tensor([[1, 2, 3]]))
    assert torch.equal(model.embedding.weight, before["embedding.weight"])
    assert not torch.equal(model.hidden.weight, before["hidden.weight"])


@pytest.mark.parametrize(
    ("make", "reason"),
    [(lambda: nn.LayerNorm(6), "no linear, convolutional or recurrent layer"), (nn.Identity, "no linear")],
)
def test_a_model_without_layers_has_no_place(make: Callable[[], nn.Module], reason: str) -> None:
    """A model without layers is not applicable after the first step."""
    model = nn.Sequential(make(), nn.LayerNorm(6))
    optimizer = sgd(model)
    applied = apply(model, optimizer, FITTED)
    step(model, optimizer, lambda m: m(batch()).square().mean())
    assert reason in str(applied.reason_to_end())


def test_trained_weights_stay() -> None:
    """After steps of the optimizer the weights were learned, and stay."""
    model = perceptron()
    optimizer = sgd(model)
    step(model, optimizer, lambda m: m(batch()).square().mean())
    with pytest.raises(NotApplicable, match="has made steps already"):
        apply(model, optimizer, FITTED)
