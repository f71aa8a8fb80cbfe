"""Measures the strategies on every failing configuration, and prints what came of it; see the package."""

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
from benchmarks.reruns.strategies import SEEDS, STRATEGIES, Race, race, trials_in_turn
from benchmarks.reruns.trials import LEAST_SKILL, Laboratory, is_failing, laboratory, skill

OURS: Final = "gradmedic"
RANDOM: Final = "random"
TARGET_VERIFIED: Final = 0.95
TARGET_TRIALS: Final = 0.5
TARGET_HEALTHY: Final = 60
Z: Final = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What came of a failing configuration."""

    configuration: Configuration
    races: dict[str, Race]
    in_turn: dict[str, int | None]
    skills: dict[str, float]
    """Of the control, the best verified remedy (NaN where there is none) and the twin, on the first seed."""
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
        races[name] = race(laboratory, configuration, candidates)
        is_reproduced = races[name].conclusion.status == "done"  # else a rerun would try nothing
        in_turn[name] = trials_in_turn(laboratory, configuration, candidates) if is_reproduced else None
        if name == OURS and races[name].verified:
            chosen = min(races[name].verified, key=lambda outcome: outcome.loss or 0.0)
            best = skill(
                laboratory.trial(configuration, candidates[chosen.candidate - 1], SEEDS[0]), configuration.faulty.task
            )
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
    """Rerun a twin that learns as if it were suspect; return how that ended, None if it does not learn."""
    twin = laboratory.trial(configuration, (), SEEDS[0], is_twin=True)
    if skill(twin, configuration.twin.task) < LEAST_SKILL:
        return None
    healthy = Configuration(
        name=configuration.name, family=configuration.family, faulty=configuration.twin, twin=configuration.twin
    )
    return race(laboratory, healthy, [], is_twin=True).conclusion.status


def table(measured: Sequence[Measured]) -> None:
    """Print a row for every family, and for all."""
    columns = ("verified", "silent", "trials to the first")
    print(f"of {', '.join(STRATEGIES)}: {'; '.join(columns)}; skill of the control, repaired, and of the twin")
    for family in (*FAMILIES, ""):
        mine = [one for one in measured if family in ("", one.configuration.family)]
        if not mine:
            continue
        verified = [f"{sum(bool(one.races[name].verified) for one in mine):>4}" for name in STRATEGIES]
        silent = [f"{sum(one.races[name].silent for one in mine):>4}" for name in STRATEGIES]
        turns = [f"{_median_turns(mine, name):>5g}" for name in STRATEGIES]
        skills = [f"{_finite_median([one.skills[name] for one in mine]):>6.2f}" for name in mine[0].skills]
        print(
            f"{family or 'all':26}{len(mine):>4} | {' '.join(verified)} | {' '.join(silent)} | {' '.join(turns)} | "
            f"{' '.join(skills)}"
        )


def _median_turns(measured: Sequence[Measured], name: str) -> float:
    """Return the median of trials to the first verified remedy; one that was never found counts as infinite."""
    if not measured:
        return math.nan
    return median(math.inf if turns is None else turns for turns in (one.in_turn[name] for one in measured))


def _finite_median(values: Sequence[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return median(finite) if finite else math.nan


def report(measured: Sequence[Measured], healthy: Sequence[str]) -> bool:
    """Print the tables and the targets; return whether all are met."""
    table(measured)
    count = len(measured)
    shares = {name: sum(bool(one.races[name].verified) for one in measured) for name in STRATEGIES}
    print()
    for name, hits in shares.items():
        low, high = wilson(hits, count)
        weak = sum(one.races[name].silent for one in measured)
        print(
            f"{name}: {hits} of {count} verified, {hits / max(1, count):.1%} (95 % interval {low:.1%} to {high:.1%}); "
            f"by AUTOTRAINER's criterion {weak / max(1, count):.1%}"
        )
    for label, is_fitted in (("corrected the advice", True), ("did not", False)):
        part = [one for one in measured if (one.configuration.name in FITTED) == is_fitted]
        if not part:
            continue
        hits = sum(bool(one.races[OURS].verified) for one in part)
        turns = ", ".join(f"{name} {_median_turns(part, name):g}" for name in STRATEGIES)
        print(f"of {len(part)} whose trials {label}: {hits} verified; median trials to the first: {turns}")
    for one in measured:
        if not one.races[OURS].verified:
            print(f"not repaired: {one.configuration.name}: {one.races[OURS].conclusion.reason}")
    families = len({one.configuration.family for one in measured})
    print(
        f"{count} configurations of {families} families; longest trial {max(m.slowest for m in measured):.1f} CPU s\n"
    )
    ours, theirs = _median_turns(measured, OURS), _median_turns(measured, RANDOM)
    silent = sum(status == "not_reproduced" for status in healthy)
    share = shares[OURS] / max(1, count)
    verdicts = (
        (f"verified: {share:.1%} of {count}", f">= {TARGET_VERIFIED:.0%} of at least 60", share >= TARGET_VERIFIED
         and count >= 60),
        (f"trials to the first verified: {ours:g} against {theirs:g}", "at most half of random search's",
         ours <= TARGET_TRIALS * theirs and shares[OURS] >= shares[RANDOM]),
        (f"healthy that end not_reproduced: {silent} of {len(healthy)}", f"all of at least {TARGET_HEALTHY}",
         silent == len(healthy) >= TARGET_HEALTHY),
    )  # fmt: skip
    for value, target, is_met in verdicts:
        print(f"{value} (target {target}) {'PASS' if is_met else 'FAIL'}")
    is_met = all(is_met for _, _, is_met in verdicts)
    print(
        f"reruns: {share:.1%} verified (target >= {TARGET_VERIFIED:.0%}), "
        f"{ours:g} trials (<= {TARGET_TRIALS * theirs:g}), "
        f"{silent} of {len(healthy)} healthy not reproduced (all) {'PASS' if is_met else 'FAIL'}"
    )
    return is_met


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="benchmarks.reruns")
    parser.add_argument("--part", default="1/1", help="K/N: only every Nth configuration; what is done is kept")
    parser.add_argument("--drawn", type=int, metavar="SEED", help="draw other configurations of the same families")
    parser.add_argument("--family", default="", help="only families whose name starts so")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    arguments = parser.parse_args()
    part, _, of = arguments.part.partition("/")
    known = CONFIGURATIONS if arguments.drawn is None else drawn(arguments.drawn)
    chosen = [one for one in known.values() if one.family.startswith(arguments.family)]
    chosen = chosen[int(part) - 1 :: int(of)]
    with laboratory() as made, ThreadPoolExecutor(arguments.jobs) as pool:

        def work(configuration: Configuration) -> tuple[Measured | None, str | None]:
            measured, healthy = measure(made, configuration), not_reproduced(made, configuration)
            verdict = "does not fail, or its twin does not learn" if measured is None else _line(measured)
            print(f"{configuration.name}: {verdict}", flush=True)
            return measured, healthy

        results = list(pool.map(work, chosen))
    print()
    measured = [one for one, _ in results if one is not None]
    is_met = report(measured, [status for _, status in results if status is not None])
    sys.exit(0 if is_met else 1)


def _line(measured: Measured) -> str:
    return ", ".join(
        f"{name} {len(one.verified)} of {len(one.conclusion.outcomes)} ({measured.in_turn[name] or 'never'})"
        for name, one in measured.races.items()
    )


if __name__ == "__main__":
    main()
