"""Makes the recordings of a split, in parallel and deterministically by seed. Existing recordings are kept."""

from __future__ import annotations

import json
import math
import multiprocessing
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.corpus.families import SPLITS, Case, Family
from benchmarks.corpus.ledger import Ledger
from benchmarks.corpus.outcome import Outcome, build_up_steps, label_of
from benchmarks.corpus.programs import PROGRAMS
from benchmarks.corpus.recording_file import save
from benchmarks.corpus.script import Script
from benchmarks.corpus.training import Recipe, Run, train
from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS

SEED: Final = 20240607
RECIPE_FIELDS: Final = frozenset(field.name for field in fields(Recipe))
SCRIPT_FIELDS: Final = frozenset(field.name for field in fields(Script))


def perform(case: Case) -> tuple[Run, Ledger]:
    """Run a case. Weights, data and batches depend on its seed name alone."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED + zlib.crc32(case.seed_name.encode()))
    recipe = Recipe(**{name: value for name, value in case.config.items() if name in RECIPE_FIELDS})
    script = Script(**{name: value for name, value in case.config.items() if name in SCRIPT_FIELDS})
    model = {n: value for n, value in case.config.items() if n not in RECIPE_FIELDS and n not in SCRIPT_FIELDS}
    ledger = Ledger()
    program = script.apply(PROGRAMS[case.program](ledger, recipe.batch, **model), ledger)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = train(program, ledger, recipe)
    return run, ledger


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _fix(case: Case, twin: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the settings that differ in the repaired twin; `default` where the twin does not set one."""
    if twin is None:
        return None
    names = (case.config.keys() | twin["config"].keys()) - {"program"}
    return {
        name: twin["config"].get(name, "default")
        for name in sorted(names)
        if name not in case.config or name not in twin["config"] or case.config[name] != twin["config"][name]
    }


def make_case(case: Case, split: str, out: Path, twin: dict[str, Any] | None) -> dict[str, Any]:
    """Make a recording unless it exists; return its manifest entry, whose `label` is None if the run is dropped."""
    note = out / "entries" / f"{case.id}.json"
    digest = case.digest
    if note.exists():
        entry: dict[str, Any] = json.loads(note.read_text())
        if entry["digest"] == digest and (entry["label"] is None or (out / f"{case.id}.npz").exists()):
            return entry
    (out / f"{case.id}.npz").unlink(missing_ok=True)
    entry = {
        "id": case.id,
        "label": None,
        "family": case.family,
        "split": split,
        "cause": list(case.causes),
        "config": {"program": case.program, **case.config},
        "fix": dict.fromkeys(case.fault, "left out") if case.fault else None,
        "twin": case.twin,
        "intended": case.intended,
        "digest": digest,
    }
    if case.twin is not None and (twin is None or twin["label"] != "healthy"):
        entry["why"] = "its repaired twin does not learn"
        return entry
    started = time.process_time()
    run, ledger = perform(case)
    outcome = Outcome(loss=run.loss, died=run.died, skill=run.skill, min_skill=case.min_skill)
    label, why = label_of(outcome, case.intended, twin["skill"] if twin else None)
    if label == "healthy" and case.intended not in ("healthy", "other"):
        entry["cause"] = []
    if label in UNHEALTHY_VERDICTS and case.intended == "healthy":
        label, why = None, f"meant to be healthy, but: {why}"
    entry.update(
        label=label,
        why=why,
        first_nonfinite=run.first_nonfinite,
        build_up=build_up_steps(run.loss, run.first_nonfinite),
        steps=len(run.loss),
        skill=_finite_or_none(run.skill),
        loss_first=_finite_or_none(float(run.loss[0])),
        loss_last=_finite_or_none(outcome.end),
        loss_peak=_finite_or_none(outcome.peak),
        cpu_seconds=round(time.process_time() - started, 2),
    )
    if label is not None:
        save(out / f"{case.id}.npz", run, ledger.entries)
    note.write_text(json.dumps(entry))
    return entry


def make_family(family: Family, split: str, out: Path) -> list[dict[str, Any]]:
    """Make all recordings of a family, twins first."""
    made: dict[str, dict[str, Any]] = {}
    for case in family.cases():
        made[case.id] = make_case(case, split, out, made[case.twin] if case.twin else None)
    return list(made.values())


def _make_by_name(task: tuple[str, str, str]) -> list[dict[str, Any]]:
    name, split, out = task
    family = next(family for family in SPLITS[split] if family.name == name)
    return make_family(family, split, Path(out))


def generate(
    split: str, out: Path, *, jobs: int = 1, only: str = "", report: Callable[[str], object] = str
) -> list[dict[str, Any]]:
    """Make a split in `out`, and return its manifest, which is also written there unless `only` names some families."""
    (out / "entries").mkdir(parents=True, exist_ok=True)
    tasks = [(family.name, split, str(out)) for family in SPLITS[split] if family.name.startswith(only)]
    entries: list[dict[str, Any]] = []
    if jobs > 1:
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            for made in pool.imap(_make_by_name, tasks):
                entries += made
                _report_family(made, report)
    else:
        for task in tasks:
            made = _make_by_name(task)
            entries += made
            _report_family(made, report)
    kept = [entry for entry in entries if entry["label"] is not None]
    if not only:
        (out / "manifest.json").write_text(json.dumps(kept, indent=1) + "\n")
        (out / "made.json").write_text(json.dumps({entry["id"]: entry["digest"] for entry in entries}))
    labels = Counter(entry["label"] for entry in kept)
    seconds = sum(entry.get("cpu_seconds", 0.0) for entry in entries)
    slow = sum(1 for entry in kept if entry["label"] == "exploding" and (entry["build_up"] or 0) > 5)
    report(
        f"{split}: {len(kept)} recordings, "
        + ", ".join(f"{count} {label}" for label, count in sorted(labels.items()))
        + f"; {slow} explosions build up over more than five steps; {len(entries) - len(kept)} dropped; "
        f"{seconds:.0f} s of CPU"
    )
    return kept


def _report_family(made: list[dict[str, Any]], report: Callable[[str], object]) -> None:
    for entry in made:
        skill = entry.get("skill")
        report(
            f"{entry['id']:44} {entry['label'] or 'DROPPED':10} skill {math.nan if skill is None else skill:8.3g}  "
            f"loss {entry.get('loss_first') or 0:9.3g} -> {entry.get('loss_last') or math.nan:9.3g}  "
            f"dies {entry.get('first_nonfinite')!s:>5} after {entry.get('build_up')!s:>4}  "
            f"{entry.get('cpu_seconds', 0):5.1f} s  {entry['why'] if entry['label'] is None else ''}"
        )
