"""LSTMs that remember at the start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import nn

from gradmedic.torch.remedies import NotApplicable

pytestmark = pytest.mark.usefixtures("one_thread")

OPEN = remedy("forget_gate_bias", bias=1.0)


def forget_bias(module: nn.Module, suffix: str = "_l0") -> torch.Tensor:
    """Return the sum of the two biases of the forget gate."""
    parameters = dict(module.named_parameters())
    total = parameters[f"bias_ih{suffix}"] + parameters[f"bias_hh{suffix}"]
    return total.detach().chunk(4)[1]


def test_the_forget_gates_are_open() -> None:
    """Every layer and direction, and a cell, gets the bias; nothing else changes, and no random number is drawn."""
    model: Any = nn.ModuleDict({"lstm": nn.LSTM(6, 4, num_layers=2, bidirectional=True), "cell": nn.LSTMCell(6, 4)})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    applied = apply(model, None, OPEN)
    assert torch.equal(state, torch.get_rng_state())
    assert applied.places["forget_gate_bias"] == ["lstm", "cell"]
    for suffix in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        assert torch.equal(forget_bias(model["lstm"], suffix), torch.ones(4))
    assert torch.equal(forget_bias(model["cell"], ""), torch.ones(4))
    for name, parameter in model.named_parameters():
        others = [i for i in range(4) if i != 1] if "bias" in name else range(1)
        chunks = zip(parameter.detach().chunk(4), before[name].chunk(4), strict=True)
        assert all(torch.equal(new, old) for i, (new, old) in enumerate(chunks) if i in others)


def test_it_acts_after_new_weights() -> None:
    """With a new initialization, whose biases are zero, the forget gates are open too."""
    model = nn.LSTM(6, 4)
    apply(model, None, OPEN, remedy("reinitialize", scheme="orthogonal"))
    assert torch.equal(forget_bias(model), torch.ones(4))


def test_models_without_such_biases() -> None:
    """A model without LSTM, or with one without biases, or open already, is refused with the reason."""
    for other in (perceptron(), nn.GRU(6, 4), nn.LSTM(6, 4, bias=False)):
        with pytest.raises(NotApplicable, match="no LSTM with biases"):
            apply(other, None, OPEN)
    model: Any = nn.LSTM(6, 4)
    with torch.no_grad():
        model.bias_ih_l0.fill_(2.0)
    with pytest.raises(NotApplicable, match="open already"):
        apply(model, None, OPEN)


def test_trained_weights_stay() -> None:
    """After steps of the optimizer the biases were learned, and stay."""
    model = nn.LSTM(6, 4)
    optimizer = sgd(model)
    step(model, optimizer, lambda m: m(batch()[None])[0].sum())
    with pytest.raises(NotApplicable, match="has made steps already"):
        apply(model, optimizer, OPEN)


def test_a_signal_is_remembered_over_many_steps() -> None:
    """The gradient of the last output with respect to the first input is larger by decades."""

    def reach(*given: Any) -> float:
        torch.manual_seed(0)
        model = nn.LSTM(6, 32)
        if given:
            apply(model, None, *given)
        x = torch.randn(40, 4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        model(x)[0][-1].square().sum().backward()
        assert x.grad is not None
        return float(x.grad[0].norm())

    assert reach(OPEN) > 100 * reach()
