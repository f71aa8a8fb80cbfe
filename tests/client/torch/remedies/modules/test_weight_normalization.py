"""Normalized weights, compared with torch's own parametrization."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from gradmedic.torch.remedies import NotApplicable
from gradmedic.torch.remedies.modules.weight_normalization import GAIN

NORMALIZE = remedy("weight_normalization")


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_it_trains_as_torchs_own(name: str) -> None:
    """Training with the remedy is training with `torch.nn.utils.parametrizations.weight_norm` on every layer."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 2))
    reference = copy.deepcopy(model)
    for i in (0, 3, 5):
        weight_norm(reference[i])
    optimizer, other = (getattr(torch.optim, name)(m.parameters(), lr=0.05) for m in (model, reference))
    applied = apply(model, optimizer, NORMALIZE)
    x = batch(columns=12).reshape(8, 2, 6)
    torch.testing.assert_close(model(x), reference(x))
    for _ in range(10):
        one = step(model, optimizer, lambda m: (m(x) - 1).square().sum())
        expected = step(reference, other, lambda m: (m(x) - 1).square().sum())
        assert one == pytest.approx(expected, rel=1e-3)
    assert applied.places["weight_normalization"] == ["0", "3", "5"]


def test_the_gain_joins_the_group_of_its_weight() -> None:
    """The optimizer has as many groups as before, and each gain is in the group of its weight."""
    model = perceptron()
    optimizer = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[2:].parameters()}], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda _: 0.5, lambda _: 0.25])
    apply(model, optimizer, NORMALIZE)
    assert model[0].get_parameter(GAIN) is optimizer.param_groups[0]["params"][-1]
    assert len(optimizer.param_groups) == 2
    before = model[0].get_parameter(GAIN).detach().clone()
    step(model, optimizer, lambda m: m(batch()).square().sum())
    scheduler.step()
    assert not torch.equal(before, model[0].get_parameter(GAIN))


def test_an_optimizer_with_parameter_names() -> None:
    """In an optimizer with names, the gain has a name too."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    apply(model, optimizer, NORMALIZE)
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(dict(model.named_parameters())[n]) for n in group["param_names"]]


def test_checkpoints_from_before_and_after() -> None:
    """States from before and after the remedy restore what the model computed, and so do files and copies."""
    model = perceptron()
    before, expected = copy.deepcopy(model.state_dict()), model(batch())
    apply(model, optimizer := sgd(model), NORMALIZE)
    step(model, optimizer, lambda m: m(batch()).square().sum())
    after, trained = copy.deepcopy(model.state_dict()), model(batch())
    model.load_state_dict(before)
    torch.testing.assert_close(model(batch()), expected)
    model.load_state_dict(after)
    torch.testing.assert_close(model(batch()), trained)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        torch.testing.assert_close(other(batch()), trained)


def test_attention_in_evaluation() -> None:
    """In evaluation, attention does not use its fast path, which ignores the normalized weights."""
    torch.manual_seed(3)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    apply(model, None, NORMALIZE)
    with torch.no_grad():
        model.linear1.get_parameter(GAIN).mul_(2.0)
        x = batch(rows=10, columns=8).reshape(2, 5, 8)
        torch.testing.assert_close(model.eval()(x), model.train()(x))


def test_weights_that_cannot_be_normalized_are_refused_with_a_reason() -> None:
    """Shared weights and rows of zeros stay; a model that has only such weights is refused."""
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    with pytest.raises(NotApplicable, match="no linear layer or convolution"):
        apply(tied, sgd(tied), NORMALIZE)
    zero: Any = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    nn.init.zeros_(zero[0].weight)
    assert apply(zero, sgd(zero), NORMALIZE).places["weight_normalization"] == ["1"]
    with pytest.raises(NotApplicable, match="no linear layer or convolution"):
        apply(model := nn.LSTM(3, 4), sgd(model), NORMALIZE)
