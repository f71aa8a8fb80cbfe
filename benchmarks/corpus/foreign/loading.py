"""Loads a foreign split: each run with its layers, training facts, framework, block and labels. It needs no torch.

runs = load_foreign("foreign-fit", "auto")
diagnostician = Diagnostician(runs[0].layers, runs[0].training, framework=runs[0].framework)
diagnostician.update(runs[0].block)
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from gradmedic.protocol.encoding import from_json
from gradmedic.protocol.runs import Layer, RunCreate, Training
from gradmedic_diagnosis import Block, StepSeries

CACHE: Final = Path(__file__).resolve().parents[2] / ".cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRun:
    """A labelled run of the foreign part."""

    id: str
    program: str
    family: str
    kind: str
    """What was meant: `healthy`, or the kind of its fault (`blow_up`, `signal`, `irreducible`, `other`). It is no
    label."""
    verdict: str
    """The right verdict: `healthy`, `vanishing` or `exploding`."""
    level: str
    """The right level: `ok`, `attention` or `critical`."""
    first_nonfinite: int | None
    """Step in which a loss, a gradient that was used, or a weight first was non-finite; None without one. A healthy run
    has one too if a single loss was non-finite and the weights stayed as they were."""
    born_in: str | None
    """Pattern of the layers in which that value was born, where construction decides it."""
    forbidden_layers: tuple[str, ...]
    """Layers whose gradients were finite in that step while those of others were not: wrong answers to where it began.
    Empty where all or none were non-finite."""
    layers: tuple[Layer, ...]
    training: Training
    framework: str | None
    block: Block

    def is_right_layer(self, name: str) -> bool | None:
        """Return whether a layer is a right answer to where the first non-finite value was born.

        None if that is not known: construction does not decide it, and every layer was non-finite or none was.
        """
        if self.first_nonfinite is None or (self.born_in is None and not self.forbidden_layers):
            return None
        if name in self.forbidden_layers:
            return False
        return self.born_in is None or re.fullmatch(self.born_in, name) is not None


def recordings_folder(split: str, sampling: str = "auto") -> Path:
    """Return the folder in which the benchmarks look for a split: `benchmarks/.cache/SPLIT-SAMPLING`."""
    return CACHE / f"{split}-{sampling}"


def load_foreign(split: str, sampling: str = "auto", directory: Path | None = None) -> list[ForeignRun]:
    """Load the runs of a split that were kept, in the order of its manifest.

    Args:
        split: `foreign-fit` or `foreign-aside`.
        sampling: `auto`, `every` or `sparse`, as the recordings were made.
        directory: folder of the recordings; by default `recordings_folder(split, sampling)`.

    Raises:
        FileNotFoundError: the split was not generated; the message has the command that does it.
    """
    folder = directory or recordings_folder(split, sampling)
    manifest = folder / "manifest.json"
    if not manifest.exists():
        raise FileNotFoundError(
            f"{manifest} does not exist; make it with `python -m benchmarks.corpus generate --split {split} "
            f"--sampling {sampling} --out {folder}`"
        )
    return [load_run(folder, entry) for entry in json.loads(manifest.read_text())]


def load_run(folder: Path, entry: dict[str, Any]) -> ForeignRun:
    """Load the run of a manifest's entry."""
    with np.load(folder / f"{entry['id']}.npz") as file:
        arrays = {name: file[name] for name in file.files}
    description = from_json(arrays["description"].tobytes(), RunCreate)
    return ForeignRun(
        id=entry["id"],
        program=entry["program"],
        family=entry["family"],
        kind=entry["kind"],
        verdict=entry["verdict"],
        level=entry["level"],
        first_nonfinite=entry["first_nonfinite"],
        born_in=entry["born_in"],
        forbidden_layers=tuple(entry["forbidden_layers"]),
        layers=tuple(description.layers),
        training=description.training or Training(),
        framework=description.framework,
        block=to_block(arrays, description.statistics),
    )


def to_block(arrays: dict[str, Any], statistics: Sequence[str]) -> Block:
    """Return the block of a recording's arrays."""

    def group(kind: str) -> dict[str, StepSeries]:
        prefix = f"{kind}.values."
        names = [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]
        return {name: StepSeries(arrays[prefix + name], arrays[f"{kind}.present.{name}"]) for name in names}

    return Block(
        steps=arrays["steps"],
        sampled=arrays["sampled"],
        skipped=arrays["skipped"],
        statistics=tuple(statistics),
        values=arrays["values"],
        present=arrays["present"],
        series=group("series"),
        metrics=group("metrics"),
    )
