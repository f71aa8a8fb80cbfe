"""Trains the same programs on a quiet and on a busy machine, and compares what the service answers.

Weights, data and batches are the same. A training whose losses are not equal to the bit, because torch's threads add in
another order, is not compared.

- Runs: the SDK samples at its default. The verdict, the step at which it was announced and the layer that is named must
  be the same.
- Trials of reruns: of each published program (`benchmarks.reruns`) the control, and the first remedy of its advice. The
  whole result must be the same: status, verdict, loss, evaluation, causes and advice.

    python -m benchmarks.busy [--runs N] [--programs N]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TypeVar

from benchmarks.corpus.foreign.cases import Case, Program
from benchmarks.corpus.foreign.recorder import record
from benchmarks.corpus.foreign.splits import FOREIGN_FIT, FOREIGN_SPLITS
from benchmarks.reruns.published.configurations import PUBLISHED, PublishedConfiguration
from benchmarks.reruns.trials import Laboratory, Result, laboratory
from gradmedic.protocol.runs import Training
from gradmedic_diagnosis import Diagnostician

LOOPS_PER_CORE = 2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the diagnosis answered on one training, and how much of it was sampled."""

    losses: tuple[float, ...]
    verdicts: tuple[tuple[int, str], ...]
    """Each verdict, with the step whose data changed it."""
    layer: str | None
    """The layer that the first finding for the last verdict names first."""
    sampled: float
    """Share of the steps that carry statistics."""

    def differences_to(self, other: Answer) -> list[str]:
        """Return what differs, apart from the losses and the share of sampled steps."""
        return [
            name for name in ("verdicts", "layer")
            if repr(getattr(self, name)) != repr(getattr(other, name))  # NaN is no number, and its text is
        ]  # fmt: skip


def answer(case: Case, program: Program) -> Answer:
    """Train a case and diagnose its recording."""
    recorded = record(case, program)
    diagnostician = Diagnostician(recorded.description.layers, recorded.description.training or Training())
    diagnosis = diagnostician.update(recorded.block)
    verdicts: list[tuple[int, str]] = []
    for change in diagnosis.changes:
        if not verdicts or verdicts[-1][1] != change.verdict:
            verdicts.append((change.step, change.verdict))
    named = next((f.layers[0] for f in diagnosis.findings if f.verdict == diagnosis.verdict and f.layers), None)
    sampled = float(recorded.block.sampled.mean())
    return Answer(tuple(recorded.losses), tuple(verdicts), named, sampled)


@contextmanager
def busy_machine() -> Iterator[None]:
    """Keep every core busy with loops of other processes."""
    context = multiprocessing.get_context("spawn")
    loops = [context.Process(target=_loop, daemon=True) for _ in range(LOOPS_PER_CORE * (os.cpu_count() or 1))]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.join()


def _loop() -> None:
    while True:
        sum(range(100_000))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each program, and return 0 if all answers are the same."""
    parser = argparse.ArgumentParser(prog="benchmarks.busy", description=__doc__)
    parser.add_argument("--runs", type=int, default=36, help="number of trainings, spread over the programs")
    parser.add_argument("--programs", type=int, default=36, help="number of programs that are rerun")
    parsed = parser.parse_args(arguments)
    runs, run_count = compare_runs(parsed.runs)
    trials, trial_count = compare_trials(parsed.programs)
    is_met = runs == run_count and trials == trial_count
    print(
        f"busy: {runs} of {run_count} trainings with the same verdicts, steps and layer, and {trials} of {trial_count} "
        f"trials with the same result on a quiet and on a busy machine (target all) {'PASS' if is_met else 'FAIL'}"
    )
    return 0 if is_met else 1


def compare_runs(count: int) -> tuple[int, int]:
    """Diagnose trainings on both machines; return how many have the same answer, and how many were compared."""
    cases = [(case, program) for program in FOREIGN_SPLITS[FOREIGN_FIT] for case in program.cases()]
    chosen = _spread(cases, count)
    quiet = [answer(case, program) for case, program in chosen]
    with busy_machine():
        busy = [answer(case, program) for case, program in chosen]
    same = compared = 0
    print(f"{'training':40} {'verdicts':44} {'sampled':>15}  differs")
    for (case, _), first, second in zip(chosen, quiet, busy, strict=True):
        differences = first.differences_to(second)
        if repr(first.losses) == repr(second.losses):  # NaN is no number, and its text is
            compared += 1
            same += not differences
        else:
            differences = ["not compared: losses", *differences]
        verdicts = " ".join(f"{verdict}@{step}" for step, verdict in first.verdicts)
        print(f"{case.id:40} {verdicts:44} {first.sampled:7.0%} {second.sampled:7.0%}  {', '.join(differences)}")
    return same, compared


def compare_trials(count: int) -> tuple[int, int]:
    """Run trials of published programs on both machines; return how many have the same result, and their number.

    The reason of a failed trial is not compared: it ends with what the script printed.
    """
    chosen = _spread(list(PUBLISHED.values()), count)
    with laboratory() as made:
        quiet = [_control_and_first_remedy(made, program) for program in chosen]
        with busy_machine():
            busy = [_control_and_first_remedy(made, program) for program in chosen]
    same = 0
    print(f"{'trial':64} {'status':15} {'verdict':14} {'final loss':>11}  differs")
    for program, first_results, second_results in zip(chosen, quiet, busy, strict=True):
        for (name, first), (other, second) in zip(first_results, second_results, strict=False):
            differences = [
                field.name for field in fields(Result)
                if field.name not in ("cpu_seconds", "reason")
                and repr(getattr(first, field.name)) != repr(getattr(second, field.name))
            ] + (["remedy"] if name != other else [])  # fmt: skip
            same += not differences
            loss = "" if first.curve is None else f"{first.curve.final:.4g}"
            label = f"{program.name}, {name}"
            print(f"{label:64} {first.status:15} {first.verdict:14} {loss:>11}  {', '.join(differences)}")
    return same, sum(map(len, quiet))


def _control_and_first_remedy(made: Laboratory, program: PublishedConfiguration) -> list[tuple[str, Result]]:
    """Run the control of a program and the first remedy of its advice; return their names and results."""
    control = made.run_trial(program, (), 0, has_advice=True)
    results = [("control", control)]
    if control.advice:
        results.append((control.advice[0].id, made.run_trial(program, control.advice[:1], 0, has_advice=True)))
    return results


def _spread(items: list[T], count: int) -> list[T]:
    """Return a number of items that are spread over a list."""
    return items[:: max(1, len(items) // count)][:count]


if __name__ == "__main__":
    sys.exit(main())
