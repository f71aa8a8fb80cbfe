"""Measures the strategies on every failing configuration, and prints the results; see the package."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Final

from benchmarks.reruns.configurations import CONFIGURATIONS, FAMILIES, FITTED, Configuration, drawn
from benchmarks.reruns.strategies import MAX_ROUNDS, SEEDS, STRATEGIES, Race, race, trials_in_turn
from benchmarks.reruns.trials import LEAST_SKILL, Laboratory, is_failing, laboratory, skill

OURS: Final = "gradmedic"
RANDOM: Final = "random"
TARGET_VERIFIED: Final = 0.95
TARGET_TRIALS: Final = 0.5
TARGET_HEALTHY: Final = 60
Z: Final = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The results of every strategy on a failing configuration."""

    configuration: Configuration
    races: dict[str, Race]
    in_turn: dict[str, int | None]
    skills: dict[str, float]
    """Skills of the control, the best verified remedy (NaN if there is none) and the twin, on the first seed."""
    slowest: float
    """CPU seconds of its longest trial."""


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Return Wilson's interval (95 %) of a share.

    >>> [round(bound, 3) for bound in wilson(57, 60)]
    [0.863, 0.983]
    """
    if of == 0:
        return 0.0, 1.0
    share = hits / of
    middle = (share + Z**2 / (2 * of)) / (1 + Z**2 / of)
    half = Z / (1 + Z**2 / of) * math.sqrt(share * (1 - share) / of + Z**2 / (4 * of**2))
    return middle - half, middle + half


def measure(laboratory: Laboratory, configuration: Configuration) -> Measured | None:
    """Rerun a configuration by every strategy; None if it does not fail on every seed, or its twin does not learn."""
    if not all(is_failing(laboratory, configuration, seed) for seed in SEEDS):
        return None
    suspect, *others = (laboratory.trial(configuration, (), seed) for seed in SEEDS)
    twin = laboratory.trial(configuration, (), SEEDS[0], is_twin=True)
    races, in_turn, best = {}, {}, math.nan
    for name, strategy in STRATEGIES.items():
        candidates = strategy(suspect, configuration)
        races[name] = race(laboratory, configuration, candidates, max_rounds=MAX_ROUNDS if name == OURS else 1)
        is_reproduced = races[name].conclusion.status == "done"  # else a rerun would try nothing
        in_turn[name] = trials_in_turn(laboratory, configuration, candidates) if is_reproduced else None
        if name == OURS and races[name].verified:
            chosen = min(races[name].verified, key=lambda outcome: outcome.loss or 0.0)
            repaired = laboratory.trial(configuration, races[name].candidates[chosen.candidate], SEEDS[0])
            best = skill(repaired, configuration.faulty.task)
    return Measured(
        configuration=configuration,
        races=races,
        in_turn=in_turn,
        skills={
            "control": skill(suspect, configuration.faulty.task),
            "repaired": best,
            "twin": skill(twin, configuration.twin.task),
        },
        slowest=max(control.cpu_seconds or 0.0 for control in (suspect, *others)),
    )


def not_reproduced(laboratory: Laboratory, configuration: Configuration) -> str | None:
    """Rerun a twin as if it were suspect; return the status of the rerun, None if the twin does not learn."""
    twin = laboratory.trial(configuration, (), SEEDS[0], is_twin=True)
    if skill(twin, configuration.twin.task) < LEAST_SKILL:
        return None
    healthy = Configuration(
        name=configuration.name, family=configuration.family, faulty=configuration.twin, twin=configuration.twin
    )
    return race(laboratory, healthy, [], is_twin=True).conclusion.status


def table(measured: Sequence[Measured]) -> None:
    """Print a row for each family, and one for all families."""
    columns = ("verified", "repaired by AUTOTRAINER's criterion", "trials to the first verified")
    print(f"of {', '.join(STRATEGIES)}: {'; '.join(columns)}; skill of the control, repaired, and of the twin")
    for family in (*FAMILIES, ""):
        members = [result for result in measured if family in ("", result.configuration.family)]
        if not members:
            continue
        verified = [f"{sum(bool(result.races[name].verified) for result in members):>4}" for name in STRATEGIES]
        repaired = [f"{sum(result.races[name].is_repaired for result in members):>4}" for name in STRATEGIES]
        turns = [f"{_median_turns(members, name):>5g}" for name in STRATEGIES]
        skills = [f"{_finite_median([result.skills[name] for result in members]):>6.2f}" for name in members[0].skills]
        print(
            f"{family or 'all':26}{len(members):>4} | {' '.join(verified)} | {' '.join(repaired)} | "
            f"{' '.join(turns)} | {' '.join(skills)}"
        )


def _median_turns(measured: Sequence[Measured], name: str) -> float:
    """Return the median number of trials to the first verified remedy; infinity if no remedy was verified."""
    if not measured:
        return math.nan
    return median(math.inf if turns is None else turns for turns in (result.in_turn[name] for result in measured))


def _finite_median(values: Sequence[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return median(finite) if finite else math.nan


def report(measured: Sequence[Measured], healthy: Sequence[str]) -> bool:
    """Print the tables and the targets; return whether all are met."""
    table(measured)
    count = len(measured)
    shares = {name: sum(bool(result.races[name].verified) for result in measured) for name in STRATEGIES}
    print()
    for name, hits in shares.items():
        low, high = wilson(hits, count)
        repaired = sum(result.races[name].is_repaired for result in measured)
        print(
            f"{name}: {hits} of {count} verified, {hits / max(1, count):.1%} (95 % interval {low:.1%} to {high:.1%}); "
            f"by AUTOTRAINER's criterion {repaired / max(1, count):.1%}"
        )
    for label, is_fitted in (("corrected the advice", True), ("did not", False)):
        part = [result for result in measured if (result.configuration.name in FITTED) == is_fitted]
        if not part:
            continue
        hits = sum(bool(result.races[OURS].verified) for result in part)
        turns = ", ".join(f"{name} {_median_turns(part, name):g}" for name in STRATEGIES)
        print(f"of {len(part)} whose trials {label}: {hits} verified; median trials to the first: {turns}")
    for result in measured:
        if not result.races[OURS].verified:
            print(f"not repaired: {result.configuration.name}: {result.races[OURS].conclusion.reason}")
    families = len({result.configuration.family for result in measured})
    print(
        f"{count} configurations of {families} families; "
        f"longest trial {max(result.slowest for result in measured):.1f} CPU s\n"
    )
    ours, theirs = _median_turns(measured, OURS), _median_turns(measured, RANDOM)
    not_reproduced_count = sum(status == "not_reproduced" for status in healthy)
    share = shares[OURS] / max(1, count)
    verdicts = (
        (f"verified: {share:.1%} of {count}", f">= {TARGET_VERIFIED:.0%} of at least 60", share >= TARGET_VERIFIED
         and count >= 60),
        (f"trials to the first verified: {ours:g} against {theirs:g}", "at most half of random search's",
         ours <= TARGET_TRIALS * theirs and shares[OURS] >= shares[RANDOM]),
        (f"healthy that end not_reproduced: {not_reproduced_count} of {len(healthy)}",
         f"all of at least {TARGET_HEALTHY}", not_reproduced_count == len(healthy) >= TARGET_HEALTHY),
    )  # fmt: skip
    for value, target, is_met in verdicts:
        print(f"{value} (target {target}) {'PASS' if is_met else 'FAIL'}")
    is_met = all(is_met for _, _, is_met in verdicts)
    print(
        f"reruns: {share:.1%} verified (target >= {TARGET_VERIFIED:.0%}), "
        f"{ours:g} trials (<= {TARGET_TRIALS * theirs:g}), "
        f"{not_reproduced_count} of {len(healthy)} healthy not reproduced (all) {'PASS' if is_met else 'FAIL'}"
    )
    return is_met


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(prog="benchmarks.reruns")
    parser.add_argument(
        "--part", default="1/1", help="K/N: measure the Kth of N parts of the configurations; finished trials are kept"
    )
    parser.add_argument("--drawn", type=int, metavar="SEED", help="draw other configurations of the same families")
    parser.add_argument("--family", default="", help="measure only families whose names begin with this text")
    parser.add_argument("--jobs", type=int, default=2, help="number of trials at a time")
    arguments = parser.parse_args()
    part, _, of = arguments.part.partition("/")
    configurations = CONFIGURATIONS if arguments.drawn is None else drawn(arguments.drawn)
    chosen = [
        configuration for configuration in configurations.values() if configuration.family.startswith(arguments.family)
    ]
    chosen = chosen[int(part) - 1 :: int(of)]
    with laboratory() as made, ThreadPoolExecutor(arguments.jobs) as pool:

        def work(configuration: Configuration) -> tuple[Measured | None, str | None]:
            measured, healthy = measure(made, configuration), not_reproduced(made, configuration)
            verdict = "does not fail, or its twin does not learn" if measured is None else _line(measured)
            print(f"{configuration.name}: {verdict}", flush=True)
            return measured, healthy

        results = list(pool.map(work, chosen))
    print()
    measured = [result for result, _ in results if result is not None]
    is_met = report(measured, [status for _, status in results if status is not None])
    sys.exit(0 if is_met else 1)


def _line(measured: Measured) -> str:
    return ", ".join(
        f"{name} {len(race.verified)} of {len(race.conclusion.outcomes)} ({measured.in_turn[name] or 'never'})"
        for name, race in measured.races.items()
    )


if __name__ == "__main__":
    main()
