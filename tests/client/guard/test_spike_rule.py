"""What is a spike among the norms of a training's gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest

from gradmedic.guard.spike_rule import (
    FEWEST_NORMS,
    FEWEST_RECURRENCES,
    MOST_SKIPPED_IN_A_ROW,
    TIMES_USUAL,
    SpikeRule,
)


def list_skipped(norms: Iterable[float]) -> list[int]:
    """Return the steps of a training that are skipped, by their position."""
    rule = SpikeRule()
    skipped = []
    for position, norm in enumerate(norms):
        if rule.is_spike(norm) and not rule.is_exhausted:
            rule.note_skipped(norm)
            skipped.append(position)
        else:
            rule.note_taken(norm)
    return skipped


def noise(steps: int, deviation: float, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return factors whose logarithms are normal."""
    return np.exp(np.random.default_rng(seed).normal(0.0, deviation, steps))


@pytest.mark.parametrize("deviation", [0.0, 0.3, 1.0])
def test_a_norm_far_above_the_usual_ones_is_a_spike(deviation: float) -> None:
    """Of norms that vary a little or a lot, only the one that is far above all of them is skipped."""
    norms = noise(400, deviation)
    norms[300] = 1e3 * norms.max() ** 2
    assert list_skipped(norms) == [300]


def test_the_limit_is_the_largest_norm_that_is_taken() -> None:
    """A norm at the limit is no spike, one above it is; while few norms are known there is no limit."""
    rule = SpikeRule()
    for _ in range(FEWEST_NORMS):
        assert not rule.is_spike(1e9)
        assert rule.limit == math.inf
        rule.note_taken(2.0)
    assert rule.is_spike(1e9)
    assert rule.limit == TIMES_USUAL * 2.0
    assert not rule.is_spike(rule.limit)
    assert rule.is_spike(math.nextafter(rule.limit, math.inf))


@pytest.mark.parametrize(
    ("name", "deviation"), [("flat", 0.3), ("decaying", 0.5), ("growing", 0.3), ("warm-up", 0.3), ("heavy", 1.5)]
)
def test_no_step_of_a_healthy_course_is_skipped(name: str, deviation: float) -> None:
    """Norms that decay or grow a thousandfold, or vary by orders of magnitude, have no spike."""
    steps = np.arange(3000)
    course = {
        "flat": np.ones(3000),
        "heavy": np.ones(3000),
        "decaying": 10.0 ** (-3.0 * steps / 3000),
        "growing": 10.0 ** (3.0 * steps / 3000),
        "warm-up": np.minimum(1.0, (steps + 1) / 200) * 10.0 ** (-1.0 * steps / 3000),
    }[name]
    for seed in range(5):
        assert list_skipped(course * noise(3000, deviation, seed)) == []


def test_norms_with_exponential_logarithms_have_no_spike() -> None:
    """One norm of a hundred is fifty times the median, and one of ten thousand five thousand times: none is skipped."""
    for seed in range(5):
        norms = np.exp(np.random.default_rng(seed).exponential(1.0, 2000))
        assert list_skipped(norms) == []


@pytest.mark.parametrize("factor", [1.2, 2.0, 3.5])
def test_gradients_that_grow_from_step_to_step_are_no_spike(factor: float) -> None:
    """Each norm is compared with the last ones: growth comes from the weights, and skipping does not end it."""
    norms = [*[1.0] * 50, *(factor**i for i in range(1, 15)), *[1.0] * 50]
    assert list_skipped(norms) == []


def test_a_rare_kind_of_batch_is_skipped_a_few_times_only() -> None:
    """A batch with large gradients that comes every sixty steps is taken after it has come three times."""
    norms = noise(3000, 0.1)
    norms[::60] *= 30.0
    norms[0] = 1.0
    assert list_skipped(norms) == [60 * (1 + i) for i in range(FEWEST_RECURRENCES)]


def test_norms_that_stay_large_are_the_new_level() -> None:
    """After as many skipped steps as may be, the larger norms are taken, and only larger ones are spikes."""
    norms = [*[1.0] * 100, *[50.0] * 100, 500.0, *[50.0] * 10]
    assert list_skipped(norms) == [*range(100, 100 + MOST_SKIPPED_IN_A_ROW), 200]


def test_steps_without_gradients_show_nothing() -> None:
    """Norms of zero are left out of the usual ones, so the first gradient after them is no spike."""
    assert list_skipped([*[0.0] * 100, 1.0, 0.0, 2.0]) == []


def test_a_norm_that_is_infinite_is_a_spike_once_norms_are_known() -> None:
    """The sum of squares may overflow although the elements are finite."""
    assert list_skipped([*[1.0] * 30, math.inf, 1.0]) == [30]
    assert list_skipped([*[1.0] * 5, math.inf, 1.0]) == []


def test_a_training_that_went_back_meets_the_same_spikes_again() -> None:
    """The level that began after too many spikes is forgotten, so that the next spikes are skipped as before."""
    rule = SpikeRule()
    for _ in range(2):
        for norm in [1.0, 1.1, 0.9] * 20:
            assert not rule.is_spike(norm)
            rule.note_taken(norm)
        for _ in range(MOST_SKIPPED_IN_A_ROW):
            assert rule.is_spike(1e4)
            assert not rule.is_exhausted
            rule.note_skipped(1e4)
        assert rule.is_exhausted
        rule.note_taken(1e4)
        rule.go_back()
        assert rule.skipped_in_a_row == 0
    assert rule.is_spike(1e4)
