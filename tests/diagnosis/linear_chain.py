"""The textbook chain: linear layers W = a*I, trained by gradient descent in plain numpy.

Signal and gradient are known in closed form at the first step: the output is a^n x, and every layer's gradient has norm
a^(n-1) |delta| |x| with delta = 2 (a^n x - y) / d averaged over one sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.runs import Layer
from gradmedic_diagnosis import Block, StepSeries

STATISTICS = ("grad_norm", "nonfinite_count", "weight_norm", "update_norm")


@dataclass(frozen=True)
class Chain:
    """The recording of a chain's training."""

    layers: tuple[Layer, ...]
    block: Block
    first_output: NDArray[np.float64]
    first_input: NDArray[np.float64]


def train_chain(a: float, *, depth: int = 10, width: int = 4, steps: int = 200, learning_rate: float = 0.01) -> Chain:
    """Train `depth` layers a*I to map a fixed x to a fixed y by gradient descent on the mean squared error."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=width), rng.normal(size=width)
    weights = [a * np.eye(width) for _ in range(depth)]
    values = np.zeros((steps, depth, len(STATISTICS)))
    losses = np.zeros(steps)
    first_output = np.zeros(width)
    with np.errstate(all="ignore"):
        for step in range(steps):
            activations = [x]
            for weight in weights:
                activations.append(weight @ activations[-1])
            if step == 0:
                first_output = activations[-1]
            error = activations[-1] - y
            losses[step] = np.mean(error**2)
            delta = 2 * error / width
            gradients = [np.zeros((width, width))] * depth
            for k in reversed(range(depth)):
                gradients[k] = np.outer(delta, activations[k])
                delta = weights[k].T @ delta
            for k in range(depth):
                update = -learning_rate * gradients[k]
                values[step, k] = (
                    np.linalg.norm(gradients[k]),
                    np.count_nonzero(~np.isfinite(gradients[k])),
                    np.linalg.norm(weights[k]),
                    np.linalg.norm(update),
                )
                weights[k] = weights[k] + update
        stored = values.astype(np.float32)
    every = np.ones(steps, dtype=np.bool_)
    block = Block(
        steps=np.arange(steps),
        sampled=every,
        skipped=~every,
        statistics=STATISTICS,
        values=stored,
        present=np.ones((steps, depth), dtype=np.bool_),
        series={"loss": StepSeries(losses, every), "learning_rate": StepSeries(np.full(steps, learning_rate), every)},
    )
    layers = tuple(
        Layer(name=f"{k}.weight", shape=[width, width], fan_in=width, fan_out=width, role="weight", activation="linear")
        for k in range(depth)
    )
    return Chain(layers=layers, block=block, first_output=first_output, first_input=x)
