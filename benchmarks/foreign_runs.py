"""Judges the diagnosis on foreign runs: programs, families and faults that no threshold was fitted to.

The runs are those of `benchmarks.corpus.foreign`, recorded through the SDK at its default sampling. The split
`foreign-fit` was open while the detectors changed; `foreign-aside` was set aside, and `set_aside.json` lists each time
that it was opened. With the folder GRADMEDIC_FIELD (by default that beside the project), its trainings run through a
service of their own, too.

    python -m benchmarks.foreign_runs [--sampling auto|sparse|every] [--fit-only] [--verbose] [--jobs N]

These trainings are short, so that the default samples nearly all of their steps. `--sampling sparse` samples every
twentieth, as the default does in a long training.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks import calibration
from benchmarks.corpus.foreign.loading import ForeignRun, load_foreign, recordings_folder
from gradmedic.protocol.diagnosis import VerdictChange
from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS
from gradmedic_diagnosis import Diagnostician

ROOT: Final = Path(__file__).resolve().parent.parent
FOREIGN_FIT: Final = "foreign-fit"
FOREIGN_ASIDE: Final = "foreign-aside"
VERDICTS: Final = ("healthy", "vanishing", "exploding")
LEVELS: Final = ("ok", "attention", "critical")
LONG_ATTENTION: Final = 50
"""A healthy run that was at attention for more steps than this asked for it without need."""
LARGEST_BLOCK: Final = 50

TARGET_F1: Final = 0.96
TARGET_LEVEL_F1: Final = 0.93
TARGET_CRITICAL: Final = 0.01
TARGET_ATTENTION: Final = 0.05
TARGET_BIRTH_STEP: Final = 0.98
TARGET_BIRTH_LAYER: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignReading:
    """What the diagnosis answered on a run."""

    run: ForeignRun
    changes: tuple[VerdictChange, ...]
    verdict: str
    level: str
    score: float
    birth_step: int | None
    """First step of the finding of non-finite values; None without one."""
    birth_layer: str | None
    """The layer that this finding names first."""

    @property
    def counted(self) -> str:
        """The verdict that is scored: for a healthy run any alarm, even one that was withdrawn."""
        if self.run.verdict == "healthy":
            return next((c.verdict for c in self.changes if c.verdict in UNHEALTHY_VERDICTS), self.verdict)
        return self.verdict

    @property
    def was_critical(self) -> bool:
        """Whether the level ever was critical."""
        return any(change.level == "critical" for change in self.changes)

    @property
    def attention_steps(self) -> int:
        """Steps at which the level was attention."""
        ends = [*(change.step for change in self.changes), int(self.run.block.steps[-1]) + 1]
        pairs = zip(self.changes, pairwise(ends), strict=True)
        return sum(end - begin for change, (begin, end) in pairs if change.level == "attention")

    @property
    def verdicts(self) -> list[str]:
        """The verdicts in their order, without changes of learning or level alone."""
        kept: list[str] = []
        for change in self.changes:
            if [change.verdict] != kept[-1:]:
                kept.append(change.verdict)
        return kept

    @property
    def flips(self) -> int:
        """Times that an unhealthy verdict followed the other one, at once or later."""
        alarms = [verdict for verdict in self.verdicts if verdict in UNHEALTHY_VERDICTS]
        return sum(before != after for before, after in pairwise(alarms))


def read(run: ForeignRun) -> ForeignReading:
    """Diagnose a run in blocks of random sizes."""
    rng = np.random.default_rng(zlib.crc32(run.id.encode()))
    diagnostician = Diagnostician(run.layers, run.training, framework=run.framework)
    changes: list[VerdictChange] = []
    start = 0
    while start < len(run.block):
        stop = min(len(run.block), start + int(rng.integers(1, LARGEST_BLOCK + 1)))
        changes += diagnostician.update(run.block.cut(start, stop)).changes
        start = stop
    diagnosis = diagnostician.diagnose()
    birth = next((finding for finding in diagnosis.findings if finding.detector == "nonfinite"), None)
    return ForeignReading(
        run=run,
        changes=tuple(changes),
        verdict=diagnosis.verdict,
        level=diagnosis.level,
        score=diagnosis.score,
        birth_step=birth.first_step if birth else None,
        birth_layer=birth.layers[0] if birth and birth.layers else None,
    )


def f1_scores(pairs: Iterable[tuple[str, str]], classes: Sequence[str]) -> dict[str, float]:
    """Return the F1 score of each class that occurs. `pairs` are right answer and given answer.

    >>> f1_scores([("a", "a"), ("a", "b"), ("b", "b")], ("a", "b", "c"))["a"]
    0.6666666666666666
    """
    counts = Counter(pairs)
    scores = {}
    for name in classes:
        hits = counts[name, name]
        given = sum(count for (_, answer), count in counts.items() if answer == name)
        right = sum(count for (truth, _), count in counts.items() if truth == name)
        if right:
            scores[name] = 2 * hits / (given + right)
    return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignScore:
    """How right the diagnosis is on a split."""

    runs: int
    verdict_f1: float
    verdict_accuracy: float
    """Balanced accuracy: the mean recall of the classes."""
    level_f1: float
    healthy: int
    healthy_critical: int
    """Healthy runs that ever were critical."""
    ok: int
    ok_long_attention: int
    """Runs whose right level is ok and that were at attention for long."""
    flips: int
    changes: float
    """Mean number of changes of the verdict a run."""
    births: int
    birth_steps_right: int
    birth_layers: int
    birth_layers_right: int

    def list_missed(self) -> list[str]:
        """Return the targets that are missed."""
        tests = {
            f"verdict macro-F1 {self.verdict_f1:.3f}": self.verdict_f1 >= TARGET_F1,
            f"level macro-F1 {self.level_f1:.3f}": self.level_f1 >= TARGET_LEVEL_F1,
            f"{self.healthy_critical} of {self.healthy} healthy runs critical": (
                self.healthy_critical <= TARGET_CRITICAL * self.healthy
            ),
            f"{self.ok_long_attention} of {self.ok} at attention": self.ok_long_attention <= TARGET_ATTENTION * self.ok,
            f"{self.flips} flips": self.flips == 0,
            f"step of the birth right in {self.birth_steps_right} of {self.births}": (
                self.birth_steps_right >= TARGET_BIRTH_STEP * self.births
            ),
            f"layer of the birth right in {self.birth_layers_right} of {self.birth_layers}": (
                self.birth_layers_right >= TARGET_BIRTH_LAYER * self.birth_layers
            ),
        }
        return [text for text, is_met in tests.items() if not is_met]


def score(readings: Sequence[ForeignReading]) -> ForeignScore:
    """Compare the answers with the labels."""
    healthy = [reading for reading in readings if reading.run.verdict == "healthy"]
    fine = [reading for reading in readings if reading.run.level == "ok"]
    born = [reading for reading in readings if reading.run.first_nonfinite is not None]
    layers = [
        right for reading in born
        if (right := reading.run.is_right_layer(reading.birth_layer or "")) is not None
    ]  # fmt: skip
    recalls = [
        statistics.fmean(reading.counted == verdict for reading in readings if reading.run.verdict == verdict)
        for verdict in VERDICTS
        if any(reading.run.verdict == verdict for reading in readings)
    ]
    return ForeignScore(
        runs=len(readings),
        verdict_f1=_mean(f1_scores(((r.run.verdict, r.counted) for r in readings), VERDICTS).values()),
        verdict_accuracy=_mean(recalls),
        level_f1=_mean(f1_scores(((r.run.level, r.level) for r in readings), LEVELS).values()),
        healthy=len(healthy),
        healthy_critical=sum(reading.was_critical for reading in healthy),
        ok=len(fine),
        ok_long_attention=sum(reading.attention_steps > LONG_ATTENTION for reading in fine),
        flips=sum(reading.flips for reading in readings),
        changes=_mean(max(0, len(reading.verdicts) - 1) for reading in readings),
        births=len(born),
        birth_steps_right=sum(reading.birth_step == reading.run.first_nonfinite for reading in born),
        birth_layers=len(layers),
        birth_layers_right=sum(layers),
    )


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return statistics.fmean(listed) if listed else float("nan")


def describe(readings: Sequence[ForeignReading]) -> str:
    """Return the table of a split: right answers against given ones, and the figures below them."""
    result = score(readings)
    lines = [f"{'right verdict':>14} {'runs':>5} " + " ".join(f"{name:>12}" for name in (*VERDICTS, "undetermined"))]
    for verdict in VERDICTS:
        given = Counter(reading.counted for reading in readings if reading.run.verdict == verdict)
        cells = " ".join(f"{given[name]:12}" for name in (*VERDICTS, "undetermined"))
        lines.append(f"{verdict:>14} {given.total():5} {cells}")
    lines.append(f"{'right level':>14} {'runs':>5} " + " ".join(f"{name:>12}" for name in (*LEVELS, "unknown")))
    for level in LEVELS:
        given = Counter(reading.level for reading in readings if reading.run.level == level)
        lines.append(f"{level:>14} {given.total():5} " + " ".join(f"{given[name]:12}" for name in (*LEVELS, "unknown")))
    lines.append(
        f"verdict macro-F1 {result.verdict_f1:.3f}, balanced accuracy {result.verdict_accuracy:.3f}; level macro-F1 "
        f"{result.level_f1:.3f}; healthy ever critical {result.healthy_critical} of {result.healthy}; ok at attention "
        f"for more than {LONG_ATTENTION} steps {result.ok_long_attention} of {result.ok}; {result.flips} flips; "
        f"{result.changes:.2f} changes of the verdict a run; births of non-finite values: step right "
        f"{result.birth_steps_right} of {result.births}, layer right {result.birth_layers_right} of "
        f"{result.birth_layers}"
    )
    return "\n".join(lines)


def list_errors(readings: Sequence[ForeignReading]) -> list[str]:
    """Return a line for each run with a wrong verdict, level or birth. Only for a split that is open."""
    lines = []
    for reading in readings:
        run, wrong = reading.run, []
        if reading.counted != run.verdict:
            wrong.append(f"verdict {reading.counted}, should be {run.verdict}")
        if reading.level != run.level:
            wrong.append(f"level {reading.level}, should be {run.level}")
        if run.level == "ok" and reading.attention_steps > LONG_ATTENTION:
            wrong.append(f"{reading.attention_steps} steps at attention")
        if run.first_nonfinite is not None and reading.birth_step != run.first_nonfinite:
            wrong.append(f"born at {reading.birth_step}, should be {run.first_nonfinite}")
        if run.first_nonfinite is not None and run.is_right_layer(reading.birth_layer or "") is False:
            wrong.append(f"born in {reading.birth_layer}, should be {run.born_in or 'another'}")
        if reading.flips:
            wrong.append(f"flips: {' '.join(reading.verdicts)}")
        if wrong:
            path = " ".join(f"{c.step}:{c.verdict[:4]}/{c.learning[:5]}/{c.level[:4]}" for c in reading.changes[:9])
            lines.append(f"  {run.id}: {'; '.join(wrong)}  [{path}]")
    return lines


def describe_scores(readings: Sequence[ForeignReading]) -> str:
    """Describe how well the scores of the last verdicts are chances."""
    judged = [(r.score, r.verdict == r.run.verdict, 1.0) for r in readings if r.verdict != "undetermined"]
    return f"scores: {calibration.describe(judged)}"


def run_field() -> str | None:
    """Run the trainings of the field folder; return the last line of their table, None without such a folder."""
    folder = Path(os.environ.get("GRADMEDIC_FIELD", ROOT.parent / "shared" / "field"))
    if not (folder / "score.py").exists():
        return None
    done = subprocess.run([sys.executable, str(folder / "score.py")], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    print("\n" + "\n".join(lines))
    return lines[-1] if lines else "field: no answer"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, and return 0 where every target is met on the split that was set aside."""
    parser = argparse.ArgumentParser(prog="benchmarks.foreign_runs", description=__doc__)
    parser.add_argument("--sampling", choices=("auto", "sparse", "every"), default="auto")
    parser.add_argument("--fit-only", action="store_true", help="leave out the split that is set aside")
    parser.add_argument("--verbose", action="store_true", help=f"list the errors on {FOREIGN_FIT}")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="processes that record runs")
    options = parser.parse_args(arguments)
    scores: dict[str, ForeignScore] = {}
    for split in (FOREIGN_FIT,) if options.fit_only else (FOREIGN_FIT, FOREIGN_ASIDE):
        _record(split, options.sampling, options.jobs)
        runs = load_foreign(split, options.sampling)
        readings = [read(run) for run in runs]
        share = statistics.fmean(float(run.block.sampled.mean()) for run in runs)
        scores[split] = score(readings)
        print(f"\n{split}: {len(readings)} runs of {len({r.run.program for r in readings})} programs")
        print(f"sampling `{options.sampling}`: {share:.0%} of the steps carry statistics")
        print(describe(readings))
        print(describe_scores(readings))
        if options.verbose and split == FOREIGN_FIT:
            print("\n".join(list_errors(readings)))
    if options.fit_only:
        return 0
    drop = scores[FOREIGN_FIT].verdict_accuracy - scores[FOREIGN_ASIDE].verdict_accuracy
    print(f"\nbalanced accuracy lost from the open to the unseen programs: {drop:.3f}")
    run_field()
    missed = scores[FOREIGN_ASIDE].list_missed()
    result = scores[FOREIGN_ASIDE]
    print(
        f"foreign: verdict macro-F1 {result.verdict_f1:.3f} (target >= {TARGET_F1}) and level macro-F1 "
        f"{result.level_f1:.3f} (>= {TARGET_LEVEL_F1}) on {result.runs} unseen runs "
        + (f"FAIL: {'; '.join(missed)}" if missed else "PASS")
    )
    return 1 if missed else 0


def _record(split: str, sampling: str, jobs: int) -> None:
    """Record a split unless that is done."""
    from benchmarks.corpus.foreign.generate import generate_foreign, is_foreign_made

    folder = recordings_folder(split, sampling)
    if not is_foreign_made(split, folder, sampling):
        print(f"Recording the split {split} (20 minutes the first time) ...", flush=True)
        generate_foreign(split, folder, sampling=sampling, jobs=jobs, report=lambda line: print(line, flush=True))


if __name__ == "__main__":
    sys.exit(main())
