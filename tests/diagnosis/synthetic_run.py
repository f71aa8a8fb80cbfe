"""Synthetic runs of which every number is chosen: for facts that one detector's rule decides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradmedic.protocol.runs import Layer
from gradmedic_diagnosis import Block, StepSeries

STATISTICS = ("grad_norm", "nonfinite_count", "weight_norm", "update_norm", "activation_saturation")


def layers(count: int = 4) -> tuple[Layer, ...]:
    """Equal weight matrices in a row."""
    return tuple(Layer(name=f"{i}.weight", numel=100, role="weight") for i in range(count))


def run(
    loss: Sequence[float] | NDArray[np.float64],
    *,
    gradient: ArrayLike = 1.0,
    weight: ArrayLike = 10.0,
    update: ArrayLike = 0.01,
    saturation: ArrayLike = 0.0,
    learning_rate: float = 0.01,
    count: int = 4,
) -> Block:
    """Return a run of `len(loss)` steps; the other arguments broadcast to `[step, layer]`."""
    steps = len(loss)
    columns = (gradient, 0.0, weight, update, saturation)
    values = np.stack([np.broadcast_to(np.asarray(column, dtype=np.float64), (steps, count)) for column in columns], -1)
    every = np.ones(steps, dtype=np.bool_)
    return Block(
        steps=np.arange(steps),
        sampled=every,
        skipped=~every,
        statistics=STATISTICS,
        values=values.astype(np.float32),
        present=np.ones((steps, count), dtype=np.bool_),
        series={
            "loss": StepSeries(np.asarray(loss, dtype=np.float64), every),
            "learning_rate": StepSeries(np.full(steps, learning_rate), every),
        },
    )


def noisy(level: float, steps: int, *, noise: float = 0.02) -> NDArray[np.float64]:
    """Return a flat loss with relative noise."""
    return level * (1 + noise * np.random.default_rng(0).normal(size=steps))


def falling(steps: int, *, start: float = 2.3, half_life: float = 60.0) -> NDArray[np.float64]:
    """Return a loss that falls exponentially, with a little noise."""
    clean = start * 0.5 ** (np.arange(steps) / half_life)
    return np.asarray(clean * (1 + 0.02 * np.random.default_rng(1).normal(size=steps)))
