"""What of the course of a training is a reason to go back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradmedic.torch.guards.rewinding_signs import (
    FEWEST_RATES,
    LASTING_AFTER_RATE_JUMP,
    LASTING_STEPS,
    NONFINITE_IN_A_ROW,
    RATE_JUMP,
    LossCourse,
    Rates,
    Signs,
    Trouble,
)


def find_lasting(losses: list[float]) -> int | None:
    """Return the step at which a jump of the losses has lasted too long, None if none has."""
    course = LossCourse()
    return next((step for step, loss in enumerate(losses) if course.add(step, loss)), None)


def noise(seed: int, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return normal random numbers."""
    return np.random.default_rng(seed).normal(size=count)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "course",
    [
        lambda e: 2.0 * np.exp(-np.arange(len(e)) / 200) + 0.05 * e,  # learns
        lambda e: 1e-6 * np.exp(0.5 * e),  # has converged, with a heavy tail
        lambda e: -100 + 5 * e,  # a negative objective
        lambda e: np.exp(2 * e),  # a policy, whose losses vary by orders of magnitude
        lambda e: 0.7 + 0.01 * e + 1e-4 * np.arange(len(e)),  # grows slowly
        lambda e: np.abs(e) * (1 + 50 * (np.arange(len(e)) % 97 == 0)),  # has a bad batch now and then
        lambda e: np.zeros(len(e)),  # a constant
        lambda e: 1.0 + 0.2 * e + 0.6 * (np.arange(len(e)) // 250),  # an unshuffled data set
    ],
    ids=["learning", "converged", "negative", "policy", "slow", "bad batches", "constant", "unshuffled"],
)
def test_a_healthy_course_is_no_reason(seed: int, course: object) -> None:
    """Nothing of a training that needs no help makes it go back."""
    assert find_lasting(course(noise(seed, 1500)).tolist()) is None  # type: ignore[operator]


def test_a_jump_that_recovers_is_no_reason() -> None:
    """A spike of the loss that falls within some tens of steps is left alone, however high it is."""
    spike = [1e3 * 0.9**i for i in range(200)]
    losses = (1.0 + 0.1 * noise(0, 400)).tolist()
    assert find_lasting(losses[:200] + [1.0 + each for each in spike] + losses[200:]) is None


@pytest.mark.parametrize("level", [50.0, 1e30])
@pytest.mark.parametrize("growth", [1.0, 1.05])
def test_a_jump_that_lasts_is_a_reason_after_some_steps(level: float, growth: float) -> None:
    """The loss jumps and stays, or grows; the onset is the first step above the limit."""
    losses = (1.0 + 0.1 * noise(0, 200)).tolist()
    bad = [level * growth**i for i in range(LASTING_STEPS)]
    assert find_lasting(losses + bad) == 200 + LASTING_STEPS - 1
    course = LossCourse()
    for step, loss in enumerate(losses + bad):
        course.add(step, loss)
    assert course.jumped_at == 200


def test_data_that_change_for_good_are_a_new_level_in_the_end() -> None:
    """A loss that falls slowly from a jump, as with new data, is compared with itself after a while."""
    losses = (1.0 + 0.1 * noise(0, 200)).tolist()
    falling = [100.0 * 0.98**i + 2 for i in range(3000)]
    course = LossCourse()
    reasons = [step for step, loss in enumerate(losses + falling) if course.add(step, loss)]
    assert reasons == []


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-6, 1e6), offset=st.floats(-1e3, 1e3))
def test_scale_and_offset_do_not_matter(scale: float, offset: float) -> None:
    """The same course in other units has the same reasons."""
    losses = np.concatenate([1.0 + 0.1 * noise(0, 200), 50 + noise(1, 60)])
    assert find_lasting((scale * (losses + offset)).tolist()) == find_lasting((losses + 0.0).tolist())


def test_few_losses_are_no_reason() -> None:
    """In the first steps, everything may change."""
    assert find_lasting([1.0] * 20 + [1e6] * 100) is None


def make_signs(*, is_finite: bool = True) -> Signs:
    """Return the signs of a training whose weights are finite, or are not."""
    return Signs(lambda: is_finite)


def test_bad_numbers_in_the_weights_are_a_reason_at_once() -> None:
    """A step with a non-finite number is a reason if the weights have one, too."""
    signs = make_signs(is_finite=False)
    assert signs.end_step(3, [(3, 1.0)]) is None
    trouble = signs.end_step(4, [(4, math.nan)])
    assert trouble is not None
    assert (trouble.reason, trouble.onset) == ("nonfinite_weights", 4)


def test_a_loss_that_is_read_late_has_the_step_that_it_belongs_to() -> None:
    """On a device, the loss of a step is known one step later; the onset is its own step."""
    signs = make_signs(is_finite=False)
    signs.end_step(4, [])
    trouble = signs.end_step(5, [(4, math.nan)])
    assert trouble is not None
    assert trouble.onset == 4


def test_the_onset_is_the_first_step_of_a_row() -> None:
    """A good step in between begins a new row."""
    signs = make_signs()
    for step in range(NONFINITE_IN_A_ROW - 1):
        assert signs.end_step(step, [(step, math.inf)]) is None
        assert signs.is_suspicious
    assert signs.end_step(50, [(50, 1.0)]) is None
    assert not signs.is_suspicious
    for step in range(60, 60 + NONFINITE_IN_A_ROW - 1):
        signs.note_nonfinite_gradient()
        assert signs.end_step(step, []) is None
    signs.note_nonfinite_gradient()
    trouble = signs.end_step(99, [])
    assert trouble is not None
    assert (trouble.reason, trouble.onset) == ("nonfinite_gradient", 60)


def test_a_verdict_counts_once_from_its_first_step() -> None:
    """A verdict without a first step counts from the step at which it arrives."""
    signs = make_signs()
    signs.note_verdict("exploding", 7)
    trouble = signs.end_step(20, [])
    assert trouble is not None
    assert (trouble.reason, trouble.onset) == ("verdict", 7)
    assert signs.end_step(21, []) is None
    signs.note_verdict("exploding", None)
    trouble = signs.end_step(22, [])
    assert trouble is not None
    assert trouble.onset == 22


def test_a_skipped_spike_is_no_reason_and_a_lasting_one_is() -> None:
    """The training goes back to before the first spike of the row, when one had to be taken."""
    signs = make_signs()
    for step in (10, 11, 12):
        signs.note_spike(is_lasting=False)
        assert signs.end_step(step, [(step, 1.0)]) is None
        assert signs.is_suspicious
    signs.note_spike(is_lasting=True)
    trouble = signs.end_step(13, [(13, 1.0)])
    assert trouble is not None
    assert (trouble.reason, trouble.onset) == ("gradient_spike", 10)


def find_trouble(rates: list[float], losses: list[float]) -> tuple[int, Trouble] | None:
    """Return the first trouble of a course of learning rates and losses, with the step that shows it."""
    signs = make_signs()
    for step, (rate, loss) in enumerate(zip(rates, losses, strict=True)):
        signs.note_rate("optimizer", rate)
        if (trouble := signs.end_step(step, [(step, loss)])) is not None:
            return step, trouble
    return None


def jump(after: list[float]) -> list[float]:
    """Return 200 usual losses and what comes after them."""
    return [*(2.0 + 0.1 * noise(0, 200)).tolist(), *after]


SLOW = [3.5 * 0.995**i for i in range(100)]
"""A loss that needs some hundred steps to be as low as before: less than ten spreads above the usual ones."""


def test_a_loss_that_jumps_with_the_learning_rate_is_a_reason_soon() -> None:
    """The training goes back to before the rate's jump, although the loss falls again: that would take longer."""
    rates = [0.1] * 200 + [1.0] * 4 + [0.1] * 96
    found = find_trouble(rates, jump(SLOW))
    assert found is not None
    step, trouble = found
    assert step == 200 + LASTING_AFTER_RATE_JUMP - 1
    assert (trouble.reason, trouble.onset) == ("learning_rate_jump", 200)
    assert (trouble.numbers["rate_before"], trouble.numbers["rate_after"]) == (0.1, 1.0)
    assert "rose from 0.1 to 1 at step 200" in trouble.sentence


@pytest.mark.parametrize(
    ("rates", "after"),
    [
        ([0.1] * 300, SLOW),  # the data have changed, not the rate
        ([0.1] * 200 + [1.0] * 100, [2.0] * 100),  # the loss does not care
        ([0.1] * 200 + [1.0] * 4 + [0.1] * 96, [2.0 + 1.5 * 0.8**i for i in range(100)]),  # it is back soon
        ([0.1] * 100 + [1.0] * 4 + [0.1] * 196, SLOW),  # the rate jumped long before
        ([0.001 * 10 ** min(step / 50, 3) for step in range(300)], SLOW),  # a warm-up that grows fast
        ([0.5 * (1 + math.cos(step % 100 / 32)) for step in range(300)], SLOW),  # restarts
    ],
    ids=["steady rate", "steady loss", "recovery", "earlier", "warm-up", "restarts"],
)
def test_neither_a_rate_nor_a_loss_alone_is_a_reason(rates: list[float], after: list[float]) -> None:
    """Without a jump of the rate, a low one of the loss is left alone, and one of the rate alone always is."""
    assert find_trouble(rates, jump(after)) is None


def test_a_jump_back_to_the_losses_of_the_start_is_seen() -> None:
    """The loss of a young training is still falling: a jump to where it was eighty steps before is seen."""
    ripple = [0.02 * ((7 * step) % 5 - 2) for step in range(300)]
    falling = [2.4 + 2.0 * 0.98**step + ripple[step] for step in range(150)]
    assert max(falling[50:]) > 3.1
    rates = [0.1] * 150 + [4.0] * 6 + [0.1] * 144
    found = find_trouble(rates, falling + [3.4 + each for each in ripple[150:]])
    assert found is not None
    step, trouble = found
    assert (trouble.reason, trouble.onset) == ("learning_rate_jump", 150)
    assert step <= 150 + 2 * LASTING_STEPS
    assert find_trouble(rates, falling + [2.5 + each for each in ripple[150:]]) is None


def test_a_loss_that_falls_to_the_limit_of_a_jump_is_not_back() -> None:
    """It falls by half of the jump and stays there, just below the limit: the weights are worse all the same."""
    rates = [0.1] * 200 + [1.0] * 4 + [0.1] * 96
    limit = max(jump([])) + 0.3
    found = find_trouble(rates, jump([limit + 1.5 * 0.9**i for i in range(30)] + [limit - 0.1] * 70))
    assert found is not None
    assert found[0] <= 200 + 2 * LASTING_AFTER_RATE_JUMP


def test_the_same_rate_may_be_the_reason_again() -> None:
    """After going back, a rate that is still too high is seen again."""
    rates = Rates()
    assert not any(rates.add(0.1) for _ in range(FEWEST_RATES))
    assert not rates.add(0.1 * RATE_JUMP * 0.99)
    assert rates.add(1.0)
    assert not rates.add(1.0)
    rates.go_back()
    assert rates.add(1.0)
    assert not rates.add(math.inf)


def test_the_first_rates_may_jump() -> None:
    """A schedule may begin with a step at a rate of 0 or close to it."""
    rates = Rates()
    assert not any(rates.add(rate) for rate in [0.0, 1e-8, *[0.1] * FEWEST_RATES])


def test_losses_that_never_vary_have_no_recovery() -> None:
    """A constant loss that jumps with the rate is no error of the guard."""
    found = find_trouble([0.1] * 200 + [1.0] * 100, [0.0] * 200 + [1.0 * 0.9**i for i in range(100)])
    assert found is not None
