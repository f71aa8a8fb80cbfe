"""Measures how right, how early and how cheap the diagnosis is, beside the rules of other systems.

It reads the recordings in the folder GRADMEDIC_CORPUS (by default `../shared/corpus`), if there are any, and the splits
of our own corpus, which are generated into `benchmarks/.cache` first. Each recording is streamed in blocks of random
sizes.

The last verdict of a run is scored. A healthy run that *ever* had an alarm counts as wrong. Of runs of the class
`other`, only alarms are counted. A run that is `undetermined` at its end is a miss.

    python -m benchmarks.diagnosis [--no-heldout] [--verbose] [--bare]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import calibration
from benchmarks.comparison import Outcome
from benchmarks.corpus.checksums import compare
from benchmarks.corpus.families import HELDOUT, SPLITS, is_made
from benchmarks.corpus.outcome import build_up_steps
from benchmarks.corpus.recording import load, read_arrays
from benchmarks.diagnosis_cost import measure_cost
from benchmarks.reference_rules import REFERENCES, RuleSet
from gradmedic.protocol.runs import Layer, Training
from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS
from gradmedic_diagnosis import Block, Diagnostician

ROOT: Final = Path(__file__).resolve().parent.parent
CACHE: Final = ROOT / "benchmarks" / ".cache"
ALARMS: Final = UNHEALTHY_VERDICTS[::-1]
CLASSES: Final = ("vanishing", "exploding", "healthy")
LARGEST_BLOCK: Final = 50
BUILD_UP: Final = 5
"""An explosion can be announced if it takes more steps than this before its first non-finite value."""

TARGET_F1: Final = 0.98
TARGET_ANNOUNCED: Final = 0.9
TARGET_ANNOUNCED_EARLY: Final = 0.5
EARLY: Final = 5
LONG_ATTENTION: Final = 50
"""A healthy run that was at attention for more steps than this asked for it without need."""
TARGET_EXPLOSIONS: Final = 30
TARGET_CAUSE: Final = 0.85
TARGET_BYTES: Final = 40_000

CAUSES_OF_FIX: Final[dict[str, tuple[str, ...]]] = {
    "act": ("saturating_activation", "dead_units"),
    "amp": ("precision_overflow",),
    "bias": ("saturating_activation", "dead_units", "poor_initialization"),
    "cell": ("long_recurrence", "saturating_activation"),
    "clip": ("missing_clipping", "long_recurrence"),
    "gain": ("poor_initialization",),
    "init": ("poor_initialization",),
    "loss": ("numerical_instability",),
    "lr": ("learning_rate_too_high",),
    "norm": ("missing_normalization",),
    "opt": ("learning_rate_too_high",),
    "out_act": ("saturating_activation", "numerical_instability"),
    "prep": ("unscaled_inputs",),
    "res": ("missing_normalization", "poor_initialization"),
    "sched": ("learning_rate_too_high",),
    "target_mul": ("unscaled_targets",),
    "warmup": ("learning_rate_too_high", "missing_normalization"),
    "wd": ("excessive_weight_decay",),
}
"""Causes that count as right for a repaired run of the shared recordings, by the repaired part of its configuration."""


@dataclass(slots=True, kw_only=True)
class Recording:
    """A labelled recording."""

    id: str
    label: str
    causes: tuple[str, ...]
    first_nonfinite: int | None
    build_up: int | None
    layers: tuple[Layer, ...]
    training: Training
    block: Block
    arrays: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Reading:
    """The verdicts of one system on a recording."""

    final: str
    first_alarms: dict[str, int]
    """First step of each alarm."""
    causes: tuple[str, ...] = ()
    score: float | None = None
    verdicts: tuple[str, ...] = ()
    """The verdicts one after another, from the first that is not undetermined."""
    level: str = "unknown"
    """The level at the end."""
    attention_steps: int = 0
    """Steps at which the level was attention."""

    @property
    def flips(self) -> int:
        """How often the run went from one unhealthy verdict to the other, also with a healthy one between them."""
        alarms = [verdict for verdict in self.verdicts if verdict in ALARMS]
        return sum(before != after for before, after in pairwise(alarms))

    def counted(self, label: str) -> str:
        """Return the verdict that is scored: for a healthy or other run any alarm, even one that was withdrawn."""
        if label in ("healthy", "other"):
            return next((alarm for alarm in ALARMS if alarm in self.first_alarms), self.final)
        return self.final


@dataclass(slots=True, kw_only=True)
class Score:
    """A row of the table: the results of one system on one corpus."""

    system: str
    recall: dict[str, float] = field(default_factory=dict)
    precision: dict[str, float] = field(default_factory=dict)
    macro_f1: float = 0.0
    healthy: int = 0
    healthy_alarmed: int = 0
    other: int = 0
    other_alarmed: int = 0
    steps_to: dict[str, float] = field(default_factory=dict)
    leads: list[int] = field(default_factory=list)
    """Steps from the alarm to the first non-finite value of each explosion that builds up; -1: no alarm before it."""
    cause_hits: int = 0
    cause_total: int = 0
    brier: float | None = None


def read_corpus(directory: Path, *, bare: bool = False) -> list[Recording]:
    """Read the recordings that a directory's manifest lists."""
    recordings = []
    for entry in json.loads((directory / "manifest.json").read_text()):
        path = directory / f"{entry['id']}.npz"
        layers, training, block = load(path, bare=bare)
        causes = entry.get("cause")
        if causes is None and entry["label"] in ALARMS:
            fix = entry["fix"] or _fix_of_twin(directory, entry["id"])
            causes = [cause for part in fix for cause in CAUSES_OF_FIX.get(part, ())]
        arrays = read_arrays(path)
        recordings.append(
            Recording(
                id=entry["id"],
                label=entry["label"],
                causes=tuple(causes or ()),
                first_nonfinite=entry["first_nonfinite"],
                build_up=build_up_steps(arrays["loss"], entry["first_nonfinite"]),
                layers=layers,
                training=training,
                block=block,
                arrays=arrays,
            )
        )
    return recordings


def _fix_of_twin(directory: Path, identity: str) -> dict[str, Any]:
    for entry in json.loads((directory / "manifest.json").read_text()):
        if entry["id"] == f"{identity}.fixed":
            return dict(entry["fix"])
    return {}


def diagnose(recording: Recording) -> Reading:
    """Stream a recording through a diagnostician in blocks of random sizes, and return its verdicts."""
    rng = np.random.default_rng(zlib.crc32(recording.id.encode()))
    diagnostician = Diagnostician(recording.layers, recording.training)
    first: dict[str, int] = {}
    start, steps = 0, len(recording.block)
    diagnosis = diagnostician.diagnose()
    levels = [(0, diagnosis.level)]
    verdicts: list[str] = []
    while start < steps:
        stop = min(steps, start + int(rng.integers(1, LARGEST_BLOCK + 1)))
        diagnosis = diagnostician.update(recording.block.cut(start, stop))
        levels += [(change.step, change.level) for change in diagnosis.changes]
        verdicts += [change.verdict for change in diagnosis.changes if change.verdict != "undetermined"]
        for change in diagnosis.changes:
            if not start <= change.step < stop:
                raise AssertionError(f"{recording.id}: step {change.step} is not in the block {start}..{stop - 1}")
            if change.verdict in ALARMS:
                first.setdefault(change.verdict, change.step)
        if diagnosis.verdict in ALARMS and diagnosis.verdict not in first:
            raise AssertionError(f"{recording.id}: {diagnosis.verdict} was never announced as a change")
        start = stop
    return Reading(
        final=diagnosis.verdict,
        first_alarms=first,
        causes=tuple(cause.cause for cause in diagnosis.causes),
        score=diagnosis.score,
        verdicts=tuple(verdict for verdict, _ in groupby(verdicts)),
        level=diagnosis.level,
        attention_steps=sum(
            end - begin
            for (begin, level), (end, _) in zip(levels, [*levels[1:], (steps, "")], strict=True)
            if level == "attention"
        ),
    )


def describe_levels(recordings: Sequence[Recording], readings: Sequence[Reading]) -> str:
    """Describe the levels at the end by label, and the healthy runs that were at attention for long."""
    ends = {
        label: Counter(reading.level for r, reading in zip(recordings, readings, strict=True) if r.label == label)
        for label in (*CLASSES, "other")
    }
    text = "; ".join(
        f"{label}: {', '.join(f'{count} {level}' for level, count in counts.most_common())}"
        for label, counts in ends.items()
    )
    healthy = [reading for r, reading in zip(recordings, readings, strict=True) if r.label == "healthy"]
    long = sum(reading.attention_steps > LONG_ATTENTION for reading in healthy)
    return (
        f"level at the end: {text}; healthy runs at attention for more than {LONG_ATTENTION} steps: {long} of "
        f"{len(healthy)}"
    )


def describe_course(recordings: Sequence[Recording], readings: Sequence[Reading]) -> str:
    """Describe how often verdicts changed after the first, and how often between vanishing and exploding."""
    changes = [max(0, len(reading.verdicts) - 1) for reading in readings]
    flipped = [r.id for r, reading in zip(recordings, readings, strict=True) if reading.flips]
    return (
        f"verdict changes: {statistics.fmean(changes):.2f} a run, at most {max(changes)}; flips between vanishing and "
        f"exploding: {sum(reading.flips for reading in readings)}{' (' + ', '.join(flipped) + ')' if flipped else ''}"
    )


def describe_scores(recordings: Sequence[Recording], readings: Sequence[Reading]) -> str:
    """Describe how well the scores at the end match what the runs are; `other` runs are rightly called healthy."""
    judged = [
        (reading.score, reading.counted(r.label) == ("healthy" if r.label == "other" else r.label), 1.0)
        for r, reading in zip(recordings, readings, strict=True)
        if reading.score is not None and reading.final != "undetermined"
    ]
    return f"scores at the end: {calibration.describe(judged)}"


def apply_rules(rules: RuleSet, recording: Recording) -> Reading:
    """Return the verdicts of another system's rules on a recording."""
    first = rules.first_alarms(recording.arrays)
    return Reading(final=next((alarm for alarm in ALARMS if alarm in first), "healthy"), first_alarms=first)


def score(system: str, recordings: Sequence[Recording], readings: Sequence[Reading]) -> Score:
    """Compare the verdicts of a system with the labels."""
    result = Score(system=system)
    pairs = [(r, reading, reading.counted(r.label)) for r, reading in zip(recordings, readings, strict=True)]
    f1 = []
    for verdict in CLASSES:
        predicted = [
            r.label for r, _, counted in pairs if counted == verdict and (r.label != "other" or verdict in ALARMS)
        ]
        actual = [counted for r, _, counted in pairs if r.label == verdict]
        hits = predicted.count(verdict)
        result.precision[verdict] = hits / len(predicted) if predicted else float("nan")
        result.recall[verdict] = hits / len(actual) if actual else float("nan")
        f1.append(2 * hits / (len(predicted) + len(actual)) if predicted or actual else 1.0)
    result.macro_f1 = statistics.fmean(f1)
    for r, reading, counted in pairs:
        alarmed = bool(reading.first_alarms)
        if r.label == "healthy":
            result.healthy += 1
            result.healthy_alarmed += alarmed
        elif r.label == "other":
            result.other += 1
            result.other_alarmed += alarmed
        if r.label == "exploding" and r.build_up is not None and r.build_up > BUILD_UP:
            assert r.first_nonfinite is not None
            result.leads.append(max(-1, r.first_nonfinite - reading.first_alarms.get("exploding", 10**9)))
        if r.label in ALARMS and r.causes and reading.score is not None:
            result.cause_total += 1
            result.cause_hits += counted == r.label and bool(set(reading.causes[:2]) & set(r.causes))
    for verdict in ALARMS:
        steps = [
            reading.first_alarms[verdict] for r, reading, _ in pairs
            if r.label == verdict and verdict in reading.first_alarms
        ]  # fmt: skip
        result.steps_to[verdict] = statistics.median(steps) if steps else float("nan")
    scored = [
        (reading.score, counted == r.label)
        for r, reading, counted in pairs
        if reading.score is not None and r.label != "other"
    ]
    if scored:
        result.brier = statistics.fmean((p - right) ** 2 for p, right in scored)
    return result


HEADER: Final = (
    f"{'':24} {'vanishing':>13} {'exploding':>13} {'healthy':>13} {'macro':>6} {'alarmed':>9} {'other':>6} "
    f"{'steps to':>11} {'announced before NaN':>22} {'cause':>6} {'Brier':>6}\n"
    f"{'':24} {'prec.  rec.':>13} {'prec.  rec.':>13} {'prec.  rec.':>13} {'F1':>6} {'healthy':>9} {'alarm':>6} "
    f"{'van.  expl.':>11} {'>= 1  >= 5  median':>22} {'in 2':>6} {'':>6}"
)


def row(result: Score) -> str:
    """Format one row of the table."""
    rates = " ".join(f"  {result.precision[v]:5.2f} {result.recall[v]:5.2f}" for v in CLASSES)
    lead = "-"
    if result.leads:
        median = statistics.median(result.leads)
        lead = f"{announced(result.leads, 1):4.0%} {announced(result.leads, EARLY):5.0%} {median:7.0f}"
    cause = f"{result.cause_hits / result.cause_total:.0%}" if result.cause_total else "-"
    brier = f"{result.brier:.3f}" if result.brier is not None else "-"
    return (
        f"{result.system:24} {rates} {result.macro_f1:6.3f} {result.healthy_alarmed:4}/{result.healthy:<4} "
        f"{result.other_alarmed:3}/{result.other:<2} {result.steps_to['vanishing']:5.0f} "
        f"{result.steps_to['exploding']:5.0f} {lead:>22} {cause:>6} {brier:>6}"
    )


def announced(leads: Iterable[int], steps: int) -> float:
    """Return the share of explosions announced at least so many steps before their first non-finite value."""
    leads = list(leads)
    return sum(lead >= steps for lead in leads) / len(leads) if leads else float("nan")


def errors(recordings: Sequence[Recording], readings: Sequence[Reading]) -> list[str]:
    """Describe every recording whose verdict is wrong or late, or whose cause was missed."""
    lines = []
    for r, reading in zip(recordings, readings, strict=True):
        counted = reading.counted(r.label)
        wrong = counted in ALARMS if r.label == "other" else counted != r.label
        when = ", ".join(f"{verdict} at {step}" for verdict, step in reading.first_alarms.items()) or "never alarmed"
        if wrong:
            lines.append(f"  {r.id}: is {r.label}, got {reading.final} ({when}; {len(r.block)} steps)")
            continue
        if r.label == "exploding" and (r.build_up or 0) > BUILD_UP:
            assert r.first_nonfinite is not None
            lead = r.first_nonfinite - reading.first_alarms["exploding"]
            if lead < EARLY:
                lines.append(f"  {r.id}: announced {lead} steps before {r.first_nonfinite}, built up over {r.build_up}")
        if r.label in ALARMS and r.causes and not set(reading.causes[:2]) & set(r.causes):
            lines.append(f"  {r.id}: caused by {' or '.join(r.causes)}, got {', '.join(reading.causes) or 'nothing'}")
    return lines


def shared_corpus() -> list[Path]:
    """Return the folder GRADMEDIC_CORPUS, by default that beside the project; an empty list if it has no recordings."""
    shared = Path(os.environ.get("GRADMEDIC_CORPUS", ROOT.parent / "shared" / "corpus"))
    return [shared] if (shared / "manifest.json").exists() else []


def prepare_corpora(*, heldout: bool, jobs: int) -> list[tuple[str, Path]]:
    """Return name and directory of each corpus; a split that does not exist yet is generated."""
    corpora = [("shared", shared) for shared in shared_corpus()]
    if not corpora:
        print("(GRADMEDIC_CORPUS names no folder with recordings: the shared corpus is left out)")
    for split in SPLITS:
        if split == HELDOUT and not heldout:
            continue
        if not is_made(split, CACHE / split):
            from benchmarks.corpus.generate import generate

            print(f"Generating the {split} split (several minutes the first time) ...", flush=True)
            generate(split, CACHE / split, jobs=jobs)
        corpora.append((split, CACHE / split))
    return corpora


def judge(results: dict[str, Score], state_bytes: int) -> list[str]:
    """Return the targets that are missed."""
    missed = []
    for corpus, result in results.items():
        if not result.macro_f1 >= TARGET_F1:
            missed.append(f"macro-F1 {result.macro_f1:.3f} on {corpus}")
        if result.healthy_alarmed:
            missed.append(f"{result.healthy_alarmed} healthy alarmed on {corpus}")
        if result.cause_total and result.cause_hits < TARGET_CAUSE * result.cause_total:
            missed.append(f"cause {result.cause_hits}/{result.cause_total} on {corpus}")
    leads = [lead for corpus, result in results.items() if corpus != "shared" for lead in result.leads]
    if len(leads) < TARGET_EXPLOSIONS and HELDOUT in results:
        missed.append(f"only {len(leads)} explosions that build up")
    if not announced(leads, 1) >= TARGET_ANNOUNCED:
        missed.append(f"announced {announced(leads, 1):.0%}")
    if not announced(leads, EARLY) >= TARGET_ANNOUNCED_EARLY:
        missed.append(f"announced five steps before {announced(leads, EARLY):.0%}")
    if state_bytes > TARGET_BYTES:
        missed.append(f"{state_bytes} bytes of state")
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; return 1 if a target is missed, 2 if this machine cannot tell, else 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.diagnosis", description=__doc__)
    parser.add_argument("--no-heldout", action="store_true", help="leave out the held-out split")
    parser.add_argument("--verbose", action="store_true", help="list errors, except those on the held-out split")
    parser.add_argument("--bare", action="store_true", help="use only the names and sizes of the layers")
    parser.add_argument(
        "--jobs", type=int, default=min(4, os.cpu_count() or 1), help="number of processes that generate recordings"
    )
    options = parser.parse_args(arguments)

    results: dict[str, Score] = {}
    is_same = True
    for name, directory in prepare_corpora(heldout=not options.no_heldout, jobs=options.jobs):
        recordings = read_corpus(directory, bare=options.bare)
        labels = [r.label for r in recordings]
        counts = ", ".join(f"{labels.count(label)} {label}" for label in (*CLASSES, "other"))
        readings = [diagnose(recording) for recording in recordings]
        results[name] = score("gradmedic", recordings, readings)
        print(f"\n{name}: {len(recordings)} recordings ({counts}); {len(results[name].leads)} explosions build up")
        comparison = compare(name, directory)
        is_same &= not comparison.differing
        print(comparison.describe())
        print(HEADER)
        print(row(results[name]))
        print(describe_levels(recordings, readings))
        print(describe_course(recordings, readings))
        print(describe_scores(recordings, readings))
        for rules in REFERENCES:
            print(row(score(rules.name, recordings, [apply_rules(rules, recording) for recording in recordings])))
        if options.verbose and name != HELDOUT:
            print("\n".join(errors(recordings, readings)) or "  no errors")
    cost, milliseconds, state_bytes = measure_cost()
    print(f"\n50 x 100 x 8 block: {milliseconds:.2f} ms of CPU (median); state of 100 layers: {state_bytes} bytes")
    print(cost.describe())
    missed = judge(results, state_bytes)
    outcome = conclude(missed, is_same=is_same, cost=cost.judge())
    worst = min(result.macro_f1 for result in results.values())
    leads = [lead for corpus, result in results.items() if corpus != "shared" for lead in result.leads]
    hits = sum(result.cause_hits for result in results.values())
    total = sum(result.cause_total for result in results.values())
    print(
        f"diagnosis: macro-F1 {worst:.3f} (target >= {TARGET_F1} on each corpus), "
        f"{sum(result.healthy_alarmed for result in results.values())} healthy alarmed (0), "
        f"announced {announced(leads, 1):.0%} of {len(leads)} (>= {TARGET_ANNOUNCED:.0%}), {EARLY} steps before "
        f"{announced(leads, EARLY):.0%} (>= {TARGET_ANNOUNCED_EARLY:.0%}), cause {hits / max(total, 1):.0%} "
        f"(>= {TARGET_CAUSE:.0%}), {state_bytes} bytes (<= {TARGET_BYTES}) {outcome.value}"
        + (f": {'; '.join(missed)}" if missed else "")
    )
    return {Outcome.MET: 0, Outcome.MISSED: 1, Outcome.CANNOT_TELL: 2}[outcome]


def conclude(missed: Sequence[str], *, is_same: bool, cost: Outcome) -> Outcome:
    """Return the outcome of the benchmark.

    A target that is missed on recordings that differ from those of the published figures may be missed because of the
    processor, so that it cannot be told whether the code misses it.
    """
    if cost is Outcome.MISSED or (missed and is_same):
        return Outcome.MISSED
    return Outcome.CANNOT_TELL if missed else cost


if __name__ == "__main__":
    sys.exit(main())
