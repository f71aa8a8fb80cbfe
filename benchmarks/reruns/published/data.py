"""Data of the published programs: generated, or shipped with scikit-learn. Inputs have the batch first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.corpus.programs.datasets import dataset
from benchmarks.reruns.published.program import Draw

HELD_OUT = 256
"""Number of generated examples by which a skill is measured."""


@dataclass(slots=True, kw_only=True)
class Table:
    """Training examples, and others by which the skill is measured."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    def batches(self, size: int) -> Draw:
        """Return a source of batches, drawn at random."""

        def draw() -> tuple[Tensor, Tensor]:
            chosen = torch.randint(len(self.x), (size,))
            return self.x[chosen], self.y[chosen]

        return draw


def split(x: Tensor, y: Tensor) -> Table:
    """Hold out the last examples of a table."""
    return Table(x=x[:-HELD_OUT], y=y[:-HELD_OUT], test_x=x[-HELD_OUT:], test_y=y[-HELD_OUT:])


def digits(*, pixels: str = "std", as_images: bool = False) -> Table:
    """Return scikit-learn's digits: 64 pixels `std` (standardized), `unit` (0 to 1), `bytes` (0 to 255), 10 classes.

    As images they are `[batch, 1, 8, 8]`.
    """
    made = dataset("digits", inputs="std" if pixels == "std" else "raw")
    factor = {"std": 1.0, "unit": 1 / 16, "bytes": 255 / 16}[pixels]
    shape = (-1, 1, 8, 8) if as_images else (-1, 64)
    x, test_x = ((inputs * factor).view(shape) for inputs in (made.x, made.eval_x))
    return Table(x=x, y=made.y, test_x=test_x, test_y=made.eval_y)


def blobs(classes: int = 6, features: int = 12, spread: float = 2.0) -> Table:
    """Return clouds of points around random centres, one per class."""
    y = torch.randint(classes, (1500,))
    return split(spread * torch.randn(classes, features)[y] + torch.randn(len(y), features), y)


def regression(features: int = 20, targets: int = 1, noise: float = 0.1) -> Table:
    """Return a noisy linear relation with targets of unit variance."""
    x = torch.randn(1500, features)
    y = x @ torch.randn(features, targets) / features**0.5 + noise * torch.randn(len(x), targets)
    return split(x, y)


def stripes(side: int = 8) -> Table:
    """Return noisy gratings of four directions as images `[batch, 1, side, side]`."""
    y = torch.randint(4, (1200,))
    angle, phase = y * math.pi / 4, 2 * math.pi * torch.rand(len(y))
    grid = torch.arange(side).float()
    down, across = grid.view(1, -1, 1), grid.view(1, 1, -1)
    wave = torch.cos(angle)[:, None, None] * down + torch.sin(angle)[:, None, None] * across
    x = torch.sin(1.6 * wave + phase[:, None, None]) + 0.3 * torch.randn(len(y), side, side)
    return split(x.unsqueeze(1), y)


def two_moons(count: int) -> Tensor:
    """Return points `[count, 2]` on two noisy half circles."""
    angle, upper = math.pi * torch.rand(count), torch.rand(count) < 0.5
    x = torch.where(upper, torch.cos(angle), 1 - torch.cos(angle))
    y = torch.where(upper, torch.sin(angle), 0.5 - torch.sin(angle))
    return torch.stack([x - 0.5, y - 0.25], 1) + 0.05 * torch.randn(count, 2)


def ring(count: int) -> Tensor:
    """Return points `[count, 2]` on a noisy ring of radius 2."""
    angle = 2 * math.pi * torch.rand(count)
    return 2 * torch.stack([torch.cos(angle), torch.sin(angle)], 1) + 0.05 * torch.randn(count, 2)


def recalled_symbol(length: int, symbols: int = 4) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return a source of sequences `[batch, length, symbols]`: a symbol, then noise; the symbol is the answer."""

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(symbols, (batch,))
        x = 0.1 * torch.randn(batch, length, symbols)
        x[torch.arange(batch), 0, y] += 2.0
        return x, y

    return draw


def added_numbers(length: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return the adding problem: sequences `[batch, length, 2]` of numbers and marks; the sum of two is the answer."""

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        numbers, marks, rows = torch.rand(batch, length), torch.zeros(batch, length), torch.arange(batch)
        first, second = torch.randint(length // 2, (batch,)), torch.randint(length // 2, length, (batch,))
        marks[rows, first] = marks[rows, second] = 1.0
        return torch.stack([numbers, marks], 2), (numbers * marks).sum(1, keepdim=True)

    return draw


def wave_frequency(length: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return noisy waves `[batch, length, 1]` of four frequencies, which are the classes."""

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(4, (batch,))
        time = torch.arange(length).float()
        phase = 2 * math.pi * torch.rand(batch, 1)
        wave = torch.sin(0.15 * (1 + y[:, None]) * time + phase) + 0.2 * torch.randn(batch, length)
        return wave.unsqueeze(2), y

    return draw


def characters(length: int, symbols: int = 24) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return a source of text `[batch, length]` in which each symbol has two likely successors, with its next symbols.

    The chances of the successors are fixed; three in four times the first one follows.
    """
    generator = torch.Generator().manual_seed(7)
    successors = torch.stack([torch.randperm(symbols, generator=generator) for _ in range(2)], 1)

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        text = torch.empty(batch, length + 1, dtype=torch.long)
        text[:, 0] = torch.randint(symbols, (batch,))
        choices = (torch.rand(batch, length) > 0.75).long()
        for place in range(length):
            text[:, place + 1] = successors[text[:, place], choices[:, place]]
        return text[:, :-1], text[:, 1:]

    return draw


def shifted_symbols(length: int, lag: int = 3, symbols: int = 12) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return random symbols `[batch, length]`, and at each place the symbol `lag` places before (cyclic)."""

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(symbols, (batch, length))
        return x, x.roll(lag, 1)

    return draw
