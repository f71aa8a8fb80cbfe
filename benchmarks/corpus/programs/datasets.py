"""Small data sets, generated or shipped with scikit-learn and Python: nothing is downloaded."""

from __future__ import annotations

import inspect
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

TABLES: Final = Path(__file__).resolve().parents[2] / ".cache" / "tables"


@dataclass(slots=True)
class Dataset:
    """Training and clean evaluation data; `classes` is 0 for regression."""

    x: Tensor
    y: Tensor
    eval_x: Tensor
    eval_y: Tensor
    classes: int


def _split(x: Tensor, y: Tensor, classes: int, share: float = 0.8) -> Dataset:
    order = torch.randperm(len(x))
    cut = int(share * len(x))
    train, held = order[:cut], order[cut:]
    return Dataset(x[train], y[train], x[held], y[held], classes)


def _from_sklearn(name: str, **options: bool) -> tuple[Tensor, Tensor]:
    """Return a table of scikit-learn. A file keeps it, because importing the package takes longer than a training."""
    kept = TABLES / f"{name}.npz"
    if not kept.exists():
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{name}")(**options)
        TABLES.mkdir(parents=True, exist_ok=True)
        draft = kept.with_suffix(f".{os.getpid()}.npz")
        np.savez(draft, x=bunch.data, y=bunch.target)
        draft.replace(kept)
    table = np.load(kept)
    return torch.tensor(table["x"], dtype=torch.float32), torch.tensor(table["y"])


def dataset(name: str, *, inputs: str = "std", label_noise: float = 0.0, targets: str = "std") -> Dataset:
    """Make a data set. `inputs` and `targets` are `raw`, `std` (standardized), or a factor of the standardized values.

    Only the training data have label noise.
    """
    made = _make(name)
    if inputs != "raw":
        mean, std = made.x.mean(0), made.x.std(0).clamp_min(1e-3)
        factor = 1.0 if inputs == "std" else float(inputs)
        made.x, made.eval_x = (made.x - mean) / std * factor, (made.eval_x - mean) / std * factor
    if made.classes == 0 and targets != "raw":
        mean, std = made.y.mean(0), made.y.std(0).clamp_min(1e-6)
        factor = 1.0 if targets == "std" else float(targets)
        made.y, made.eval_y = (made.y - mean) / std * factor, (made.eval_y - mean) / std * factor
    if label_noise > 0 and made.classes:
        noisy = torch.rand(len(made.y)) < label_noise
        made.y = torch.where(noisy, torch.randint(made.classes, made.y.shape), made.y)
    return made


def _make(name: str) -> Dataset:
    kind, _, argument = name.partition(":")
    match kind:
        case "digits" | "wine" | "breast_cancer" | "iris":
            x, y = _from_sklearn(kind)
            return _split(x, y.long(), int(y.max()) + 1)
        case "diabetes":
            x, y = _from_sklearn("diabetes", scaled=False)
            return _split(x, y.float()[:, None], 0)
        case "blobs":
            classes = int(argument or 4)
            centres = torch.randn(classes, 2) * 5
            y = torch.randint(classes, (2000,))
            return _split(centres[y] + torch.randn(2000, 2) * 0.8, y, classes)
        case "circle":
            y = torch.randint(2, (2000,))
            angle = torch.rand(2000) * 2 * math.pi
            radius = torch.where(y == 0, 1.0, 0.5) + 0.08 * torch.randn(2000)
            return _split(torch.stack([radius * angle.cos(), radius * angle.sin()], 1), y, 2)
        case "spirals":
            classes = int(argument or 2)
            y = torch.randint(classes, (2400,))
            t = torch.rand(2400).sqrt() * 2.0 * math.pi
            angle = t + 2 * math.pi * y / classes
            points = torch.stack([t * angle.cos(), t * angle.sin()], 1) / 3
            return _split(points + 0.05 * torch.randn(2400, 2), y, classes)
        case "moons":
            y = torch.randint(2, (2000,))
            angle = torch.rand(2000) * math.pi
            x = torch.stack([angle.cos(), angle.sin()], 1)
            x = torch.where(y[:, None] == 1, torch.tensor([1.0, 0.5]) - x, x)
            return _split(x + 0.1 * torch.randn(2000, 2), y, 2)
        case "parity":
            bits = int(argument or 3)
            x = torch.randint(0, 2, (4000, 16)).float() * 2 - 1
            return _split(x, (x[:, :bits].prod(1) > 0).long(), 2)
        case "housing":  # features of very different units, prices in currency
            x = torch.stack(
                [
                    torch.randn(2000) * 900 + 2000,
                    torch.randint(1, 7, (2000,)).float(),
                    torch.rand(2000) * 80 + 1930,
                    torch.rand(2000) * 12000,
                    torch.rand(2000),
                ],
                1,
            )
            y = 150 * x[:, 0] + 20000 * x[:, 1] + 800 * (x[:, 2] - 1930) + 3 * x[:, 3] + 50000 * x[:, 4].square()
            return _split(x, (y + 8000 * torch.randn(2000))[:, None], 0)
        case "friedman":
            x = torch.rand(2000, 10)
            y = 10 * (math.pi * x[:, 0] * x[:, 1]).sin() + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
            return _split(x, (y + torch.randn(2000) * 0.5)[:, None], 0)
        case "sine":
            x = torch.rand(2000, 1) * 6 - 3
            return _split(x, (x * 2).sin() + 0.3 * x + 0.05 * torch.randn(2000, 1), 0)
        case "powers":  # a polynomial's raw features
            base = torch.rand(1500, 1) * 4 - 2
            degree = int(argument or 5)
            x = torch.cat([base**k for k in range(1, degree + 1)], 1)
            return _split(x, base**3 - 2 * base + 0.1 * torch.randn(1500, 1), 0)
        case "teacher":
            x = torch.randn(3000, 12)
            hidden = torch.tanh(x @ torch.randn(12, 8))
            return _split(x, hidden @ torch.randn(8, 1) + 0.05 * torch.randn(3000, 1), 0)
        case "waves":  # one-dimensional signals in four classes
            y = torch.randint(4, (2400,))
            t = torch.linspace(0, 1, 64)
            frequency = torch.tensor([3.0, 5.0, 3.0, 5.0])[y][:, None] + 0.3 * torch.randn(2400, 1)
            phase = torch.rand(2400, 1) * 2 * math.pi
            wave = (2 * math.pi * frequency * t + phase).sin()
            wave = torch.where((y >= 2)[:, None], wave.sign(), wave)
            return _split(wave + 0.25 * torch.randn(2400, 64), y, 4)
        case "stripes":  # small images in three classes
            y = torch.randint(3, (2400,))
            grid = torch.arange(12.0)
            phase = torch.rand(2400, 1, 1) * 6
            across = torch.stack(
                [grid[None, :].expand(12, 12), grid[:, None].expand(12, 12), (grid[None, :] + grid[:, None]) * 0.7]
            )
            x = (across[y] * 1.2 + phase).sin() + 0.5 * torch.randn(2400, 12, 12)
            return _split(x.flatten(1), y, 3)
        case "checkerboard":
            side = int(argument or 2)
            x = torch.rand(2400, 2) * 2 - 1
            cell = ((x + 1) / 2 * side).long().clamp_max(side - 1)
            return _split(x, cell.sum(1) % 2, 2)
        case "rings":
            classes = int(argument or 3)
            y = torch.randint(classes, (2400,))
            direction = torch.nn.functional.normalize(torch.randn(2400, 3), dim=1)
            return _split(direction * (1 + y[:, None] + 0.15 * torch.randn(2400, 1)), y, classes)
        case "gaussians":  # a table of twenty columns
            classes = int(argument or 5)
            y = torch.randint(classes, (2400,))
            return _split(1.1 * torch.randn(classes, 20)[y] + torch.randn(2400, 20), y, classes)
        case "rare":  # a few in a hundred are of the second class
            y = (torch.rand(4000) < float(argument or 4) / 100).long()
            return _split(torch.randn(4000, 10) + 1.6 * y[:, None], y, 2)
        case "strength":  # what a recipe's quantities, in their units, make of a material
            x = torch.rand(1600, 6) * torch.tensor([540.0, 360.0, 250.0, 32.0, 1145.0, 365.0])
            y = 0.08 * x[:, 0] + 0.05 * x[:, 1] - 0.09 * x[:, 2] + 0.4 * x[:, 3] + 7 * (x[:, 5] + 1).log()
            return _split(x, (y + 2 * torch.randn(1600))[:, None], 0)
        case "counts":  # how many come, a Poisson number with a rate between one and a few dozen
            x = torch.randn(2000, 5)
            rate = (1.2 + 0.5 * x[:, 0] - 0.4 * x[:, 1] + 0.3 * x[:, 2].sin()).exp()
            return _split(x, torch.poisson(rate)[:, None], 0)
        case "saddle":
            x = torch.rand(2000, 2) * 4 - 2
            return _split(x, (x[:, :1] * x[:, 1:]) + 0.1 * torch.randn(2000, 1), 0)
        case "decay":  # a response that spans three decades and comes close to zero
            x = torch.rand(2000, 3) * 2
            return _split(x, (-1.2 * x.sum(1, keepdim=True)).exp(), 0)
        case "shapes":  # small images: a square, a cross, a disc, a bar
            y = torch.randint(4, (2000,))
            centre, size = torch.randint(3, 7, (2000, 2, 1, 1)).float(), torch.rand(2000, 1, 1) + 2
            down, right = torch.arange(10.0)[:, None] - centre[:, 0], torch.arange(10.0)[None] - centre[:, 1]
            drawn = torch.stack(
                [
                    torch.maximum(down.abs(), right.abs()) < size,
                    torch.minimum(down.abs(), right.abs()) < 0.6,
                    down.square() + right.square() < size.square(),
                    (down.abs() < 1) & (right.abs() < size + 1),
                ]
            )[y, torch.arange(2000)]
            return _split((drawn.float() + 0.15 * torch.randn(2000, 10, 10)).flatten(1), y, 4)
        case "chirps":  # one-dimensional signals whose pitch rises, falls or stays
            y = torch.randint(3, (2400,))
            t = torch.linspace(0, 1, 48)
            pitch = 4 + (y[:, None] - 1) * 2.5 * (t - 0.5)
            phase = 2 * math.pi * (torch.rand(2400, 1) + torch.cumsum(pitch, 1) / 48)
            return _split(phase.sin() + 0.2 * torch.randn(2400, 48), y, 3)
        case "impedance":  # of a circuit, from its parts in their units (Friedman 1991)
            low, high = torch.tensor([0.0, 125.0, 0.0, 1.0]), torch.tensor([100.0, 1760.0, 1.0, 11.0])
            x = low + (high - low) * torch.rand(2000, 4)
            reactance = x[:, 1] * x[:, 2] - 1 / (x[:, 1] * x[:, 3])
            return _split(x, (x[:, 0].square() + reactance.square()).sqrt()[:, None], 0)
        case "chi_square":  # whether a point is farther from the origin than most (Hastie et al. 2009)
            x = torch.randn(4000, 10)
            return _split(x, (x.square().sum(1) > 9.34).long(), 2)
        case "roll":  # how far along a rolled-up sheet
            t = 1.5 * math.pi * (1 + 2 * torch.rand(2000, 1))
            x = torch.cat([t * t.cos(), 21 * torch.rand(2000, 1), t * t.sin()], 1)
            return _split(x + 0.1 * torch.randn(2000, 3), t, 0)
        case "dots":  # small images with one to four dots
            y = torch.randint(4, (2400,))
            x = torch.zeros(2400, 10, 10)
            rows = torch.arange(2400)
            for index in range(4):
                down, right = torch.randint(1, 9, (2, 2400))
                there = (index <= y).float()
                for a, b in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)):
                    x[rows, down + a, right + b] += there
            return _split((x.clamp_max(2) + 0.1 * torch.randn(2400, 10, 10)).flatten(1), y, 4)
        case "beats":  # pulses: all alike, one of them inverted, or one of them wide
            y = torch.randint(3, (2400,))
            t = torch.arange(64.0)
            middle = torch.arange(4.0)[:, None] * 16 + 8 * torch.rand(2400, 1, 1) + 4
            odd = torch.randint(4, (2400, 1, 1)) == torch.arange(4)[:, None]
            width = torch.where(odd & (y[:, None, None] == 2), 4.0, 1.3)
            height = torch.where(odd & (y[:, None, None] == 1), -1.0, 1.0)
            pulses = height * (-((t - middle) / width).square()).exp()
            return _split(pulses.sum(1) + 0.1 * torch.randn(2400, 64), y, 3)
        case _:
            raise ValueError(f"unknown data set {name!r}")


def python_text(source: str, characters: int = 120_000) -> tuple[Tensor, int]:
    """Return text that ships with Python, as codes of its alphabet, and the alphabet's size."""
    if source == "topics":
        from pydoc_data import topics

        text = "".join(topics.topics[key] for key in sorted(topics.topics))
    else:
        module = __import__(source)
        text = inspect.getsource(module)
    text = "".join(c if 32 <= ord(c) < 127 else "\n" for c in text[:characters])
    alphabet = {c: i for i, c in enumerate(sorted(set(text)))}
    return torch.tensor([alphabet[c] for c in text]), len(alphabet)


def unigram_entropy(text: Tensor) -> float:
    """Return the entropy of the text's characters in nats."""
    share = torch.bincount(text).double() / len(text)
    share = share[share > 0]
    return float(-(share * share.log()).sum())
