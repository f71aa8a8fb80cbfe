"""Embeddings that are drawn again."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import nn

from gradmedic.torch.remedies import NotApplicable

DRAWN = remedy("initialize_embeddings", standard_deviation=0.05)


class Model(nn.Module):
    """An embedding with a padding index, a bag, a frozen embedding and a head that shares the first one's weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.tokens, self.bag = nn.Embedding(400, 30, padding_idx=2), nn.EmbeddingBag(300, 8)
        self.fixed = nn.Embedding(5, 3).requires_grad_(False)
        self.head = nn.Linear(30, 400, bias=False)
        self.head.weight = self.tokens.weight


def test_embeddings_have_the_deviation() -> None:
    """Trained embeddings are drawn, and what shares them; padding, frozen embeddings and generators stay."""
    model = Model()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    applied = apply(model, optimizer, DRAWN)
    assert applied.places["initialize_embeddings"] == ["tokens", "bag"]
    others = torch.arange(400) != 2
    assert float(model.tokens.weight.detach()[others].std()) == pytest.approx(0.05, rel=0.03)
    assert float(model.bag.weight.detach().std()) == pytest.approx(0.05, rel=0.06)
    assert model.head.weight is model.tokens.weight
    assert torch.equal(model.tokens.weight[2], torch.zeros(30))
    assert torch.equal(model.fixed.weight, before["fixed.weight"])
    assert torch.equal(state, torch.get_rng_state())


def test_a_seed_gives_the_same_embeddings() -> None:
    """The numbers depend on the trial's seed and the parameter's name alone."""
    weights = []
    for seed in (0, 0, 1):
        model = nn.Sequential(nn.Embedding(9, 3))
        apply(model, None, DRAWN, seed=seed)
        weights.append(next(model.parameters()).detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_models_without_embeddings_and_trained_ones_are_refused() -> None:
    """A model without embeddings has no place, and trained embeddings stay."""
    with pytest.raises(NotApplicable, match="no embedding that is trained"):
        apply(perceptron(), None, DRAWN)
    model = nn.Embedding(9, 3)
    optimizer = sgd(model)
    step(model, optimizer, lambda m: m(batch().abs().long()).square().mean())
    with pytest.raises(NotApplicable, match="has made steps already"):
        apply(model, optimizer, DRAWN)
