"""The verdict of the whole diagnostician on synthetic runs."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.diagnosis.synthetic_run import falling, layers, noisy, run
from tests.diagnosis.whole_run import STEPS, diagnose

from gradmedic_diagnosis import Diagnostician


def test_a_falling_loss_is_healthy() -> None:
    """An ordinary run has no finding at all."""
    diagnosis = diagnose(run(falling(STEPS)))
    assert diagnosis.verdict == "healthy"
    assert not diagnosis.findings


@settings(max_examples=25)
@given(order=st.permutations(range(4)))
def test_equal_layers_are_interchangeable(order: list[int]) -> None:
    """Permuting layers, with their depths given, changes nothing but their order in storage."""
    gradient = 10.0 ** np.array([-4, -3, -1, 0])
    facts = layers()
    block = run(noisy(2.3, 150), gradient=gradient)
    permuted = run(noisy(2.3, 150), gradient=gradient[list(order)])
    named = tuple(type(facts[i])(name=facts[i].name, numel=100, role="weight", depth=i) for i in order)
    expected = Diagnostician(facts).update(block)
    assert Diagnostician(named).update(permuted) == expected


@settings(max_examples=25)
@given(cut=st.integers(21, STEPS))
def test_a_healthy_prefix_stays_healthy(cut: int) -> None:
    """The verdict at a step does not depend on later steps."""
    assert diagnose(run(falling(STEPS)).cut(0, cut)).verdict == "healthy"
