"""Embeddings that get a part of their gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.client.torch.remedies.training import apply, perceptron, remedy, sgd, step
from torch import Tensor, nn

from gradmedic.torch.remedies import NotApplicable

pytestmark = pytest.mark.usefixtures("one_thread")

SHRINK = remedy("embedding_gradient_shrink", share=0.1)


class Language(nn.Module):
    """An embedding, a layer, and an output layer that may share the embedding's weights."""

    def __init__(self, *, is_tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.hidden, self.out = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        if is_tied:
            self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        result: Tensor = self.out(torch.tanh(self.hidden(self.embed(x))))
        return result


TOKENS = torch.arange(9)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of a loss."""
    model.zero_grad()
    model(TOKENS).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_only_the_embedding_gets_less() -> None:
    """The embedding's gradient is a tenth; the output and the other gradients stay, to the bit, also in copies."""
    plain, model = Language(), Language()
    applied = apply(model, None, SHRINK)
    assert torch.equal(plain(TOKENS), model(TOKENS))
    expected = gradients(plain)
    for each in (model, copy.deepcopy(model)):
        for name, gradient in gradients(each).items():
            torch.testing.assert_close(gradient, expected[name] * (0.1 if name == "embed.weight" else 1.0))
    assert applied.places["embedding_gradient_shrink"] == ["embed"]
    assert applied.reason_to_end() is None


def test_tied_weights_get_the_output_layers_part_in_full() -> None:
    """Of a tied weight only the part of the gradient that comes through the embedding is shrunk."""
    tied, model = Language(is_tied=True), Language(is_tied=True)
    apply(model, None, SHRINK)
    with torch.no_grad():
        untied = Language()
        untied.load_state_dict({**untied.state_dict(), **tied.state_dict()})
    parts = gradients(untied)
    torch.testing.assert_close(gradients(model)["embed.weight"], 0.1 * parts["embed.weight"] + parts["out.weight"])


def test_a_second_watch_does_not_shrink_twice() -> None:
    """With a second optimizer that is watched later, the gradient is still a tenth."""
    model: Any = Language()
    expected = gradients(model)["embed.weight"]
    apply(model, torch.optim.SGD(model.embed.parameters(), lr=0.1), SHRINK)
    apply(model, torch.optim.SGD(model.out.parameters(), lr=0.1), SHRINK)
    torch.testing.assert_close(gradients(model)["embed.weight"], 0.1 * expected)


def test_a_training() -> None:
    """The embedding moves a tenth as far under plain gradient descent."""
    moved = []
    for given in ([], [SHRINK]):
        model = Language()
        before = model.embed.weight.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        apply(model, optimizer, *given)
        step(model, optimizer, lambda m: m(TOKENS).square().mean())
        moved.append(model.embed.weight.detach() - before)
    torch.testing.assert_close(moved[1], 0.1 * moved[0], rtol=1e-3, atol=1e-7)


def test_models_without_embeddings() -> None:
    """A model without embedding, or with a frozen one, is refused."""
    frozen = Language()
    frozen.embed.requires_grad_(requires_grad=False)
    for model in (perceptron(), frozen):
        with pytest.raises(NotApplicable, match="no embedding that is trained"):
            apply(model, sgd(model), SHRINK)
