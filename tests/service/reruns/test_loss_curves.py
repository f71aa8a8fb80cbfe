"""Loss curves: the final loss, and the loss at a rung."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gradmedic_service.reruns.loss_curves import final_loss, loss_at_rung, rungs_of


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
