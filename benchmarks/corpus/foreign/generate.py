"""Makes the recordings of a foreign split, deterministically by seed. Existing recordings are kept."""

from __future__ import annotations

import json
import math
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.corpus.foreign.cases import Case, Program
from benchmarks.corpus.foreign.labels import Ending, label_of
from benchmarks.corpus.foreign.recorder import Recorded, record
from benchmarks.corpus.foreign.set_aside import source_digest
from benchmarks.corpus.foreign.splits import FOREIGN_SPLITS
from gradmedic.protocol.encoding import to_json


def digest_of(case: Case, program: Program, sampling: str) -> str:
    """Return a digest of everything but the SDK that a recording depends on."""
    return f"{case.digest}-{source_digest(program)}-{sampling}"


def is_foreign_made(split: str, out: Path, sampling: str = "auto") -> bool:
    """Return whether `out` holds all recordings of a split, as its programs are now.

    A new version of the SDK does not show here: to record with it, use an empty folder.
    """
    made = out / "made.json"
    if not made.exists():
        return False
    wanted = {
        case.id: digest_of(case, program, sampling) for program in FOREIGN_SPLITS[split] for case in program.cases()
    }
    return bool(json.loads(made.read_text()) == wanted)


def make_case(
    case: Case, program: Program, out: Path, twin: dict[str, Any] | None, sampling: str = "auto"
) -> dict[str, Any]:
    """Make a recording unless it exists; return its entry, whose `level` is None if the run is dropped."""
    note, path = out / "entries" / f"{case.id}.json", out / f"{case.id}.npz"
    digest = digest_of(case, program, sampling)
    if note.exists():
        kept: dict[str, Any] = json.loads(note.read_text())
        if kept["digest"] == digest and (kept["level"] is None or path.exists()):
            return kept
    path.unlink(missing_ok=True)
    entry: dict[str, Any] = {
        "id": case.id,
        "program": case.program,
        "family": case.family,
        "kind": case.kind,
        "settings": case.settings,
        "twin": case.twin,
        "sampling": sampling,
        "digest": digest,
        "verdict": None,
        "level": None,
        "skill": None,
    }
    if case.twin is not None and (twin is None or twin["level"] != "ok"):
        entry["why"] = "its repaired twin does not learn"
        return entry
    recorded = record(case, program, sampling)
    ending = Ending(
        losses=recorded.losses,
        died=recorded.died,
        skill=recorded.skill,
        best_skill=recorded.best_skill,
        min_skill=case.min_skill,
        surrogate=case.surrogate,
    )
    label = label_of(ending, case.kind, twin["skill"] if twin else None)
    entry.update(
        verdict=label.verdict,
        level=label.level,
        why=label.why,
        skill=_finite_or_none(recorded.skill),
        best_skill=_finite_or_none(recorded.best_skill),
        first_nonfinite=recorded.first_nonfinite,
        born_in=case.born_in if recorded.first_nonfinite is not None else None,
        nonfinite_layers=recorded.nonfinite_gradients,
        forbidden_layers=recorded.finite_gradients,
        steps=len(recorded.losses),
        loss_first=_finite_or_none(recorded.losses[0]),
        loss_last=_finite_or_none(ending.end),
        loss_peak=_finite_or_none(ending.peak),
        cpu_seconds=round(recorded.cpu_seconds, 2),
    )
    if label.level is not None:
        save(path, recorded)
    note.write_text(json.dumps(entry))
    return entry


def save(path: Path, recorded: Recorded) -> None:
    """Write the description and the block of a run."""
    block = recorded.block
    arrays: dict[str, Any] = {
        "description": np.frombuffer(to_json(recorded.description), dtype=np.uint8),
        "steps": block.steps,
        "sampled": block.sampled,
        "skipped": block.skipped,
        "values": np.ascontiguousarray(block.values),
        "present": block.present,
    }
    for kind, group in (("series", block.series), ("metrics", block.metrics)):
        for name, series in group.items():
            arrays[f"{kind}.values.{name}"] = series.values
            arrays[f"{kind}.present.{name}"] = series.present
    partial = path.with_name(path.name + ".partial.npz")
    np.savez_compressed(partial, allow_pickle=False, **arrays)
    partial.replace(path)


def make_program(program: Program, out: Path, sampling: str) -> list[dict[str, Any]]:
    """Make all recordings of a program, twins first."""
    made: dict[str, dict[str, Any]] = {}
    for case in program.cases():
        made[case.id] = make_case(case, program, out, made[case.twin] if case.twin else None, sampling)
    return list(made.values())


def _make_by_name(task: tuple[str, str, str, str]) -> list[dict[str, Any]]:
    split, name, out, sampling = task
    program = next(program for program in FOREIGN_SPLITS[split] if program.name == name)
    return make_program(program, Path(out), sampling)


def generate_foreign(
    split: str, out: Path, *, sampling: str = "auto", jobs: int = 1, only: str = "", report: Callable[[str], object]
) -> list[dict[str, Any]]:
    """Make a split in `out`, and return its manifest, which is also written there unless `only` names some programs.

    Args:
        split: name of the split.
        out: folder of the recordings.
        sampling: `auto`, `every` or `sparse`.
        jobs: number of processes. They are forked, so that torch is imported once.
        only: beginning of the names of the programs; empty for all.
        report: takes each line of the report.
    """
    (out / "entries").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    names = [program.name for program in FOREIGN_SPLITS[split] if program.name.startswith(only)]
    tasks = [(split, name, str(out), sampling) for name in names]
    entries: list[dict[str, Any]] = []
    for made in _make_all(tasks, jobs):
        entries += made
        for entry in made:
            report(describe(entry))
    kept = [entry for entry in entries if entry["level"] is not None]
    if not only:
        (out / "manifest.json").write_text(json.dumps(kept, indent=1) + "\n")
        (out / "made.json").write_text(json.dumps({entry["id"]: entry["digest"] for entry in entries}))
    report(summarize(split, entries))
    return kept


def _make_all(tasks: list[tuple[str, str, str, str]], jobs: int) -> Iterable[list[dict[str, Any]]]:
    if jobs <= 1:
        yield from map(_make_by_name, tasks)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap(_make_by_name, tasks)


def describe(entry: dict[str, Any]) -> str:
    """Describe an entry in one line."""
    skill = entry["skill"]
    return (
        f"{entry['id']:44} {entry['verdict'] or 'DROPPED':10} {entry['level'] or '':10} "
        f"skill {_or_nan(skill):7.3f}  "
        f"loss {_or_nan(entry.get('loss_first')):9.3g} -> {_or_nan(entry.get('loss_last')):9.3g}  "
        f"dies {entry.get('first_nonfinite')!s:>5}  {entry.get('cpu_seconds', 0):5.1f} s  "
        f"{entry['why'] if entry['level'] is None else ''}"
    )


def summarize(split: str, entries: list[dict[str, Any]]) -> str:
    """Count the labels of a split in one line."""
    kept = [entry for entry in entries if entry["level"] is not None]
    verdicts = ", ".join(f"{count} {name}" for name, count in sorted(Counter(e["verdict"] for e in kept).items()))
    levels = ", ".join(f"{count} {name}" for name, count in sorted(Counter(e["level"] for e in kept).items()))
    births = sum(entry["first_nonfinite"] is not None for entry in kept)
    seconds = sum(entry.get("cpu_seconds", 0.0) for entry in entries)
    return (
        f"{split}: {len(entries)} cases of {len({e['program'] for e in entries})} programs in "
        f"{len({e['family'] for e in entries})} families; {len(kept)} kept: {verdicts}; {levels}; {births} with a "
        f"non-finite birth; {len(entries) - len(kept)} dropped; {seconds:.0f} s of CPU"
    )


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
