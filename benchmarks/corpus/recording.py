"""Recordings: files with the statistics of a training run, and the blocks that the diagnostician reads.

One loader reads every corpus of this format: our own, and others, whose files hold fewer facts. It needs no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.numbers import to_float32
from gradmedic.protocol.runs import Layer, Optimizer, Training
from gradmedic_diagnosis import Block, StepSeries

STATISTICS: Final = (
    "grad_norm",
    "grad_mean",
    "grad_abs_max",
    "grad_zero_fraction",
    "nonfinite_count",
    "weight_norm",
    "update_norm",
)
SERIES: Final = ("loss", "learning_rate", "clip_coefficient", "loss_scale")


def load(path: Path, *, bare: bool = False) -> tuple[tuple[Layer, ...], Training, Block]:
    """Read a recording as layers, training facts and one block of all its steps.

    If the file has no facts, or with `bare`, a layer has only its name, its size and, if it is a vector, its shape.
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
    values = np.stack([to_float32(arrays[name]) for name in STATISTICS], axis=-1)
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
