"""Loss curves: the final loss, and the loss at a rung."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradmedic_service.reruns.loss_curves import best_level, final_loss, loss_at_rung, rungs_of, summarize_losses


def test_losses_at_rungs() -> None:
    """A loss that is not finite, or of an unhealthy run, counts as infinite."""
    assert loss_at_rung(np.array([3.0, 2.0]), "healthy") == 2.0
    assert loss_at_rung(np.array([3.0, math.nan]), "healthy") == math.inf
    assert loss_at_rung(np.array([3.0, 2.0]), "vanishing") == math.inf
    assert loss_at_rung(np.array([]), "undetermined") == math.inf
    assert rungs_of(100) == (50, 75)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=60))
def test_final_loss_is_the_median_of_the_last_tenth(losses: list[float]) -> None:
    """The final loss is the median of the last tenth's finite values, if they are the majority."""
    last = losses[-max(1, round(len(losses) / 10)) :]
    finite = [loss for loss in last if math.isfinite(loss)]
    found = final_loss(np.array(losses))
    if len(finite) * 2 <= len(last):
        assert math.isnan(found)
    else:
        low, high = sorted(finite)[(len(finite) - 1) // 2], sorted(finite)[len(finite) // 2]
        assert min(low, high) <= found <= max(low, high)


def test_a_lucky_loss_is_not_the_best_level() -> None:
    """The best level is a median of as many losses as the final loss, wherever in the run it was reached."""
    noise = np.random.default_rng(0).normal(size=300)
    losses = np.concatenate([2.0 + 0.1 * noise[:100], 1.0 + 0.1 * noise[100:200], 5.0 + 0.1 * noise[200:]])
    losses[150] = 0.01
    assert best_level(losses) == pytest.approx(1.0, abs=0.1)
    losses[220:] = math.nan
    assert best_level(losses) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("losses", "best"),
    [([], None), ([math.nan], math.inf), ([3.0, math.nan, 2.0], 2.0), ([7.0, *[math.nan] * 30, 8.0], 7.0)],
)
def test_the_best_level_of_few_finite_losses(losses: list[float], best: float | None) -> None:
    """Where no window has mostly finite losses, the smallest finite loss stands for its level."""
    curve = summarize_losses(np.array(losses))
    assert (None if curve is None else curve.best) == best


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=60))
def test_no_training_is_better_than_its_own_best_level(losses: list[float]) -> None:
    """The best level is at most the final loss, where that is finite, and at least the smallest loss."""
    values = np.array(losses)
    if math.isfinite(final := final_loss(values)):
        assert best_level(values) <= final
    assert best_level(values) >= min((loss for loss in losses if math.isfinite(loss)), default=math.inf)
