"""Small trainings with an injected fault, for `benchmarks.guards`: what is trained, which fault it meets, and its end.

A program is drawn by a number: the network and its size, the optimizer and its learning rate, and the fault. The data
are characters of the Python language reference and the digits of scikit-learn. The batch of a step depends on the seed
and the step alone, so that a training that goes back meets the next batches, and all treatments meet the same fault.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pydoc_data.topics import topics  # text that ships with Python
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.corpus.programs.datasets import Dataset, dataset

STEPS: Final = 300
BATCH: Final = 16
CONTEXT: Final = 32
"""Characters of an example."""
EVALUATED: Final = 64
"""Examples of text that the end metric is computed on."""
NETWORKS: Final = ("transformer", "cnn", "rnn")
OPTIMIZERS: Final = ("SGD", "Adam")
FAULTS: Final = ("bad batch", "gradient spike", "NaN", "rate jump")
FIRST, LAST = 0.4, 0.7
"""Shares of the steps between which a fault begins."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong in a training, for one or a few steps."""

    kind: str
    first: int
    steps: int
    size: float
    """Factor of the inputs, of the gradient or of the learning rate."""

    def holds(self, step: int, kind: str) -> bool:
        """Whether a fault of this kind holds in a step."""
        return self.kind == kind and self.first <= step < self.first + self.steps


@dataclass(frozen=True, slots=True)
class Program:
    """A training and its fault."""

    number: int
    network: str
    optimizer: str
    width: int
    depth: int
    variant: int
    learning_rate: float
    fault: Fault

    @property
    def name(self) -> str:
        """What the table shows."""
        return f"{self.network} {self.optimizer} {self.fault.kind}"


def draw_programs(count: int, seed: int) -> list[Program]:
    """Return programs of all networks, optimizers and faults in turn."""
    return [_draw_program(number, random.Random(f"{seed} {number}")) for number in range(count)]


def _draw_program(number: int, draw: random.Random) -> Program:
    kind = FAULTS[number % len(FAULTS)]
    network = NETWORKS[number // len(FAULTS) % len(NETWORKS)]
    optimizer = OPTIMIZERS[(number + number // (len(FAULTS) * len(NETWORKS))) % len(OPTIMIZERS)]
    decades = {"bad batch": (1.5, 3.0), "gradient spike": (2.0, 5.0), "NaN": (0.0, 0.0), "rate jump": (1.0, 2.5)}[kind]
    steps = draw.randint(2, 8) if kind == "rate jump" else draw.randint(1, 3)
    rates = {
        ("transformer", "SGD"): (0.05, 0.15), ("cnn", "SGD"): (0.02, 0.08), ("rnn", "SGD"): (0.2, 0.5),
        ("transformer", "Adam"): (1e-3, 3e-3), ("cnn", "Adam"): (1e-3, 3e-3), ("rnn", "Adam"): (2e-3, 5e-3),
    }[network, optimizer]  # fmt: skip
    return Program(
        number=number,
        network=network,
        optimizer=optimizer,
        width=draw.choice((32, 48, 64)),
        depth=1 if network == "rnn" else draw.choice((1, 2)),  # a deep one takes three times as long
        variant=draw.randrange(2),
        learning_rate=math.exp(draw.uniform(*map(math.log, rates))),
        fault=Fault(kind, int(draw.uniform(FIRST, LAST) * STEPS), steps, 10 ** draw.uniform(*decades)),
    )


# --- networks ---------------------------------------------------------------------------------------------------------


class Transformer(nn.Module):
    """Predicts the next character; with norms before or behind the sublayers."""

    def __init__(self, characters: int, width: int, depth: int, *, norm_first: bool) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(characters, width), nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=norm_first)
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, characters)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits `[batch, character, time]`."""
        states = self.layers(self.embedding(tokens) + self.places, mask=self.mask, is_causal=True)
        logits: Tensor = self.head(states)
        return logits.transpose(1, 2)


class Recurrent(nn.Module):
    """Predicts the next character; a plain cell or a gated one."""

    def __init__(self, characters: int, width: int, depth: int, *, is_gated: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 32)
        self.cell = (nn.GRU if is_gated else nn.RNN)(32, width, depth, batch_first=True)
        self.head = nn.Linear(width, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits `[batch, character, time]`."""
        logits: Tensor = self.head(self.cell(self.embedding(tokens))[0])
        return logits.transpose(1, 2)


def convolutional(width: int, depth: int, *, has_norm: bool) -> nn.Module:
    """Return a network that classifies images of 8 x 8 pixels, with or without batch normalization."""
    parts: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    channels = 1
    for _ in range(depth + 1):
        parts += [
            nn.Conv2d(channels, width // 4, 3, padding=1),
            nn.BatchNorm2d(width // 4) if has_norm else nn.Identity(),
        ]
        parts += [nn.ReLU()]
        channels = width // 4
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 10))


@cache
def read_text() -> tuple[Tensor, int]:
    """Return the text as tokens, and the number of its characters."""
    text = "".join(topics[name] for name in sorted(topics))[:200_000]
    index = {character: i for i, character in enumerate(sorted(set(text)))}
    return torch.tensor([index[character] for character in text]), len(index)


@cache
def read_digits() -> Dataset:
    """Return the digits, always split alike."""
    torch.manual_seed(0)
    return dataset("digits")


class Data:
    """The batches and the evaluation data of a training."""

    def __init__(self, program: Program, seed: int) -> None:
        self.is_text = program.network != "cnn"
        self._seed = seed
        if self.is_text:
            tokens, self.characters = read_text()
            cut = int(0.9 * len(tokens))
            self._tokens, held = tokens[:cut], tokens[cut:]
            starts = torch.linspace(0, len(held) - CONTEXT - 2, EVALUATED).long()
            self.evaluation = self._windows(held, starts)
        else:
            digits = read_digits()
            self._x, self._y = digits.x, digits.y
            self.evaluation = digits.eval_x, digits.eval_y

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a step."""
        generator = torch.Generator().manual_seed(self._seed * 100_003 + step)
        if self.is_text:
            return self._windows(
                self._tokens, torch.randint(len(self._tokens) - CONTEXT - 1, (BATCH,), generator=generator)
            )
        rows = torch.randint(len(self._x), (2 * BATCH,), generator=generator)
        return self._x[rows], self._y[rows]

    def corrupt(self, x: Tensor, y: Tensor, step: int, size: float) -> tuple[Tensor, Tensor]:
        """Return a bad batch: images that were not scaled, or one character over and over with targets at random."""
        if not self.is_text:
            return x * size, y
        generator = torch.Generator().manual_seed(step)
        token = torch.randint(self.characters, (1, 1), generator=generator)
        return token.expand_as(x), torch.randint(self.characters, y.shape, generator=generator)

    @staticmethod
    def _windows(tokens: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        rows = starts[:, None] + torch.arange(CONTEXT + 1)
        return tokens[rows[:, :-1]], tokens[rows[:, 1:]]


def make_model(program: Program, data: Data) -> nn.Module:
    """Return the network of a program."""
    is_first_variant = program.variant == 0
    if program.network == "transformer":
        return Transformer(data.characters, program.width, program.depth, norm_first=is_first_variant)
    if program.network == "rnn":
        return Recurrent(data.characters, program.width, program.depth, is_gated=is_first_variant)
    return convolutional(program.width, program.depth, has_norm=is_first_variant)


# --- training ---------------------------------------------------------------------------------------------------------


class Treatment:
    """What protects a training. This one does nothing."""

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Prepare the training."""

    def change_gradients(self, model: nn.Module) -> None:
        """Act between the backward pass and the optimizer's step."""

    def log(self, loss: Tensor) -> None:
        """End a step."""

    @property
    def is_at_start(self) -> bool:
        """Whether steps cost more than later, because the training has just begun."""
        return False

    def end_warm_up(self) -> None:
        """Begin to cost as much as in the middle of a long training."""

    def finish(self) -> tuple[bool, int]:
        """End the training; return whether it was touched, and the number of steps that it lost."""
        return False, 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a training."""

    loss: float
    """Mean loss of the evaluation data; NaN counts as infinite."""
    is_touched: bool
    lost_steps: int


def train(program: Program, seed: int, treatment: Treatment, *, is_faulty: bool) -> Outcome:
    """Train to the end."""
    data = Data(program, seed)
    torch.manual_seed(seed)
    model = make_model(program, data)
    make: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, program.optimizer)
    options: dict[str, Any] = {"momentum": 0.9} if program.optimizer == "SGD" else {}
    optimizer = make(model.parameters(), lr=program.learning_rate, **options)
    fault = program.fault
    treatment.begin(model, optimizer)
    for step in range(STEPS):
        x, y = data.batch(step)
        if is_faulty and fault.holds(step, "bad batch"):
            x, y = data.corrupt(x, y, step, fault.size)
        factor = fault.size if is_faulty and fault.holds(step, "rate jump") else 1.0
        for group in optimizer.param_groups:
            group["lr"] = program.learning_rate * factor
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        if is_faulty and fault.holds(step, "NaN"):
            loss = loss * math.nan
        loss.backward()  # type: ignore[no-untyped-call]
        if is_faulty and fault.holds(step, "gradient spike"):
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(fault.size)
        treatment.change_gradients(model)
        optimizer.step()
        treatment.log(loss)
    is_touched, lost_steps = treatment.finish()
    model.eval()
    with torch.no_grad():
        x, y = data.evaluation
        end = float(functional.cross_entropy(model(x), y))
    return Outcome(math.inf if math.isnan(end) else end, is_touched, lost_steps)
