"""A recording on disk, and as what the diagnostician reads.

One idea: one loader for every corpus of this format: ours, and the recordings in ../shared/corpus, where they are
there, which carry fewer facts. Reading needs no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.runs import Layer, Optimizer, Training
from gradmedic_diagnosis import Block, StepSeries

if TYPE_CHECKING:
    from benchmarks.corpus.ledger import Entry
    from benchmarks.corpus.training import Run

STATISTICS: Final = (
    "grad_norm",
    "grad_mean",
    "grad_abs_max",
    "grad_zero_fraction",
    "nonfinite_count",
    "weight_norm",
    "update_norm",
)
LARGEST: Final = float(np.finfo(np.float32).max)
SERIES: Final = ("loss", "learning_rate", "clip_coefficient", "loss_scale")


def as_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Cast; a finite value beyond float32 becomes the largest float32, never infinity."""
    clamped = np.where(np.isfinite(values), np.clip(values, -LARGEST, LARGEST), values)
    with np.errstate(over="ignore"):
        return clamped.astype(np.float32)


def save(path: Path, run: Run, entries: list[Entry]) -> None:
    """Write a recording: the keys of the shared corpus, `facts` as JSON, and the other series that the run has."""
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


def load(path: Path, *, bare: bool = False) -> tuple[tuple[Layer, ...], Training, Block]:
    """Read a recording as layers, training facts and one block of all its steps.

    Without facts in the file, or `bare`, a layer is known by its name, size, and, where it is a vector, its shape.
    """
    arrays = read_arrays(path)
    training = Training()
    if "facts" in arrays and not bare:
        facts = json.loads(str(arrays["facts"]))
        layers = tuple(Layer(**layer) for layer in facts["layers"])
        optimizers = [Optimizer(**optimizer) for optimizer in facts["training"]["optimizers"]]
        training = Training(**{**facts["training"], "optimizers": optimizers})
    else:
        layers = tuple(
            Layer(
                name=str(name),
                numel=int(numel),
                depth=depth,
                frozen=bool(frozen),
                shape=[int(numel)] if ndim == 1 else None,
            )
            for depth, (name, numel, ndim, frozen) in enumerate(
                zip(arrays["layer"], arrays["numel"], arrays["ndim"], arrays["frozen"], strict=True)
            )
        )
    return layers, training, to_block(arrays)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read a recording's arrays as they are."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def to_block(arrays: dict[str, NDArray[Any]]) -> Block:
    """Convert a recording's arrays: absent where `nonfinite_count` is NaN; every other NaN was computed by the job."""
    present = ~np.isnan(arrays["nonfinite_count"])
    values = np.stack([as_float32(arrays[name]) for name in STATISTICS], axis=-1)
    values[~present] = 0.0
    steps = len(arrays["loss"])
    return Block(
        steps=np.arange(steps, dtype=np.int64),
        sampled=np.ones(steps, dtype=bool),
        skipped=arrays["skipped"].astype(bool),
        statistics=STATISTICS,
        values=values,
        present=present,
        series={
            name: StepSeries(arrays[name].astype(np.float64), np.ones(steps, dtype=bool))
            for name in SERIES
            if name in arrays
        },
    )
