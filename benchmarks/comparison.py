"""Compares costs with those of references in the same run, and judges the ratios by their 95 % intervals.

A machine's speed cancels out of a ratio only if both sides are measured under the same load. So a round measures all of
them one after another, each second round in reverse order, and rounds are repeated until the intervals can tell.

A check is decided when its interval lies on one side of the limit, or is narrower than a third of the limit. It then
passes if its estimate is within the limit. A check that is not decided within the time has no verdict.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

SHARE_OF_LIMIT: Final = 1 / 3
"""An interval narrower than this share of the limit is precise enough."""
FEWEST_ROUNDS: Final = 5
"""Fewest rounds that are judged. The spread of fewer is itself known badly: with 3, the interval is 4 times as wide."""
RESAMPLINGS: Final = 500
NORMAL_QUANTILE: Final[float] = statistics.NormalDist().inv_cdf(0.975)


class Outcome(Enum):
    """What a check found."""

    MET = "PASS"
    MISSED = "FAIL"
    CANNOT_TELL = "CANNOT TELL"


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the ends of its 95 % interval."""

    estimate: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Interval:
        """Return the interval of a number without any uncertainty."""
        return cls(value, value, value)


NOTHING_KNOWN: Final = Interval(math.nan, -math.inf, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A target, and how what is judged by it is estimated from the measurements so far.

    Attributes:
        name: what is judged.
        estimate: returns the interval of the present measurements.
        limit: the largest value that passes, or the smallest if `is_floor`.
        is_floor: whether larger values are better.
        style: format of a value, as for `str.format`.
    """

    name: str
    estimate: Callable[[], Interval]
    limit: float
    is_floor: bool = False
    style: str = "{:.2f}x"

    def judge(self) -> Outcome:
        """Return the outcome of the present measurements."""
        interval = self.estimate()
        is_on_one_side = not interval.low <= self.limit <= interval.high
        is_precise = interval.high - interval.low < SHARE_OF_LIMIT * abs(self.limit)
        if math.isnan(interval.estimate) or not (is_on_one_side or is_precise):
            return Outcome.CANNOT_TELL
        is_met = interval.estimate >= self.limit if self.is_floor else interval.estimate <= self.limit
        return Outcome.MET if is_met else Outcome.MISSED

    def describe(self) -> str:
        """Return the line of the check: name, estimate, interval, target and outcome."""
        interval, sign = self.estimate(), ">=" if self.is_floor else "<="
        value, low, high, limit = (
            self.style.format(number) for number in (interval.estimate, interval.low, interval.high, self.limit)
        )
        spread = "" if interval.low == interval.high else f"{low} to {high}; "
        if math.isinf(interval.high - interval.low):
            spread = "no interval; "
        return f"{self.name}: {value} ({spread}target {sign} {limit}) {self.judge().value}"


class Turns(Generic[T]):
    """Measures several things in turn.

    Args:
        measures: the function that measures each thing once, by name.
    """

    def __init__(self, measures: Mapping[str, Callable[[], T]]) -> None:
        self._measures = measures
        self.results: dict[str, list[T]] = {name: [] for name in measures}
        """What each round measured, by name."""

    @property
    def rounds(self) -> int:
        """Number of rounds so far."""
        return min(map(len, self.results.values()))

    def take(self) -> None:
        """Measure each thing once; each second round in reverse order."""
        names = list(self._measures)
        for name in reversed(names) if self.rounds % 2 else names:
            self.results[name].append(self._measures[name]())


def repeat_until_decided(
    take_round: Callable[[], object], checks: Sequence[Check], seconds: float, fewest_rounds: int = FEWEST_ROUNDS
) -> int:
    """Repeat rounds until every check is decided, or until the time is over. Return the number of rounds.

    Args:
        take_round: measures one round.
        checks: what the rounds must decide.
        seconds: bound of the time. At least `fewest_rounds` rounds are measured.
        fewest_rounds: rounds before a check may be judged.
    """
    began, rounds = time.monotonic(), 0
    while True:
        take_round()
        rounds += 1
        if rounds >= fewest_rounds and (
            time.monotonic() - began > seconds or all(check.judge() is not Outcome.CANNOT_TELL for check in checks)
        ):
            return rounds


def ratio_of_costs(costs: Sequence[float], references: Sequence[float]) -> Interval:
    """Return the ratio of costs to the references of the same rounds: the geometric mean over the rounds.

    The interval is Student's t of the logarithms.
    """
    if len(costs) < 2:
        return NOTHING_KNOWN
    mean = mean_of([math.log(cost / reference) for cost, reference in zip(costs, references, strict=True)])
    return Interval(math.exp(mean.estimate), math.exp(mean.low), math.exp(mean.high))


def mean_of(values: Sequence[float]) -> Interval:
    """Return the mean of the values of several rounds; the interval is Student's t."""
    if len(values) < 2:
        return NOTHING_KNOWN
    center = statistics.fmean(values)
    margin = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(center, center - margin, center + margin)


def ratio_of_quantiles(
    samples: Sequence[Sequence[float]], references: Sequence[Sequence[float]], quantile: float
) -> Interval:
    """Return the ratio of a quantile of all samples to that of the references.

    The interval is a bootstrap over rounds: samples of one round share its load, so they are drawn together.

    Args:
        samples: the samples of each round.
        references: the samples of the reference in the same rounds.
        quantile: from 0 to 1; 0.5 is the median.
    """
    if len(samples) < 2:
        return NOTHING_KNOWN
    ours, theirs = [np.asarray(part) for part in samples], [np.asarray(part) for part in references]

    def ratio(chosen: NDArray[np.int64]) -> float:
        upper, lower = (np.quantile(np.concatenate([part[index] for index in chosen]), quantile)
                        for part in (ours, theirs))  # fmt: skip
        return float(upper / lower)

    generator = np.random.default_rng(0)
    drawn = [ratio(generator.integers(0, len(ours), len(ours))) for _ in range(RESAMPLINGS)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(ratio(np.arange(len(ours))), float(low), float(high))


def t_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution (Abramowitz and Stegun 26.7.5, within 2 % from 3 on)."""
    z = NORMAL_QUANTILE
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return float(z + sum(term / freedom**power for power, term in enumerate(terms, start=1)))


def report(name: str, checks: Sequence[Check]) -> int:
    """Print a line for each check and the last line; return the exit status.

    The status is 1 if a target is missed, else 2 if a check could not be decided, else 0.
    """
    outcomes = [check.judge() for check in checks]
    print()
    for check in checks:
        print(check.describe())
    missed, open_checks = outcomes.count(Outcome.MISSED), outcomes.count(Outcome.CANNOT_TELL)
    worst = Outcome.MISSED if missed else Outcome.CANNOT_TELL if open_checks else Outcome.MET
    undecided = f", {open_checks} not decided" if open_checks else ""
    print(f"{name}: {missed} of {len(checks)} targets missed{undecided} (target 0) {worst.value}")
    sys.stdout.flush()
    return {Outcome.MISSED: 1, Outcome.CANNOT_TELL: 2, Outcome.MET: 0}[worst]
