"""What guards save when a training meets a fault, what they touch when it meets none, and what they cost.

`make bench-guards` trains small transformers, convolutional and recurrent networks with SGD and Adam, each with a fault
at a drawn step: a bad batch, a gradient spike, a NaN, or a jump of the learning rate. The same training meets the same
fault without a guard, with `on_unhealthy="skip"` and `"rewind"`, and with three rules that clip the gradient. It counts
as saved if its end metric, the loss of evaluation data, is at most the worst of five clean seeds of the same training,
plus a quarter of their range and 2 percent of that loss. Nothing was fitted to these trainings: faults, networks and
tolerance were written down before the first reading.

A training takes a second or two, so that few verdicts of the service arrive before its end: the guards have to do with
what they see in the process.

A treatment touches a clean training if it changes any step. For guards, these are their guard actions; a training that
ends in the range may have been touched.

What the guards cost is measured by `benchmarks.guard_cost`.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks import servers
from benchmarks.guard_cost import run_costs
from benchmarks.guard_rules import GUARDS, NOTHING, TREATMENTS, make_treatment
from benchmarks.guard_trainings import FAULTS, NETWORKS, OPTIMIZERS, Outcome, Program, draw_programs, train
from gradmedic_service.database import schema

CLEAN_SEEDS = 5
RANGE_SHARE, LOSS_SHARE = 0.25, 0.02
"""What is added to the worst of the clean seeds: a share of their range, and a share of that loss."""
TARGET_SAVED, TARGET_TOUCHED = 0.90, 0


@dataclass(slots=True)
class Judged:
    """A program with the outcome of each treatment."""

    program: Program
    clean: list[float]
    """End metrics of the clean seeds."""
    faulty: dict[str, Outcome]
    untouched: dict[str, Outcome]
    """Outcomes without a fault, by treatment."""
    errors: list[str]

    @property
    def bound(self) -> float:
        """The largest end metric that is within the range of the clean seeds."""
        worst = max(self.clean)
        return worst + RANGE_SHARE * (worst - min(self.clean)) + LOSS_SHARE * worst

    def is_saved(self, treatment: str) -> bool:
        """Whether the training ended in the range in spite of the fault."""
        return treatment in self.faulty and self.faulty[treatment].loss <= self.bound


def judge(program: Program, url: str) -> Judged:
    """Train a program with and without its fault, with all treatments."""
    torch.set_num_threads(1)
    logging.getLogger("gradmedic").setLevel(logging.CRITICAL)
    for name in [name for name in os.environ if name.startswith("GRADMEDIC_")]:
        del os.environ[name]
    clean = [train(program, seed, make_treatment(NOTHING, url), is_faulty=False).loss for seed in range(CLEAN_SEEDS)]
    judged = Judged(program, clean, {}, {}, [])
    for name in TREATMENTS:
        for outcomes, is_faulty in ((judged.faulty, True), (judged.untouched, False)):
            if name == NOTHING and not is_faulty:
                continue
            try:
                outcomes[name] = train(program, 0, make_treatment(name, url), is_faulty=is_faulty)
            except Exception:  # an error in a guard must not end the benchmark, and counts as not saved
                judged.errors.append(f"{program.name}, {name}: {traceback.format_exc()}")
    return judged


def judge_all(programs: Sequence[Program], workers: int, *, is_verbose: bool) -> list[Judged]:
    """Judge programs in several processes, beside one service."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite:///{folder}/guards.db"
        schema.upgrade(database)
        with (
            servers.gradmedic(database, Path(folder)) as (url, _),
            ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        ):
            for judged in pool.map(judge, programs, [url] * len(programs)):
                results.append(judged)
                if is_verbose:
                    losses = ", ".join(f"{name} {judged.faulty[name].loss:.3f}" for name in judged.faulty)
                    print(
                        f"{judged.program.number:3} {judged.program.name:36} <= {judged.bound:.3f}: {losses}",
                        flush=True,
                    )
                for error in judged.errors:
                    print(error, file=sys.stderr, flush=True)
    return results


def print_tables(results: Sequence[Judged]) -> None:
    """Print the shares of saved trainings by fault, network and optimizer, and what was touched without a fault."""
    groups = {
        **{fault: [each for each in results if each.program.fault.kind == fault] for fault in FAULTS},
        **{name: [each for each in results if each.program.network == name] for name in NETWORKS},
        **{name: [each for each in results if each.program.optimizer == name] for name in OPTIMIZERS},
        "all": [*results],
    }
    print("saved: ended within the range of five clean seeds in spite of the fault")
    print(f"{'':20} " + " ".join(f"{name:>14}" for name in groups) + "   steps lost (median)")
    for treatment in TREATMENTS:
        cells = [
            f"{sum(each.is_saved(treatment) for each in members)} of {len(members)}" for members in groups.values()
        ]
        lost = [each.faulty[treatment].lost_steps for each in results if treatment in each.faulty]
        median = f"{statistics.median(lost):g}" if treatment in GUARDS and lost else ""
        print(f"{treatment:20} " + " ".join(f"{cell:>14}" for cell in cells) + f"   {median}")
    print(f"\n{'without a fault':20} {'touched':>14} {'in the range':>14}")
    for treatment in TREATMENTS:
        if treatment == NOTHING:
            continue
        ends = [each.untouched[treatment] for each in results if treatment in each.untouched]
        within = sum(treatment in each.untouched and each.untouched[treatment].loss <= each.bound for each in results)
        touched = f"{sum(end.is_touched for end in ends)} of {len(results)}"
        print(f"{treatment:20} {touched:>14} {f'{within} of {len(results)}':>14}")


def run_trainings(count: int, seed: int, workers: int, *, is_verbose: bool) -> tuple[str, bool]:
    """Print what was saved and touched; return that in short, and whether the targets are met."""
    begun = time.monotonic()
    results = judge_all(draw_programs(count, seed), workers, is_verbose=is_verbose)
    print_tables(results)
    print(f"{len(results)} programs, {time.monotonic() - begun:.0f} s")
    are_good, parts = [not any(each.errors for each in results)], []
    for name in GUARDS:
        saved = sum(each.is_saved(name) for each in results) / len(results)
        touched = sum(name not in each.untouched or each.untouched[name].is_touched for each in results)
        is_good = saved >= TARGET_SAVED and touched <= TARGET_TOUCHED
        are_good.append(is_good)
        parts.append(f"{name} saved {saved:.1%} and touched {touched} clean trainings")
        print(
            f"bench-guards, {name}: {saved:.3f} saved, {touched} clean trainings touched "
            f"(target >= {TARGET_SAVED:.2f}, {TARGET_TOUCHED}) {'PASS' if is_good else 'FAIL'}"
        )
    return f"{', '.join(parts)} (target >= {TARGET_SAVED:.0%}, {TARGET_TOUCHED})", all(are_good)


def run_cost() -> tuple[str, bool]:
    """Print what the guards cost, beside a service; return that in short, and whether the targets are met."""
    logging.getLogger("gradmedic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite:///{folder}/guards.db"
        schema.upgrade(database)
        with servers.gradmedic(database, Path(folder)) as (url, _):
            return run_costs(url)


def main() -> int:
    """Print the tables and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="seed of the programs")
    parser.add_argument("--programs", type=int, default=60, help="number of programs; each has 16 trainings")
    parser.add_argument("--workers", type=int, default=2, help="number of processes that train")
    parser.add_argument("--part", choices=("all", "trainings", "cost"), default="all")
    parser.add_argument("--verbose", action="store_true", help="print every program")
    arguments = parser.parse_args()
    outcomes = []
    if arguments.part != "trainings":
        outcomes.append(run_cost())
    if arguments.part != "cost":
        is_verbose = arguments.verbose
        outcomes.append(run_trainings(arguments.programs, arguments.seed, arguments.workers, is_verbose=is_verbose))
    is_good = all(is_met for _, is_met in outcomes)
    print(f"bench-guards: {'; '.join(text for text, _ in outcomes)} {'PASS' if is_good else 'FAIL'}")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
