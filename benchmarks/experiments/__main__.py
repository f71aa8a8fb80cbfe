"""Runs an experiment and prints its table; see the package."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.experiments.clipping import FAMILIES, sweep
from benchmarks.experiments.conditions import show_conditions
from benchmarks.experiments.evidence import gather, published_chances_only
from benchmarks.experiments.repairs import tabulate, try_all
from benchmarks.reruns.configurations import CONFIGURATIONS, Configuration
from benchmarks.reruns.trials import Laboratory, is_failing, laboratory


def main() -> None:
    """Run the experiment of the arguments."""
    parser = argparse.ArgumentParser(prog="benchmarks.experiments")
    parser.add_argument("experiment", choices=("evidence", "repairs", "clipping", "conditions"))
    parser.add_argument("--jobs", type=int, default=2, help="number of trials at a time")
    parser.add_argument("--pictures", type=Path, help="folder of the pictures")
    arguments = parser.parse_args()
    if arguments.experiment == "conditions":
        missing = show_conditions(arguments.pictures)
        if missing:
            parser.exit(1, f"not found: {', '.join(missing)}\n")
        return
    if arguments.experiment == "evidence":
        with published_chances_only(), laboratory() as made, ThreadPoolExecutor(arguments.jobs) as pool:
            gather(made, pool)
        return
    with laboratory() as made, ThreadPoolExecutor(arguments.jobs) as pool:
        failing = [
            configuration
            for configuration, fails in zip(
                CONFIGURATIONS.values(),
                pool.map(lambda configuration: is_failing(made, configuration), CONFIGURATIONS.values()),
                strict=True,
            )
            if fails
        ]
        if arguments.experiment == "repairs":
            _repairs(made, pool, failing, arguments.pictures)
        else:
            _clipping(made, pool, failing, arguments.pictures)


def _repairs(
    laboratory: Laboratory, pool: ThreadPoolExecutor, failing: list[Configuration], pictures: Path | None
) -> None:
    found = list(zip(failing, pool.map(lambda configuration: try_all(laboratory, configuration), failing), strict=True))
    table = tabulate(found)
    families = list(table)
    print("| remedy | " + " | ".join(families) + " |")
    print("| --- |" + " --- |" * len(families))
    for remedy in next(iter(table.values())):
        print(f"| {remedy} | " + " | ".join(str(table[family][remedy]) for family in families) + " |")
    if pictures is not None:
        from benchmarks.experiments.pictures import draw_repairs

        draw_repairs(table, pictures / "repairs.svg")


def _clipping(
    laboratory: Laboratory, pool: ThreadPoolExecutor, failing: list[Configuration], pictures: Path | None
) -> None:
    groups = [[configuration for configuration in failing if configuration.family == family] for family in FAMILIES]
    curves = dict(zip(FAMILIES, pool.map(lambda group: sweep(laboratory, group), groups), strict=True))
    print("| max_norm | " + " | ".join(f"{family}: stable, skill" for family in curves) + " |")
    print("| --- |" + " --- |" * len(curves))
    for points in zip(*curves.values(), strict=True):
        cells = " | ".join(f"{point.stable:.0%}, {point.skill:.2f}" for point in points)
        print(f"| {points[0].threshold:g} | {cells} |")
    if pictures is not None:
        from benchmarks.experiments.pictures import draw_clipping

        draw_clipping(curves, pictures / "clipping.svg")


if __name__ == "__main__":
    main()
