"""Prints what changes when each constant of the diagnosis is half or twice as large.

A constant whose two rows change nothing could be another number as well; one that changes much was fitted, or marks a
real border. Nothing passes or fails.

    python -m benchmarks.sensitivity [--only NAME] [DIRECTORY ...]

Without a directory, it reads the recordings of the folder GRADMEDIC_CORPUS and the splits that were generated before.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import pkgutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

import gradmedic_diagnosis
from benchmarks.corpus.families import SPLITS
from benchmarks.diagnosis import CACHE, LONG_ATTENTION, Reading, Recording, diagnose, read_corpus, score, shared_corpus

FACTORS: Final = (0.5, 2.0)
NOT_OF_THE_VERDICT: Final = (
    "gradmedic_diagnosis.advice",
    "gradmedic_diagnosis.applicability",
    "gradmedic_diagnosis.causes",
    "gradmedic_diagnosis.race_counts",
    "gradmedic_diagnosis.remedies",
    "gradmedic_diagnosis.remedy_fit",
    "gradmedic_diagnosis.repair_counts",
    "gradmedic_diagnosis.snippets",
)
"""Modules whose constants decide causes and advice. `make bench-reruns` judges those."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A number of the diagnosis, and the modules that use it by its name."""

    name: str
    value: float
    owner: str
    users: tuple[ModuleType, ...]

    @contextmanager
    def multiplied(self, factor: float) -> Iterator[float]:
        """Multiply the constant in all modules for a while; a whole number stays one, and is at least 1."""
        value = self.value * factor
        if isinstance(self.value, int):
            value = max(1, round(value))
        for module in self.users:
            setattr(module, self.name, value)
        try:
            yield value
        finally:
            for module in self.users:
                setattr(module, self.name, self.value)


def list_constants() -> list[Constant]:
    """Return the numbers in capital letters of the modules that decide the verdict, by module and name."""
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(gradmedic_diagnosis.__path__, "gradmedic_diagnosis.")
        if not found.name.startswith(NOT_OF_THE_VERDICT)
    ]
    trees = {module: ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8")) for module in modules}
    return [
        Constant(
            name,
            getattr(module, name),
            module.__name__.partition(".")[2],
            (module, *(user for user in modules if name in _names_imported(trees[user], module.__name__))),
        )
        for module in modules
        for name in _names_assigned(trees[module])
        if name.isupper() and type(getattr(module, name)) in (int, float)
    ]


def _names_assigned(tree: ast.Module) -> list[str]:
    """Return the names that a module assigns at its top level."""
    return [
        target.id
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    ]


def _names_imported(tree: ast.Module, owner: str) -> set[str]:
    """Return the names that a module imports from another."""
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == owner]
    return {alias.name for node in imports for alias in node.names}


@dataclass(frozen=True, slots=True)
class Figures:
    """How right the diagnosis is on all recordings together."""

    macro_f1: float
    healthy_alarmed: int
    long_attention: int
    changed: int
    """Recordings that end with another verdict or level than with the constants as they are."""

    def __str__(self) -> str:
        return f"{self.macro_f1:8.3f} {self.healthy_alarmed:8} {self.long_attention:10} {self.changed:8}"


def measure(recordings: Sequence[Recording], usual: Sequence[Reading] = ()) -> tuple[Figures, list[Reading]]:
    """Diagnose the recordings; compare the ends with those of `usual`."""
    readings = [diagnose(recording) for recording in recordings]
    result = score("gradmedic", recordings, readings)
    attention = Counter(
        reading.attention_steps > LONG_ATTENTION
        for recording, reading in zip(recordings, readings, strict=True)
        if recording.label == "healthy"
    )
    pairs = zip(readings, usual or readings, strict=True)
    changed = sum((new.final, new.level) != (old.final, old.level) for new, old in pairs)
    return Figures(result.macro_f1, result.healthy_alarmed, attention[True], changed), readings


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.sensitivity", description=__doc__)
    parser.add_argument("directories", nargs="*", type=Path, metavar="DIRECTORY")
    parser.add_argument("--only", default="", help="only constants whose module or name contains this text")
    options = parser.parse_args(arguments)
    made = [CACHE / split for split in SPLITS if split != "heldout" and (CACHE / split / "manifest.json").exists()]
    directories = options.directories or [*shared_corpus(), *made]
    recordings = [recording for directory in directories for recording in read_corpus(directory)]
    print(f"{len(recordings)} recordings of {', '.join(str(directory) for directory in directories)}")
    print(f"{'constant':58} {'value':>10} {'macro-F1':>8} {'alarmed':>8} {'attention':>10} {'changed':>8}")
    figures, usual = measure(recordings)
    print(f"{'(all as they are)':58} {'':>10} {figures}")
    for constant in list_constants():
        label = f"{constant.owner}.{constant.name}"
        if options.only not in label:
            continue
        for factor in FACTORS:
            with constant.multiplied(factor) as value:
                try:
                    text = str(measure(recordings, usual)[0])
                except (ArithmeticError, ValueError, IndexError) as error:
                    text = f"    cannot be: {error}"
            print(f"{label:58} {value:10.4g} {text}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
