"""The torch code of the advice makes the same change as a rerun: the tests make both and compare them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradmedic.protocol.remedies import REMEDIES, Remedy
from gradmedic.protocol.remedy_kind import Choice
from gradmedic.torch.remedies import AppliedRemedies
from gradmedic_diagnosis.snippets import write_snippet


def run_snippet(id: str, names: dict[str, Any], **parameters: str | float) -> dict[str, Any]:
    """Execute the torch code of a remedy with these names; return all names afterwards."""
    names = {"torch": torch, **names}
    exec(write_snippet(Remedy(id=id, parameters=dict(parameters)), "torch 2.13.0"), names)  # noqa: S102  # it is our own
    return names


def choices(id: str, parameter: str) -> tuple[str, ...]:
    """Return the allowed values of a parameter."""
    choice = REMEDIES[id].parameters[parameter]
    assert isinstance(choice, Choice)
    return choice.values


def treated(model: nn.Module, id: str, **parameters: Any) -> nn.Module:
    """Return the model with a remedy applied as a rerun applies it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    applied = AppliedRemedies(model, optimizer, [Remedy(id=id, parameters=parameters)])
    applied.attach_before_measurement()
    model(torch.randn(8, 6))
    applied.close()
    return model


class Mixed(nn.Module):
    """One layer of every kind that is initialized again, and an embedding, which is not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv, self.rnn = nn.Linear(40, 60), nn.Conv1d(20, 30, 3), nn.GRU(24, 24)
        self.embedding = nn.Embedding(5, 4)

    def forward(self, _: Tensor) -> None:
        """Compute nothing."""


def description(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Return the standard deviation and the largest singular value of each parameter, gates by themselves."""
    found = {}
    for name, parameter in model.named_parameters():
        pieces = parameter.detach().chunk(3) if name.startswith("rnn.") else [parameter.detach()]
        for i, piece in enumerate(pieces):
            matrix = piece.flatten(1) if piece.ndim > 1 else piece[None]
            found[f"{name}[{i}]"] = (float(piece.std()), float(torch.linalg.matrix_norm(matrix, 2)))
    return found


@pytest.mark.parametrize("scheme", choices("reinitialize", "scheme"))
def test_initialization(scheme: str) -> None:
    """Snippet and rerun give every matrix, gate by gate, the same scale, zero the biases, and keep embeddings."""
    torch.manual_seed(0)
    by_hand, by_rerun = Mixed(), Mixed()
    by_rerun.load_state_dict(by_hand.state_dict())
    embedding = by_hand.embedding.weight.detach().clone()
    run_snippet("reinitialize", {"model": by_hand}, scheme=scheme)
    treated(by_rerun, "reinitialize", scheme=scheme)
    expected = description(by_rerun)
    for name, (deviation, largest) in description(by_hand).items():
        assert deviation == pytest.approx(expected[name][0], rel=0.1), name
        assert largest == pytest.approx(expected[name][1], rel=0.25), name
    assert not by_hand.linear.bias.any()
    assert torch.equal(by_hand.embedding.weight, embedding)
    assert torch.equal(by_rerun.embedding.weight, embedding)


def perceptron(block: Callable[[nn.Linear], nn.Module]) -> nn.Sequential:
    """Return two hidden blocks and an output layer, always with the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(*(block(nn.Linear(6, 6)) for _ in range(2)), nn.Linear(6, 2))


def as_written(layer: nn.Linear) -> nn.Module:
    """Return the block of the suspect script."""
    return nn.Sequential(layer, nn.Sigmoid())


@pytest.mark.parametrize("activation", choices("replace_activation", "activation"))
def test_activations(activation: str) -> None:
    """The module that the snippet makes, in place of the hidden activations, computes what a rerun computes."""
    other = run_snippet("replace_activation", {}, activation=activation)["activation"]
    by_hand = perceptron(lambda layer: nn.Sequential(layer, other))
    x = torch.randn(8, 6)
    by_rerun = treated(perceptron(as_written), "replace_activation", activation=activation)
    torch.testing.assert_close(by_hand(x), by_rerun(x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", choices("insert_normalization", "kind"))
def test_normalization(kind: str) -> None:
    """The block that the snippet makes computes what a rerun computes."""
    given = {"n_in": 6, "n_out": 6, "activation": nn.Sigmoid()}
    by_hand = perceptron(lambda _: run_snippet("insert_normalization", given, kind=kind)["block"])
    by_rerun = treated(perceptron(as_written), "insert_normalization", kind=kind)
    for one, other in zip(linear_layers(by_hand), linear_layers(by_rerun), strict=True):
        one.load_state_dict(other.state_dict())
    x = torch.randn(8, 6)
    torch.testing.assert_close(by_hand(x), by_rerun(x), rtol=1e-4, atol=1e-5)


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """Return the linear layers, in order."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def test_residual_and_weights() -> None:
    """Snippet and rerun compute the same with residual connections, and with normalized weights."""

    class Residual(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            names = run_snippet("add_residual", {"x": x, "layer": self.layer, "activation": torch.sigmoid})
            result: Tensor = names["x"]
            return result

    x = torch.randn(8, 6)
    torch.testing.assert_close(perceptron(Residual)(x), treated(perceptron(as_written), "add_residual")(x))
    by_hand, by_rerun = perceptron(as_written), treated(perceptron(as_written), "weight_normalization")
    for layer in linear_layers(by_hand):
        run_snippet("weight_normalization", {"layer": layer})
    before = by_hand(x)
    torch.testing.assert_close(before, by_rerun(x))
    for model in (by_hand, by_rerun):  # the direction's length does not count in either
        with torch.no_grad():
            next(p for p in model.parameters() if p.shape == (6, 6)).mul_(3.0)
        torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("cell", choices("replace_recurrent_cell", "cell"))
def test_cells(cell: str) -> None:
    """The snippet's recurrent cell computes what a rerun's cell computes from the same weights."""
    names = run_snippet(
        "replace_recurrent_cell", {"input_size": 6, "hidden_size": 4, "x": torch.ones(1, 2, 6)}, cell=cell
    )
    model = nn.RNN(6, 4, batch_first=True)
    treated(model, "replace_recurrent_cell", cell=cell)
    names["rnn"].load_state_dict(model.state_dict())
    x = torch.randn(3, 5, 6)
    torch.testing.assert_close(model(x)[0], names["rnn"](x)[0])


def test_inputs() -> None:
    """Both standardize each feature: the snippet by the training set, a rerun by the first batch."""
    x = 5 + 3 * torch.randn(5000, 6)
    names = run_snippet("standardize_inputs", {"x": x, "x_train": x})
    by_hand, by_rerun = perceptron(as_written), perceptron(as_written)
    optimizer = torch.optim.SGD(by_rerun.parameters(), lr=0.1)
    AppliedRemedies(by_rerun, optimizer, [Remedy(id="standardize_inputs")])
    torch.testing.assert_close(by_hand(names["x"]), by_rerun(x), rtol=1e-3, atol=1e-3)


def test_clipped_updates() -> None:
    """The snippet's step and a rerun's step move the weights to the same place, spike included."""
    models = [perceptron(as_written) for _ in range(2)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.99)) for model in models]
    applied = AppliedRemedies(models[1], optimizers[1], [Remedy(id="clip_update", parameters={"threshold": 1.0})])
    applied.attach_before_measurement()
    applied.attach_after_measurement()
    for index in range(12):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(index))
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            ((100 if index == 10 else 1) * model(x).square().mean()).backward()
        run_snippet("clip_update", {"model": models[0], "optimizer": optimizers[0]}, threshold=1.0)
        optimizers[1].step()
    applied.close()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_forget_gates() -> None:
    """Snippet and rerun open the same gates of an LSTM."""
    torch.manual_seed(0)
    by_hand = nn.LSTM(6, 4, num_layers=2)
    by_rerun = nn.LSTM(6, 4, num_layers=2)
    by_rerun.load_state_dict(by_hand.state_dict())
    run_snippet("forget_gate_bias", {"model": by_hand}, bias=1.0)
    optimizer = torch.optim.SGD(by_rerun.parameters(), lr=0.1)
    AppliedRemedies(by_rerun, optimizer, [Remedy(id="forget_gate_bias", parameters={"bias": 1.0})])
    for (name, one), other in zip(by_hand.named_parameters(), by_rerun.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_queries_and_keys() -> None:
    """The snippet's queries and keys give the attention that a rerun computes."""
    q, k, v = torch.randn(3, 2, 4, 5, 8).unbind()

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(q * self.scale, k, v)

    names = run_snippet("qk_norm", {"q": q, "k": k})
    by_hand = nn.functional.scaled_dot_product_attention(names["q"], names["k"], v)
    model = Attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    applied = AppliedRemedies(model, optimizer, [Remedy(id="qk_norm")])
    torch.testing.assert_close(model(q, k, v), by_hand)
    applied.close()


def test_logits() -> None:
    """Snippet and rerun bound logits alike, and add the same gradient of the penalty."""
    target = torch.tensor([0, 1, 1])
    gradients = {}
    for id, parameters in (("logit_soft_cap", {"cap": 2.0}), ("z_loss", {"strength": 0.1})):
        for is_rerun in (False, True):
            torch.manual_seed(0)
            model = nn.Linear(6, 2)
            x = 5 * torch.randn(3, 6)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            applied = AppliedRemedies(
                model, optimizer, [Remedy(id=id, parameters=dict(parameters))] if is_rerun else []
            )
            logits = model(x)
            if not is_rerun and id == "logit_soft_cap":
                logits = run_snippet(id, {"logits": logits}, **parameters)["logits"]
            loss = nn.functional.cross_entropy(logits, target)
            if not is_rerun and id == "z_loss":
                loss = run_snippet(id, {"loss": loss, "logits": logits}, **parameters)["loss"]
            gradients[id, is_rerun] = torch.autograd.grad(loss, model.weight)[0]
            applied.close()
        torch.testing.assert_close(gradients[id, False], gradients[id, True])


def test_embeddings() -> None:
    """Snippet and rerun let the same share of the gradient into an embedding."""
    torch.manual_seed(0)
    model = nn.Embedding(5, 4)
    tokens = torch.arange(5)
    by_hand = run_snippet("embedding_gradient_shrink", {"x": model(tokens)}, share=0.1)["x"]
    expected = torch.autograd.grad(by_hand.square().sum(), model.weight)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    applied = AppliedRemedies(model, optimizer, [Remedy(id="embedding_gradient_shrink", parameters={"share": 0.1})])
    torch.testing.assert_close(torch.autograd.grad(model(tokens).square().sum(), model.weight)[0], expected)
    applied.close()
