"""Cross-entropies with bounded logits, and with a penalty on their size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

pytestmark = pytest.mark.usefixtures("one_thread")

CAP, Z = remedy("logit_soft_cap", cap=2.0), remedy("z_loss", strength=0.01)
LABELS = torch.tensor([0, 1, 1, 0, -100, 1, 0, 0])


def gradient_of(model: nn.Module, loss: Tensor) -> list[Tensor]:
    """Return the gradients of a loss."""
    return list(torch.autograd.grad(loss, list(model.parameters())))


def penalty(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """Return the penalty of z-loss, written out, of the examples that count."""
    each = torch.logsumexp(logits, -1)[labels != -100] ** 2 * 0.01
    return each.sum() if reduction != "mean" else each.mean()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_penalty_is_in_the_gradient_alone(reduction: str) -> None:
    """The value of the loss is the script's, to the bit; its gradient is that of the loss with the penalty."""
    model = perceptron()
    logits = 5 * model(batch())
    plain = functional.cross_entropy(logits, LABELS, reduction=reduction)
    expected = gradient_of(model, plain.sum() + penalty(logits, LABELS, reduction))
    apply(model, None, Z)
    changed = nn.CrossEntropyLoss(reduction=reduction)(5 * model(batch()), LABELS)
    assert torch.equal(changed, plain)
    for one, other in zip(gradient_of(model, changed.sum()), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_positions_and_probabilities() -> None:
    """Classes in the second dimension, and targets that are probabilities, are treated alike."""
    model = perceptron()
    apply(model, None, Z)
    logits = model(batch()).reshape(4, 2, 2).movedim(-1, 1)
    targets = torch.tensor([[0, 1]] * 4)
    given = gradient_of(model, cross_entropy(logits, targets))
    flat = model(batch())
    hard = functional.one_hot(targets.flatten(), 2).float()
    for one, other in zip(given, gradient_of(model, cross_entropy(flat, hard)), strict=True):
        torch.testing.assert_close(one, other)


def test_logits_are_bounded_before_the_loss() -> None:
    """The loss is that of the bounded logits, also without gradients; the model's output stays."""
    model = perceptron()
    before = model(batch())
    expected = functional.cross_entropy(2 * torch.tanh(50 * before / 2), LABELS)
    applied = apply(model, None, CAP)
    assert torch.equal(model(batch()), before)
    assert torch.equal(cross_entropy(50 * before, LABELS), expected)
    with torch.no_grad():
        assert torch.equal(cross_entropy(50 * before, LABELS), expected)
    applied.close()
    assert torch.equal(cross_entropy(50 * before, LABELS), functional.cross_entropy(50 * before.detach(), LABELS))


def test_both_together_and_two_watched_models() -> None:
    """The penalty is on the bounded logits, and a second `watch()` does not double it."""
    one, other = perceptron(), perceptron()
    logits = one(batch())
    capped = 2 * torch.tanh(logits / 2)
    expected = gradient_of(one, functional.cross_entropy(capped, LABELS) + penalty(capped, LABELS, "mean"))
    function: Any = torch._C._nn.cross_entropy_loss
    applied = [apply(model, sgd(model), Z, CAP) for model in (one, other)]
    for got, wanted in zip(gradient_of(one, cross_entropy(one(batch()), LABELS)), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    for each in applied:
        each.close()
    assert torch._C._nn.cross_entropy_loss is function


@pytest.mark.parametrize("given", [CAP, Z])
def test_scripts_without_a_cross_entropy(given: Any) -> None:
    """A script whose loss is no cross-entropy, or is written out, is not applicable after the first step."""
    model = perceptron()
    optimizer = sgd(model)
    applied = apply(model, optimizer, given)
    step(model, optimizer, lambda m: functional.nll_loss(m(batch()).log_softmax(-1), LABELS))
    assert "no cross-entropy of logits" in str(applied.reason_to_end())
    step(model, optimizer, lambda m: cross_entropy(m(batch()), LABELS))
    assert applied.reason_to_end() is None


def test_the_penalty_keeps_logits_near_zero() -> None:
    """In a training whose logits may drift, their log-sum-exp ends nearer to zero with the penalty."""

    def train(*given: Any) -> float:
        torch.manual_seed(0)
        model = nn.Linear(6, 4)
        nn.init.constant_(model.bias, 20.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        apply(model, optimizer, *given)
        for _ in range(1000):
            step(model, optimizer, lambda m: cross_entropy(m(batch()), LABELS))
        return float(model(batch()).logsumexp(-1).detach().abs().mean())

    assert train() > 15
    assert train(Z) < 10
