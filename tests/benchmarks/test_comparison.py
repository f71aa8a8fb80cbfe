"""Comparisons of costs: their intervals, when they are decided, and what a benchmark's last line and status are."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from benchmarks.comparison import (
    Check,
    Interval,
    Outcome,
    Turns,
    ratio_of_costs,
    ratio_of_quantiles,
    repeat_until_decided,
    report,
    t_quantile,
)


def check(low: float, estimate: float, high: float, limit: float = 9.0, *, is_floor: bool = False) -> Check:
    """Make a check whose interval is given."""
    return Check(name="c", estimate=lambda: Interval(estimate, low, high), limit=limit, is_floor=is_floor)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(3, 3.182), (4, 2.776), (6, 2.447), (9, 2.262), (19, 2.093), (99, 1.984)]
)
def test_quantiles_of_t_are_those_of_printed_tables(freedom: int, expected: float) -> None:
    """The approximation is within two percent of the tables."""
    assert t_quantile(freedom) == pytest.approx(expected, rel=0.02)


def test_a_ratio_does_not_depend_on_the_speed_of_a_round() -> None:
    """Rounds in which everything takes three times as long change nothing."""
    ratio = ratio_of_costs([2.0, 6.0, 2.0], [1.0, 3.0, 1.0])
    assert (ratio.low, ratio.estimate, ratio.high) == pytest.approx((2.0, 2.0, 2.0))


@pytest.mark.parametrize("rounds", [5, 20])
def test_intervals_of_costs_hold_the_truth_in_95_percent(rounds: int) -> None:
    """Of many measurements with noise, about one in twenty has an interval without the true ratio."""
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(600):
        costs, references = np.exp(generator.normal(0, 0.1, (2, rounds)))
        interval = ratio_of_costs(list(3 * costs), list(references))
        hits += interval.low <= 3 <= interval.high
    assert 0.92 <= hits / 600 <= 0.98


def test_intervals_of_quantiles_hold_the_truth() -> None:
    """The bootstrap over rounds holds the true ratio of tails in about 95 % of measurements, with a load per round."""
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(40):
        load = np.exp(generator.normal(0, 0.1, (25, 1)))
        samples, references = load * generator.exponential(1.0, (2, 25, 100))
        interval = ratio_of_quantiles(list(4 * samples), list(references), 0.99)
        hits += interval.low <= 4 <= interval.high
    assert hits >= 34


def test_one_round_has_no_interval() -> None:
    """A single round shows no spread, so it cannot tell."""
    one = Check(name="c", estimate=lambda: ratio_of_costs([2.0], [1.0]), limit=9.0)
    assert one.judge() is Outcome.CANNOT_TELL


@pytest.mark.parametrize(
    ("judged", "outcome"),
    [
        (check(2, 5, 8.9), Outcome.MET),  # wide, and below the limit as a whole
        (check(9.1, 15, 30), Outcome.MISSED),  # wide, and above it
        (check(8, 8.9, 10), Outcome.MET),  # narrower than a third of the limit
        (check(8, 9.1, 10), Outcome.MISSED),
        (check(7, 8.9, 10.1), Outcome.CANNOT_TELL),  # too wide
        (check(10, 20, 40, is_floor=True), Outcome.MET),
        (check(1, 4, 8, is_floor=True), Outcome.MISSED),
        (check(8, 8.9, 10, is_floor=True), Outcome.MISSED),
        (check(-math.inf, math.nan, math.inf), Outcome.CANNOT_TELL),
    ],
)
def test_a_check_is_judged_by_its_interval(judged: Check, outcome: Outcome) -> None:
    """A check passes or fails if its interval is on one side or narrow, and else cannot tell."""
    assert judged.judge() is outcome


def test_rounds_alternate_their_order() -> None:
    """Each second round runs in reverse, so that what comes first has no lasting advantage."""
    order: list[str] = []

    def measure(name: str) -> Callable[[], int]:
        return lambda: order.append(name) or len(order)  # type: ignore[func-returns-value]

    turns = Turns({name: measure(name) for name in "abc"})
    for _ in range(3):
        turns.take()
    assert "".join(order) == "abccbaabc"
    assert turns.rounds == 3
    assert turns.results["a"] == [1, 6, 7]


@pytest.mark.parametrize(("noise", "fewest", "most"), [(0.01, 5, 5), (0.8, 20, 2_000)])
def test_rounds_are_repeated_until_the_interval_is_narrow(noise: float, fewest: int, most: int) -> None:
    """A noisy comparison takes more rounds than a quiet one, and neither takes fewer than the fewest."""
    generator = np.random.default_rng(3)
    costs: list[float] = []
    judged = Check(name="c", estimate=lambda: ratio_of_costs(costs, [1.0] * len(costs)), limit=1.05)
    rounds = repeat_until_decided(
        lambda: costs.append(float(np.exp(generator.normal(0, noise)))), [judged], seconds=math.inf
    )
    assert fewest <= rounds <= most
    assert judged.judge() is not Outcome.CANNOT_TELL


def test_rounds_end_with_the_time() -> None:
    """What cannot be decided ends with the time, and has no verdict."""
    open_check = check(1, 9, 20)
    assert repeat_until_decided(lambda: None, [open_check], seconds=0, fewest_rounds=7) == 7


@pytest.mark.parametrize(
    ("checks", "status", "last_line"),
    [
        ([check(1, 2, 3), check(4, 5, 6)], 0, "b: 0 of 2 targets missed (target 0) PASS"),
        ([check(1, 2, 3), check(1, 9, 20)], 2, "b: 0 of 2 targets missed, 1 not decided (target 0) CANNOT TELL"),
        (
            [check(9.5, 10, 11), check(1, 9, 20)],
            1,
            "b: 1 of 2 targets missed, 1 not decided (target 0) FAIL",
        ),
    ],
)
def test_the_status_and_the_last_line_agree(
    checks: list[Check], status: int, last_line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missed target is 1, an open one 2, and only a benchmark that passes whole is 0."""
    assert report("b", checks) == status
    assert capsys.readouterr().out.splitlines()[-1] == last_line


def test_a_line_has_value_interval_target_and_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    """Each check has a line of its own; an exact number has no interval."""
    exact = Check(name="bytes", estimate=lambda: Interval.exact(2.25), limit=2.6, style="{:.2f}")
    report("b", [check(8, 8.9, 10), exact])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "c: 8.90x (8.00x to 10.00x; target <= 9.00x) PASS"
    assert lines[2] == "bytes: 2.25 (target <= 2.60) PASS"
