"""The tasks that the networks are trained on: a source of batches and a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.corpus.programs.datasets import dataset, python_text, unigram_entropy
from benchmarks.corpus.programs.sequences import sequence_task

DRAWN = 4000
"""Number of sequences from which the best constant answer is computed."""


@dataclass(slots=True, kw_only=True)
class Task:
    """Data and a loss."""

    draw: Callable[[int], tuple[Tensor, Tensor]]
    """Returns inputs and targets of a batch with the given size."""
    loss: Callable[[Tensor, Tensor], Tensor]
    inputs: int
    """Number of features, or of characters."""
    outputs: int
    baseline: float
    """Loss of the best constant answer."""


def make_task(name: str) -> Task:
    """Make a task by its name.

    `data:NAME[,INPUTS[,TARGETS]]` is a table (see `corpus.programs.datasets`), `copy:NAME` its reconstruction,
    `sequence:NAME:LENGTH` a sequence to answer at the end, `text:LENGTH` characters to predict.
    """
    kind, _, rest = name.partition(":")
    match kind:
        case "data":
            source, inputs, targets, *_ = [*rest.split(","), "std", "std"]
            made = dataset(source, inputs=inputs, targets=targets)

            def draw(batch: int) -> tuple[Tensor, Tensor]:
                chosen = torch.randint(len(made.x), (batch,))
                return made.x[chosen], made.y[chosen]

            loss = functional.cross_entropy if made.classes else functional.mse_loss
            outputs = made.classes or made.y.shape[1]
            return Task(draw=draw, loss=loss, inputs=made.x.shape[1], outputs=outputs, baseline=_constant_loss(made.y))
        case "copy":
            made = dataset(rest)

            def draw_same(batch: int) -> tuple[Tensor, Tensor]:
                x = made.x[torch.randint(len(made.x), (batch,))]
                return x, x

            width = made.x.shape[1]
            return Task(
                draw=draw_same, loss=functional.mse_loss, inputs=width, outputs=width, baseline=_constant_loss(made.x)
            )
        case "sequence":
            which, _, length = rest.partition(":")
            draw_sequences, width, classes = sequence_task(which, int(length))
            loss = functional.cross_entropy if classes else functional.mse_loss
            baseline = _constant_loss(draw_sequences(DRAWN)[1])
            return Task(draw=draw_sequences, loss=loss, inputs=width, outputs=classes or 1, baseline=baseline)
        case "text":
            text, characters = python_text("topics")
            window = torch.arange(int(rest) + 1)

            def draw_text(batch: int) -> tuple[Tensor, Tensor]:
                chosen = text[torch.randint(len(text) - len(window), (batch, 1)) + window]
                return chosen[:, :-1], chosen[:, 1:]

            def next_character(logits: Tensor, y: Tensor) -> Tensor:
                return functional.cross_entropy(logits.flatten(0, 1), y.flatten())

            return Task(
                draw=draw_text,
                loss=next_character,
                inputs=characters,
                outputs=characters,
                baseline=unigram_entropy(text),
            )
        case _:
            raise ValueError(f"unknown task {name!r}")


def _constant_loss(y: Tensor) -> float:
    """Return the loss of the best constant answer: the entropy of classes, or the variance of numbers."""
    return float(y.var(0, correction=0).mean()) if y.is_floating_point() else unigram_entropy(y)
