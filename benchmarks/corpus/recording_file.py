"""Writes the recording of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus.ledger import Entry
from benchmarks.corpus.training import Run


def save(path: Path, run: Run, entries: list[Entry]) -> None:
    """Write a recording: the arrays of the shared corpus, `facts` as JSON, and further series of the run."""
    records = [entry.record for entry in entries]
    arrays: dict[str, NDArray[Any]] = {
        "loss": run.loss,
        "learning_rate": run.learning_rate,
        "skipped": run.skipped,
        "layer": np.array([record.name for record in records]),
        "numel": np.array([record.numel for record in records], dtype=np.int64),
        "ndim": np.array([len(record.shape) for record in records], dtype=np.int64),
        "frozen": np.array([record.frozen for record in records], dtype=bool),
        "facts": np.array(json.dumps({"layers": [record.as_facts() for record in records], "training": run.training})),
        **run.statistics,
    }
    if run.clip_coefficient is not None:
        arrays["clip_coefficient"] = run.clip_coefficient
    if run.loss_scale is not None:
        arrays["loss_scale"] = run.loss_scale
    partial = path.with_name(path.name + ".partial.npz")
    np.savez_compressed(partial, allow_pickle=False, **arrays)
    partial.replace(path)
