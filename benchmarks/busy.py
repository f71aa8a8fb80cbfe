"""Trains the same programs on a quiet and on a busy machine, and compares what the diagnosis answers.

The SDK samples at its default. Weights, data and batches are the same, so the losses are equal to the bit; the verdict,
the step at which it was announced and the layer that is named must be the same, too.

    python -m benchmarks.busy [--runs N]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.corpus.foreign.cases import Case, Program
from benchmarks.corpus.foreign.recorder import record
from benchmarks.corpus.foreign.splits import FOREIGN_FIT, FOREIGN_SPLITS
from gradmedic.protocol.runs import Training
from gradmedic_diagnosis import Diagnostician

LOOPS_PER_CORE = 2


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
        """Return what differs, apart from the share of sampled steps."""
        return [
            name for name in ("losses", "verdicts", "layer")
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
    count = parser.parse_args(arguments).runs
    cases = [(case, program) for program in FOREIGN_SPLITS[FOREIGN_FIT] for case in program.cases()]
    chosen = cases[:: max(1, len(cases) // count)][:count]
    quiet = [answer(case, program) for case, program in chosen]
    with busy_machine():
        busy = [answer(case, program) for case, program in chosen]
    same = 0
    print(f"{'training':40} {'verdicts':44} {'sampled':>15}  differs")
    for (case, _), first, second in zip(chosen, quiet, busy, strict=True):
        differences = first.differences_to(second)
        same += not differences
        verdicts = " ".join(f"{verdict}@{step}" for step, verdict in first.verdicts)
        print(f"{case.id:40} {verdicts:44} {first.sampled:7.0%} {second.sampled:7.0%}  {', '.join(differences)}")
    print(
        f"busy: {same} of {len(chosen)} trainings with the same verdicts, steps and layer on a quiet and on a busy "
        f"machine (target all) {'PASS' if same == len(chosen) else 'FAIL'}"
    )
    return 0 if same == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
