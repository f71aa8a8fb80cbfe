"""Measures the strategies on the failing trainings of one set or more, and prints the results; see the package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.reruns.configurations import CONFIGURATIONS, drawn
from benchmarks.reruns.measurement import LeftOut, Measured, measure, status_of_twin
from benchmarks.reruns.published.configurations import PUBLISHED
from benchmarks.reruns.report import SetResults, report
from benchmarks.reruns.strategies import STRATEGIES
from benchmarks.reruns.trials import Laboratory, Subject, laboratory

SETS = ("own", "drawn", "published")


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(prog="benchmarks.reruns")
    parser.add_argument("--set", choices=SETS, action="append", help="measure this set only; may be repeated")
    parser.add_argument("--seed", type=int, default=1, help="seed that draws the second set (1)")
    parser.add_argument(
        "--part", default="1/1", help="K/N: measure the Kth of N parts of each set; finished trials are kept"
    )
    parser.add_argument("--family", default="", help="measure only families whose names begin with this text")
    parser.add_argument(
        "--strategy", choices=tuple(STRATEGIES), action="append", help="measure this strategy only; may be repeated"
    )
    parser.add_argument("--jobs", type=int, default=2, help="number of trials at a time")
    arguments = parser.parse_args()
    part, _, of = arguments.part.partition("/")
    sets: dict[str, SetResults] = {}
    with laboratory() as made, ThreadPoolExecutor(arguments.jobs) as pool:
        for name in arguments.set or SETS:
            members = [
                member for member in members_of(name, arguments.seed) if member.family.startswith(arguments.family)
            ]
            sets[name] = _measure_all(
                made, pool, members[int(part) - 1 :: int(of)], arguments.strategy or tuple(STRATEGIES)
            )
    sys.exit(0 if report(sets) else 1)


def members_of(name: str, seed: int) -> list[Subject]:
    """Return the trainings of a set."""
    sets: Mapping[str, Mapping[str, Subject]] = {
        "own": CONFIGURATIONS,
        "drawn": drawn(seed),
        "published": PUBLISHED,
    }
    return list(sets[name].values())


def _measure_all(
    made: Laboratory, pool: ThreadPoolExecutor, members: list[Subject], strategies: Sequence[str]
) -> SetResults:
    def work(member: Subject) -> tuple[Measured | LeftOut, str | None]:
        result, status = measure(made, member, strategies), status_of_twin(made, member)
        print(f"{member.name}: {result.reason if isinstance(result, LeftOut) else _line(result)}", flush=True)
        return result, status

    results = list(pool.map(work, members))
    return SetResults(
        measured=[result for result, _ in results if isinstance(result, Measured)],
        left_out=[result for result, _ in results if isinstance(result, LeftOut)],
        twins=[status for _, status in results if status is not None],
    )


def _line(measured: Measured) -> str:
    return f"{measured.verdict}; " + ", ".join(
        f"{name} {len(race.verified)} of {len(race.conclusion.outcomes)} ({measured.in_turn[name] or 'never'})"
        for name, race in measured.races.items()
    )


if __name__ == "__main__":
    main()
