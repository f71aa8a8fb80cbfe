"""Losses of several parts or without a floor: uncertain regression, teachers, sums over sets, word counts."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.corpus.ledger import Ledger
from benchmarks.corpus.program import Program
from benchmarks.corpus.programs.datasets import dataset
from benchmarks.corpus.programs.feedforward import dense_stack
from benchmarks.corpus.programs.modules import accuracy_skill, batches, variance_skill


def heteroscedastic(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "saddle",
    hidden: list[int] | None = None,
    activation: str = "relu",
    scale_map: str = "softplus",
    floor: float = 0.05,
    targets: str = "std",
    init: str = "default",
    gain: float = 1.0,
) -> Program:
    """Regression with an uncertainty for each answer. The loss, a negative log-likelihood, falls below zero."""
    made = dataset(data, targets=targets)
    forward, _ = dense_stack(ledger, [made.x.shape[1], *(hidden or [32, 32]), 2], activation=activation)
    ledger.initialize(init, gain)
    draw = batches(made.x, made.y, batch)

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, y = draw()
        mean, raw = forward(x).chunk(2, -1)
        scale = (raw.exp() if scale_map == "exp" else functional.softplus(raw)) + floor
        return (0.5 * ((y - mean) / scale).square() + scale.log()).mean()

    x, y = draw()
    return Program(
        loss=step_loss, skill=lambda: variance_skill(forward(made.eval_x)[:, :1], made.eval_y), inputs=x, targets=y
    )


def mean_teacher(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "gaussians:5",
    labelled: int = 100,
    hidden: int = 48,
    keep: float = 0.98,
    weight: float = 1.0,
    ramp: int = 100,
) -> Program:
    """Few labels, and a teacher that is the running mean of the student (Tarvainen & Valpola 2017)."""
    made = dataset(data)
    sizes = [made.x.shape[1], hidden, hidden, made.classes]
    student, modules = dense_stack(ledger, sizes)
    teacher_ledger = Ledger()
    teacher, _ = dense_stack(teacher_ledger, sizes)
    pairs = list(zip(teacher_ledger.parameters(), ledger.parameters(), strict=True))
    for old, new in pairs:
        old.requires_grad_(False).copy_(copy.deepcopy(new.detach()))
    known = batches(made.x[:labelled], made.y[:labelled], batch)
    unknown = batches(made.x, made.y, batch)

    def step_loss(step: int) -> Tensor:
        x, y = known()
        other, _ = unknown()
        noisy = student(other + 0.2 * torch.randn_like(other)).softmax(-1)
        goal = teacher(other + 0.2 * torch.randn_like(other)).softmax(-1)
        now = weight * min(1.0, step / ramp)
        return functional.cross_entropy(student(x), y) + now * functional.mse_loss(noisy, goal) * made.classes

    def after_step(step: int) -> None:  # noqa: ARG001
        for old, new in pairs:
            old.lerp_(new.detach(), 1 - keep)

    def skill() -> float:
        for module in modules:
            module.eval()
        return accuracy_skill(student(made.eval_x), made.eval_y, made.classes)

    return Program(loss=step_loss, skill=skill, inputs=known()[0], after_step=after_step)


def pooled_set(
    ledger: Ledger,
    batch: int,
    *,
    size: int = 20,
    width: int = 24,
    pool: str = "mean",
    target: str = "max",
    activation: str = "relu",
    init: str = "default",
    gain: float = 1.0,
) -> Program:
    """Answer a question about a set: one network encodes each member, another reads their pooled encoding."""
    inner, _ = dense_stack(ledger, [2, width, width], activation=activation, out_activation=activation, prefix="each.")
    outer, _ = dense_stack(ledger, [width, width, 1], activation=activation, prefix="all.")
    ledger.initialize(init, gain)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, size, 2)
        length = x.norm(dim=-1)
        y = length.max(1).values - 2.5 if target == "max" else length.mean(1) * 5 - 6.2
        return x, y[:, None]

    def forward(x: Tensor) -> Tensor:
        h = inner(x)
        return outer(h.mean(1) if pool == "mean" else h.sum(1) if pool == "sum" else h.max(1).values)

    eval_x, eval_y = draw(600)

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, y = draw(batch)
        return functional.mse_loss(forward(x), y)

    return Program(loss=step_loss, skill=lambda: variance_skill(forward(eval_x), eval_y), inputs=draw(batch)[0])


def word_vectors(
    ledger: Ledger, batch: int, *, words: int = 150, width: int = 12, scale: float = 0.1, count_scale: float = 1.0
) -> Program:
    """Learn word vectors from co-occurrence counts by weighted least squares (Pennington et al. 2014)."""
    truth = torch.randn(words, width) @ torch.randn(width, words) / math.sqrt(width)
    truth = (truth + torch.randn(words, 1) + torch.randn(1, words)) * count_scale
    tables = [ledger.add(nn.Embedding(words, width), name) for name in ("centre", "context")]
    biases = [ledger.add(nn.Embedding(words, 1), f"{name}_bias") for name in ("centre", "context")]
    for table in (*tables, *biases):
        nn.init.normal_(table.weight, 0.0, scale)
    importance = torch.rand(words, words)

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        i, j = torch.randint(words, (2, batch))
        guess = (tables[0](i) * tables[1](j)).sum(-1) + biases[0](i)[:, 0] + biases[1](j)[:, 0]
        error: Tensor = guess - truth[i, j]
        return (importance[i, j] * error.square()).mean()

    def skill() -> float:
        guess = tables[0].weight @ tables[1].weight.T + biases[0].weight + biases[1].weight.T
        return variance_skill(guess.flatten(), truth.flatten())

    return Program(loss=step_loss, skill=skill)
