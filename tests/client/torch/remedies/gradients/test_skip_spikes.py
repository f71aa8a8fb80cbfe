"""Steps whose gradient is far larger than usual are not taken."""

from __future__ import annotations

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, step
from torch import nn

from gradmedic.guard.spike_rule import FEWEST_NORMS, MOST_SKIPPED_IN_A_ROW

pytestmark = pytest.mark.usefixtures("one_thread")

SKIP = remedy("skip_spikes", times_usual=4.0)


def count_steps(scales: list[float]) -> tuple[list[bool], int]:
    """Make a step with gradients of each size; return which steps were taken, and the number of skipped ones."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    applied = apply(model, optimizer, SKIP)
    taken = []
    for scale in scales:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, scale)
        before = model[0].bias.detach().clone()
        optimizer.step()
        taken.append(not torch.equal(before, model[0].bias))
    return taken, applied.skipped_steps


def test_a_spike_is_skipped_and_counted() -> None:
    """A step with a gradient of ten times the usual size is not taken, one with three times the size is."""
    taken, skipped = count_steps([1.0] * FEWEST_NORMS + [10.0, 1.0, 3.0, torch.nan, 1.0])
    assert taken == [True] * FEWEST_NORMS + [False, True, True, False, True]
    assert skipped == 2


def test_nothing_is_skipped_before_the_usual_size_is_known() -> None:
    """The first steps are taken, however large they are."""
    taken, skipped = count_steps([1.0] * (FEWEST_NORMS - 1) + [1e6])
    assert all(taken)
    assert skipped == 0


def test_larger_gradients_that_stay_are_taken() -> None:
    """After as many skipped steps in a row as are allowed, gradients of the new size are taken."""
    taken, skipped = count_steps([1.0] * FEWEST_NORMS + [100.0] * 50)
    assert taken == [True] * FEWEST_NORMS + [False] * MOST_SKIPPED_IN_A_ROW + [True] * (50 - MOST_SKIPPED_IN_A_ROW)
    assert skipped == MOST_SKIPPED_IN_A_ROW


def test_a_poisoned_batch_does_not_ruin_a_training() -> None:
    """A batch that is a million times too large destroys a training; with the remedy the loss falls on."""

    def train(*, has_remedy: bool) -> float:
        model = perceptron(nn.ReLU(), width=16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        if has_remedy:
            apply(model, optimizer, SKIP)
        for index in range(200):
            scale = 1e6 if index == 100 else 1.0
            last = step(model, optimizer, lambda m, scale=scale: (m(scale * batch()) - 1).square().mean())  # type: ignore[misc]
        return last

    assert not train(has_remedy=False) < 1.0
    assert train(has_remedy=True) < 0.1
