"""Judges the causes that the diagnosis names on runs whose true cause is known by construction.

The runs are those of `benchmarks.corpus.causes`, recorded through the SDK at its default sampling. `causes-fit` is
open. `causes-aside` was set aside, and `set_aside.json` lists each time that it was opened. A cause is right if the
program accepts its name. The rules of UMLAUT and AUTOTRAINER are read on the same runs (`benchmarks.cause_rules`).

With `--race`, the first three advices race against an unchanged control on runs whose cause a rerun can treat
(`benchmarks.cause_races`). Finished trials are kept, so that an interrupted race continues.

    python -m benchmarks.causes [--fit-only] [--verbose] [--race [--sample N]] [--jobs N]
"""

from __future__ import annotations

import argparse
import os
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.cause_rules import RULES
from benchmarks.corpus.causes.loading import TWIN, CauseRun, load_causes, recordings_folder
from benchmarks.reruns.report import wilson
from gradmedic.protocol.diagnosis import Advice, DiagnosisAtStep
from gradmedic_diagnosis import Diagnostician

CAUSES_FIT: Final = "causes-fit"
CAUSES_ASIDE: Final = "causes-aside"
LARGEST_BLOCK: Final = 50

TARGET_FIRST: Final = 0.70
TARGET_FIRST_TWO: Final = 0.88
TARGET_SILENT: Final = 0.97
LEAST_RUNS: Final = 150
LEAST_KINDS: Final = 30
LEAST_LOOKALIKES: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseReading:
    """What a diagnosis, or another system's rules, named for a run."""

    run: CauseRun
    named: tuple[str, ...]
    """Names of the causes, the most probable first."""
    level: str = "unknown"
    open_findings: tuple[str, ...] = ()
    """Detectors of the findings above a note that are open at the end."""
    past_findings: tuple[str, ...] = ()
    """Detectors of the findings above a note that were open at some time."""
    advice: tuple[Advice, ...] = ()

    def is_named_within(self, count: int) -> bool:
        """Return whether the true cause is among the first `count`."""
        return any(name in self.run.causes for name in self.named[:count])


def read(run: CauseRun) -> CauseReading:
    """Diagnose a run in blocks of random sizes."""
    rng = np.random.default_rng(zlib.crc32(run.id.encode()))
    diagnostician = Diagnostician(run.layers, run.training, framework=run.framework)
    start = 0
    while start < len(run.block):
        stop = min(len(run.block), start + int(rng.integers(1, LARGEST_BLOCK + 1)))
        diagnostician.update(run.block.cut(start, stop))
        start = stop
    return to_reading(run, diagnostician.diagnose())


def to_reading(run: CauseRun, diagnosis: DiagnosisAtStep) -> CauseReading:
    """Return what counts of a diagnosis."""
    shown = [finding for finding in diagnosis.findings if finding.severity != "note"]
    return CauseReading(
        run=run,
        named=tuple(cause.cause for cause in diagnosis.causes),
        level=diagnosis.level,
        open_findings=tuple(finding.detector for finding in shown if finding.resolved_step is None),
        past_findings=tuple(finding.detector for finding in shown),
        advice=tuple(diagnosis.advice),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseScore:
    """How often the true cause is named, and how often a run without a fault is left in peace."""

    failing: int
    kinds: int
    first: int
    """Failing runs whose true cause is named first."""
    first_two: int
    """Failing runs whose true cause is among the first two."""
    treatable: int
    """Failing runs whose cause a rerun can treat."""
    lookalikes: int
    silent: int
    """Look-alikes without an open finding above a note at the end."""
    always_silent: int
    """Look-alikes that never had one."""
    twins: int
    silent_twins: int
    """Runs without a fault or a likeness to one, without an open finding above a note at the end."""


def score(readings: Sequence[CauseReading]) -> CauseScore:
    """Compare the names with the true causes."""
    failing = [reading for reading in readings if reading.run.is_failing]
    lookalikes = [reading for reading in readings if not reading.run.is_failing and reading.run.kind != TWIN]
    twins = [reading for reading in readings if reading.run.kind == TWIN]
    return CauseScore(
        failing=len(failing),
        kinds=len({reading.run.kind for reading in failing}),
        first=sum(reading.is_named_within(1) for reading in failing),
        first_two=sum(reading.is_named_within(2) for reading in failing),
        treatable=sum(reading.run.treatable for reading in failing),
        lookalikes=len(lookalikes),
        silent=sum(not reading.open_findings for reading in lookalikes),
        always_silent=sum(not reading.past_findings for reading in lookalikes),
        twins=len(twins),
        silent_twins=sum(not reading.open_findings for reading in twins),
    )


def describe_kinds(readings: Sequence[CauseReading]) -> str:
    """Return a table with a row for each kind: runs, programs, first, among the first two, accepted names."""
    by_kind: defaultdict[str, list[CauseReading]] = defaultdict(list)
    for reading in readings:
        if reading.run.is_failing:
            by_kind[reading.run.kind].append(reading)
    lines = [f"{'kind':26} {'runs':>5} {'programs':>9} {'first':>6} {'first two':>10}  accepted names"]
    for kind, group in sorted(by_kind.items()):
        first, two = (sum(reading.is_named_within(count) for reading in group) for count in (1, 2))
        programs = len({reading.run.program for reading in group})
        names = " ".join(group[0].run.causes)
        lines.append(f"{kind:26} {len(group):5} {programs:9} {first:6} {two:10}  {names}")
    return "\n".join(lines)


def describe_share(hits: int, of: int) -> str:
    """Describe a share with Wilson's interval (95 %).

    >>> describe_share(57, 60)
    '57 of 60, 95.0 % (86.3 to 98.3)'
    """
    low, high = wilson(hits, of)
    return f"{hits} of {of}, {100 * hits / max(1, of):.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def describe(readings: Sequence[CauseReading]) -> str:
    """Return the figures of a split, ours and those of the other systems' rules."""
    result = score(readings)
    first, two = (describe_share(hits, result.failing) for hits in (result.first, result.first_two))
    silent = describe_share(result.silent, result.lookalikes)
    twins = describe_share(result.silent_twins, result.twins)
    lines = [
        f"true cause first: {first}; among the first two: {two}",
        f"without a finding above a note: look-alikes {silent} at the end, {result.always_silent} ever; twins {twins}",
        f"a rerun can treat the cause of {describe_share(result.treatable, result.failing)}",
    ]
    for name, rules in RULES.items():
        other = score([name_by_rules(reading.run, rules) for reading in readings])
        first, two = (describe_share(hits, other.failing) for hits in (other.first, other.first_two))
        silent = describe_share(other.silent, other.lookalikes)
        lines.append(f"{name}: true cause first {first}; among the first two {two}; silent look-alikes {silent}")
    return "\n".join(lines)


def name_by_rules(run: CauseRun, rules: Callable[[CauseRun], tuple[str, ...]]) -> CauseReading:
    """Return what another system names; each name counts as a finding."""
    named = rules(run)
    return CauseReading(run=run, named=named, open_findings=named, past_findings=named)


def list_errors(readings: Sequence[CauseReading]) -> list[str]:
    """Return a line for each run that is judged wrong. Only for a split that is open."""
    lines = []
    for reading in readings:
        if reading.run.is_failing and not reading.is_named_within(1):
            place = "second" if reading.is_named_within(2) else "missed"
            lines.append(
                f"  {reading.run.id}: {place}; {reading.level}; names {', '.join(reading.named[:3]) or 'none'}; "
                f"findings {', '.join(reading.open_findings) or 'none'}"
            )
        elif not reading.run.is_failing and reading.open_findings:
            lines.append(f"  {reading.run.id}: no fault, but {', '.join(reading.open_findings)}")
    return lines


def list_targets(result: CauseScore) -> list[tuple[str, str, bool]]:
    """Return name and value, target, and whether it is met, of each target."""
    first, two = result.first / max(1, result.failing), result.first_two / max(1, result.failing)
    silent = result.silent / max(1, result.lookalikes)
    is_large = result.failing >= LEAST_RUNS and result.kinds >= LEAST_KINDS
    return [
        (
            f"failing runs: {result.failing} of {result.kinds} kinds",
            f"at least {LEAST_RUNS} of {LEAST_KINDS}",
            is_large,
        ),
        (f"causes first: {first:.1%}", f">= {TARGET_FIRST:.0%}", first >= TARGET_FIRST),
        (f"causes among the first two: {two:.1%}", f">= {TARGET_FIRST_TWO:.0%}", two >= TARGET_FIRST_TWO),
        (
            f"look-alikes without a condition above a note: {silent:.1%} of {result.lookalikes}",
            f">= {TARGET_SILENT:.0%} of at least {LEAST_LOOKALIKES}",
            silent >= TARGET_SILENT and result.lookalikes >= LEAST_LOOKALIKES,
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, and return 0 where every target is met on the split that was set aside."""
    parser = argparse.ArgumentParser(prog="benchmarks.causes", description=__doc__)
    parser.add_argument("--fit-only", action="store_true", help="leave out the split that is set aside")
    parser.add_argument("--verbose", action="store_true", help=f"list the errors on {CAUSES_FIT}")
    parser.add_argument("--race", action="store_true", help="race the first three advices (long; continues)")
    parser.add_argument("--sample", type=int, default=60, help="number of runs that race")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes that train")
    options = parser.parse_args(arguments)
    targets: list[tuple[str, str, bool]] = []
    for split in (CAUSES_FIT,) if options.fit_only else (CAUSES_FIT, CAUSES_ASIDE):
        _record(split, options.jobs)
        readings = [read(run) for run in load_causes(split)]
        print(f"\n{split}: {len(readings)} runs of {len({r.run.program for r in readings})} programs")
        print(describe_kinds(readings))
        print(describe(readings))
        if options.verbose and split == CAUSES_FIT:
            print("\n".join(list_errors(readings)))
        targets = list_targets(score(readings))
        if options.race and (split == CAUSES_ASIDE or options.fit_only):
            from benchmarks.cause_races import race_sample

            targets += race_sample(split, readings, options.sample, options.jobs, is_verbose=options.verbose)
    print()
    for value, target, is_met in targets:
        print(f"{value} (target {target}) {'PASS' if is_met else 'FAIL'}")
    all_met = all(is_met for *_, is_met in targets)
    values = "; ".join(value for value, *_ in targets[1:])
    wanted = ", ".join(target for _, target, _ in targets[1:])
    print(f"causes: {values} (target {wanted}) {'PASS' if all_met else 'FAIL'}")
    return 0 if all_met else 1


def _record(split: str, jobs: int) -> None:
    """Record a split unless that is done."""
    from benchmarks.corpus.causes.generate import generate_causes, is_causes_made

    folder = recordings_folder(split)
    if not is_causes_made(split, folder):
        print(f"Recording the split {split} (5 minutes) ...", flush=True)
        lines: list[str] = []
        generate_causes(split, folder, jobs=jobs, report=lines.append)
        print(lines[-1])


if __name__ == "__main__":
    sys.exit(main())
