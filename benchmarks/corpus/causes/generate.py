"""Makes the recordings of a causes split, deterministically by seed. Existing recordings are kept.

They are made anew when the SDK changes: what it measures is part of what is judged.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch

import gradmedic
from benchmarks.corpus.causes.cases import CauseCase, CauseProgram
from benchmarks.corpus.causes.labels import Outcome, reason_to_drop
from benchmarks.corpus.causes.session import CauseSession
from benchmarks.corpus.causes.set_aside import source_digest
from benchmarks.corpus.causes.splits import CAUSES_SPLITS
from benchmarks.corpus.foreign.generate import save
from benchmarks.corpus.foreign.recorder import Recorded, record_training

SDK: Final = Path(gradmedic.__file__).parent
UNUSED_PARTS: Final = ("cli", "export", "integrations", "protocol/remedies", "torch/remedies")
"""Folders of the SDK that the recording of an ordinary run does not use."""


@functools.cache
def sdk_digest() -> str:
    """Return a digest of the source of the SDK, without `UNUSED_PARTS`, in sixteen characters."""
    unused = tuple(SDK / part for part in UNUSED_PARTS)
    digest = hashlib.sha256()
    for path in sorted(SDK.rglob("*.py")):
        if not any(path.is_relative_to(folder) for folder in unused):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def digest_of(case: CauseCase, program: CauseProgram) -> str:
    """Return a digest of everything that a recording depends on."""
    return f"{case.digest}-{source_digest(program)}-{sdk_digest()}"


def is_causes_made(split: str, out: Path) -> bool:
    """Return whether `out` holds all recordings of a split, as its programs and the SDK are now."""
    made = out / "made.json"
    if not made.exists():
        return False
    wanted = {case.id: digest_of(case, program) for program in CAUSES_SPLITS[split] for case in program.cases()}
    return bool(json.loads(made.read_text()) == wanted)


def record_case(case: CauseCase, program: CauseProgram, sampling: str = "auto", seed: int = 0) -> Recorded:
    """Train a case and record it. `seed` is added to that of the case."""
    return record_training(
        case.id,
        case.settings,
        lambda run, examiner: program.train(CauseSession(dict(case.settings), run, examiner, case.seed + seed)),
        sampling,
    )


def make_case(case: CauseCase, program: CauseProgram, out: Path, twin: dict[str, Any] | None) -> dict[str, Any]:
    """Make a recording unless it exists; return its entry, whose `why` has the reason if the run is dropped."""
    note, path = out / "entries" / f"{case.id}.json", out / f"{case.id}.npz"
    digest = digest_of(case, program)
    if note.exists():
        kept: dict[str, Any] = json.loads(note.read_text())
        if kept["digest"] == digest and (kept["why"] is not None or path.exists()):
            return kept
    path.unlink(missing_ok=True)
    entry: dict[str, Any] = {
        "id": case.id,
        "program": case.program,
        "kind": case.kind,
        "causes": case.causes,
        "treatable": case.treatable,
        "digest": digest,
        "skill": None,
    }
    twin_skill = None if twin is None or twin["why"] is not None else twin["skill"]
    if case.twin is not None and twin_skill is None:
        return {**entry, "why": "its repaired twin does not learn"}
    recorded = record_case(case, program)
    outcome = Outcome(losses=recorded.losses, died=recorded.died, skill=recorded.skill, min_skill=case.min_skill)
    entry.update(
        why=reason_to_drop(outcome, case.manner, twin_skill),
        skill=_finite_or_none(recorded.skill),
        died=recorded.died,
        first_nonfinite=recorded.first_nonfinite,
        steps=len(recorded.losses),
        loss_first=_finite_or_none(recorded.losses[0]),
        loss_last=_finite_or_none(recorded.losses[-1]),
        cpu_seconds=round(recorded.cpu_seconds, 2),
    )
    if entry["why"] is None:
        save(path, recorded)
    note.write_text(json.dumps(entry))
    return entry


def make_program(program: CauseProgram, out: Path) -> list[dict[str, Any]]:
    """Make all recordings of a program, twins first."""
    made: dict[str, dict[str, Any]] = {}
    for case in program.cases():
        made[case.id] = make_case(case, program, out, made[case.twin] if case.twin else None)
    return list(made.values())


def _make_by_name(task: tuple[str, str, str]) -> list[dict[str, Any]]:
    split, name, out = task
    return make_program(next(program for program in CAUSES_SPLITS[split] if program.name == name), Path(out))


def generate_causes(
    split: str, out: Path, *, jobs: int = 1, only: str = "", report: Callable[[str], object]
) -> list[dict[str, Any]]:
    """Make a split in `out`, and return its manifest, which is also written there unless `only` names some programs.

    Args:
        split: name of the split.
        out: folder of the recordings.
        jobs: number of processes. They are forked, so that torch is imported once.
        only: beginning of the names of the programs; empty for all.
        report: takes each line of the report.
    """
    (out / "entries").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    tasks = [(split, program.name, str(out)) for program in CAUSES_SPLITS[split] if program.name.startswith(only)]
    entries: list[dict[str, Any]] = []
    for made in _make_all(tasks, jobs):
        entries += made
        for entry in made:
            report(describe(entry))
    kept = [entry for entry in entries if entry["why"] is None]
    if not only:
        (out / "manifest.json").write_text(json.dumps(kept, indent=1) + "\n")
        (out / "made.json").write_text(json.dumps({entry["id"]: entry["digest"] for entry in entries}))
    report(summarize(split, entries))
    return kept


def _make_all(tasks: list[tuple[str, str, str]], jobs: int) -> Iterator[list[dict[str, Any]]]:
    if jobs <= 1:
        yield from map(_make_by_name, tasks)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(_make_by_name, tasks)


def describe(entry: dict[str, Any]) -> str:
    """Describe the outcome of a run in one line."""
    numbers = [math.nan if entry.get(name) is None else entry[name] for name in ("skill", "loss_first", "loss_last")]
    return (
        f"{entry['id']:56} skill {numbers[0]:7.3f}  loss {numbers[1]:9.3g} -> {numbers[2]:9.3g}  "
        f"{'died ' if entry.get('died') else ''}{entry.get('cpu_seconds', 0):5.1f} s  "
        f"{'' if entry['why'] is None else 'DROPPED: ' + entry['why']}"
    )


def summarize(split: str, entries: list[dict[str, Any]]) -> str:
    """Count the runs of a split in one line."""
    kept = [entry for entry in entries if entry["why"] is None]
    failing = Counter(entry["kind"] for entry in kept if entry["causes"])
    twins = sum(entry["kind"] == "twin" for entry in kept)
    seconds = sum(entry.get("cpu_seconds", 0.0) for entry in entries)
    return (
        f"{split}: {len(entries)} cases of {len({e['program'] for e in entries})} programs; kept {failing.total()} "
        f"failing runs of {len(failing)} kinds, {twins} twins and {len(kept) - failing.total() - twins} look-alikes; "
        f"{len(entries) - len(kept)} dropped; {seconds:.0f} s of CPU"
    )


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
