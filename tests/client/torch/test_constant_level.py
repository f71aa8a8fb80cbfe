"""What a constant predictor gets, compared with constants that are trained until they are the best ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gradmedic.torch.constant_level import (
    absolute_error,
    binary_cross_entropy_sum,
    cross_entropy_sum,
    huber_error,
    shrink_frequencies,
    squared_error,
)


def train_constant(loss_of: Callable[[Tensor], Tensor], outputs: int) -> float:
    """Return the loss of the best constant output, found by Newton's method of torch in float64."""
    constant = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([constant], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(constant)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(loss_of(constant).detach())


def test_the_cross_entropy_of_a_mass_is_that_of_trained_logits() -> None:
    """The best constant probabilities are the shares of the mass, which need not sum to 1."""
    mass = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64)
    trained = train_constant(lambda logits: -(mass * logits.log_softmax(0)).sum(), 4)
    assert cross_entropy_sum(mass.numpy()) == pytest.approx(trained, rel=1e-6)


def test_the_entropy_of_decisions_is_that_of_trained_logits() -> None:
    """Each output has its own best probability; positives and negatives may have weights."""
    positive, negative = torch.tensor([0.2, 3.0, 0.0]).double(), torch.tensor([0.8, 1.0, 2.0]).double()

    def loss(logits: Tensor) -> Tensor:
        return -(positive * functional.logsigmoid(logits) + negative * functional.logsigmoid(-logits)).sum()

    assert binary_cross_entropy_sum(positive.numpy(), negative.numpy()) == pytest.approx(
        train_constant(loss, 3), rel=1e-6
    )


@pytest.mark.parametrize("threshold", [0.3, 1.0, 5.0])
def test_errors_of_constants_are_those_of_trained_constants(threshold: float) -> None:
    """Each output has its own constant: the mean, the median, and for the Huber losses what lies between."""
    targets = torch.randn(41, 3, generator=torch.Generator().manual_seed(1)).double().exp()
    huber = train_constant(lambda c: functional.huber_loss(c.expand(41, 3), targets, delta=threshold), 3)
    smooth = train_constant(lambda c: functional.smooth_l1_loss(c.expand(41, 3), targets, beta=threshold), 3)
    assert huber_error(targets.numpy(), threshold, is_smooth_l1=False) == pytest.approx(huber, rel=1e-9)
    assert huber_error(targets.numpy(), threshold, is_smooth_l1=True) == pytest.approx(smooth, rel=1e-9)
    squared = train_constant(lambda c: functional.mse_loss(c.expand(41, 3), targets), 3)
    assert squared_error(targets.numpy()) == pytest.approx(squared * 41 / 40, rel=1e-9)
    median = functional.l1_loss(targets.median(dim=0).values.expand(41, 3), targets)
    assert absolute_error(targets.numpy()) == pytest.approx(float(median), rel=1e-12)


def test_a_huber_loss_without_a_quadratic_part_is_an_absolute_error() -> None:
    """The smooth L1 loss of torch with `beta=0` is the L1 loss."""
    targets = np.array([[0.0], [1.0], [5.0]])
    assert huber_error(targets, 0.0, is_smooth_l1=True) == absolute_error(targets)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("examples", [4, 16, 128])
def test_few_examples_of_equal_classes_give_nearly_the_logarithm_of_their_number(examples: int, seed: int) -> None:
    """The plain entropy of 4 examples is at most ln 4; the estimate is that of ten equal classes."""
    counts = np.bincount(np.random.default_rng(seed).integers(0, 10, examples), minlength=10)
    entropy = cross_entropy_sum(shrink_frequencies(counts / examples, examples))
    assert entropy == pytest.approx(math.log(10), rel=0.06)


def test_frequencies_of_many_examples_stay_as_they_are() -> None:
    """A rare class is still rare in the estimate."""
    frequencies = np.array([0.97, 0.02, 0.01])
    assert shrink_frequencies(frequencies, 100_000) == pytest.approx(frequencies, abs=1e-5)
    assert shrink_frequencies(frequencies, 100).sum() == pytest.approx(1.0)


def test_one_example_is_enough_for_a_number() -> None:
    """A single example gives 0 and no warning: nothing is known of the others."""
    one = np.array([[3.0, 4.0]])
    assert squared_error(one) == absolute_error(one) == huber_error(one, 1.0, is_smooth_l1=False) == 0.0
    assert cross_entropy_sum(shrink_frequencies(np.array([0.0, 1.0]), 1)) == 0.0
    assert cross_entropy_sum(np.zeros(3)) == 0.0
