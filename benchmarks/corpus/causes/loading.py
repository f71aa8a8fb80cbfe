"""Loads a causes split: each run with its layers, training facts, block and true causes. It needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.corpus.foreign.loading import CACHE, to_block
from gradmedic.protocol.encoding import from_json
from gradmedic.protocol.runs import Layer, RunCreate, Training
from gradmedic_diagnosis import Block

TWIN: Final = "twin"
"""Kind of a run without a fault that is no look-alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseRun:
    """A run of the causes corpus."""

    id: str
    program: str
    kind: str
    """Kind of the fault or of the look-alike, or `TWIN`."""
    causes: tuple[str, ...]
    """Accepted names of the true cause; empty for a run that learns."""
    treatable: bool
    """Whether a remedy that the SDK applies in a rerun can treat the cause."""
    layers: tuple[Layer, ...]
    training: Training
    framework: str | None
    block: Block

    @property
    def is_failing(self) -> bool:
        """Whether the run has a fault."""
        return bool(self.causes)


def recordings_folder(split: str) -> Path:
    """Return the folder in which the benchmark looks for a split: `benchmarks/.cache/SPLIT`."""
    return CACHE / split


def load_causes(split: str, directory: Path | None = None) -> list[CauseRun]:
    """Load the runs of a split that were kept, in the order of its manifest.

    Raises:
        FileNotFoundError: the split was not generated.
    """
    folder = directory or recordings_folder(split)
    return [load_run(folder, entry) for entry in json.loads((folder / "manifest.json").read_text())]


def load_run(folder: Path, entry: dict[str, Any]) -> CauseRun:
    """Load the run of a manifest's entry."""
    with np.load(folder / f"{entry['id']}.npz") as file:
        arrays = {name: file[name] for name in file.files}
    description = from_json(arrays["description"].tobytes(), RunCreate)
    return CauseRun(
        id=entry["id"],
        program=entry["program"],
        kind=entry["kind"],
        causes=tuple(entry["causes"]),
        treatable=entry["treatable"],
        layers=tuple(description.layers),
        training=description.training or Training(),
        framework=description.framework,
        block=to_block(arrays, description.statistics),
    )
