"""Factorization, pairs, bandits, half precision, words and noise (foreign-fit)."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.corpus.foreign.cases import Programs, blow_up, irreducible, lookalike, other, signal
from benchmarks.corpus.foreign.programs.fit_networks import stack
from benchmarks.corpus.foreign.session import Session
from benchmarks.corpus.foreign.tasks import accuracy, clusters, digits, r2, text

PROGRAMS: Final = Programs()


@PROGRAMS.add(
    "recommendation",
    blow_up("rate-too-high", optimizer="sgd", lr=400.0),
    blow_up("ramp", optimizer="sgd", lr=2.0, ramp=(120, 1.08)),
    blow_up("missing-rating", nan_at=160),
    signal("zero-factors", gain=0.0),
    other("no-rate", lr=1e-9),
    lookalike("restarts", restarts=80),
    lookalike("noisy", batch=64, lr=0.02),
    min_skill=0.4,
    variants=({"rank": 4, "lr": 0.02}, {"rank": 8, "lr": 0.01}),
    steps=320,
    batch=256,
)
def rated_pairs(s: Session) -> None:
    """Factorize a matrix of ratings."""
    users, items, rank = 60, 40, s["rank"]
    truth = torch.randn(users, rank) @ torch.randn(rank, items) / math.sqrt(rank)

    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.item = nn.Embedding(users, rank), nn.Embedding(items, rank)
            nn.init.normal_(self.user.weight, 0, 0.3)
            nn.init.normal_(self.item.weight, 0, 0.3)

        def forward(self, u: Tensor, i: Tensor) -> Tensor:
            loss: Tensor = (self.user(u) * self.item(i)).sum(-1)
            return loss

    model = s.make(Factors())
    optimizer = s.optimizer(model.parameters())
    every = torch.cartesian_prod(torch.arange(users), torch.arange(items)).T
    s.skill(lambda: r2(model(every[0], every[1]), truth[every[0], every[1]]))

    def loss_at(step: int) -> Tensor:
        u, i = torch.randint(users, (s.batch,)), torch.randint(items, (s.batch,))
        return F.mse_loss(model(u, i), s.corrupt(truth[u, i] + 0.1 * torch.randn(s.batch), step))

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "pairs",
    blow_up("branch-not-taken", trap=("1", "where", 95)),
    blow_up("root-at-zero", root=0.0, twin_at=90),
    blow_up("rate-too-high", optimizer="sgd", lr=1e4, momentum=0.9),
    blow_up("missing-value", nan_at=100),
    signal("collapsed", gain=0.0),
    other("one-side-detached", lr=1e-9),
    lookalike("margin-satisfied", steps=500, lr=5e-3),
    lookalike("identical-pair", twin_at=90),
    min_skill=0.5,
    variants=({"width": 32, "lr": 2e-3}, {"width": 48, "lr": 1e-3, "optimizer": "radam"}),
    steps=260,
    root=1e-8,
)
def digit_pairs(s: Session) -> None:
    """Bring images of one class together and those of two classes apart (Hadsell et al. 2006)."""
    data = digits()
    model = s.make(stack(64, s["width"], 1, 8, "relu"))
    optimizer = s.optimizer(model.parameters())

    def nearest() -> float:
        known, asked = model(data.x), model(data.test_x)
        right = (data.y[torch.cdist(asked, known).argmin(1)] == data.test_y).float().mean()
        spread = float(known.std(0).mean())
        return (float(right) - 0.1) / 0.9 if spread > 1e-6 else 0.0

    def separation() -> float:
        outputs = model(data.test_x)
        distance = torch.cdist(outputs, outputs)
        same = data.test_y[:, None] == data.test_y
        inside, outside = float(distance[same].mean()), float(distance[~same].mean())
        return 1 - inside / outside if outside > 1e-6 else 0.0

    s.skill(separation if s.get("separation", True) else nearest)

    def loss_at(step: int) -> Tensor:
        (a, y), (b, z) = data.draw(64), data.draw(64)
        order_b, order_z = b.clone(), z.clone()
        for index in range(32):
            match = torch.nonzero(data.y == y[index])[:, 0]
            pick = match[torch.randint(len(match), (1,))]
            order_b[index], order_z[index] = data.x[pick][0], y[index]
        if s.is_at("twin_at", step):
            order_b[0], order_z[0] = a[0], y[0]
        squared = (model(s.corrupt(a, step)) - model(order_b)).pow(2).sum(1)
        distance = torch.sqrt(squared + s["root"])
        same = (y == order_z).float()
        return (same * distance.pow(2) + (1 - same) * F.relu(2 - distance).pow(2)).mean()

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "bandits",
    blow_up("missing-context", nan_at=140),
    blow_up("log-of-zero", naive=True, factor=200.0),
    other("no-rate", lr=1e-9),
    other("no-advantage", constant_reward=True),
    lookalike("solved", steps=500, lr=0.03),
    lookalike("solved-baseline", steps=400, lr=0.02, baseline=True),
    lookalike("declared", objective="maximize reward", lr=0.02),
    min_skill=0.5,
    surrogate=True,
    variants=({"width": 16, "lr": 0.01, "arms": 5}, {"width": 32, "lr": 5e-3, "arms": 8}),
    steps=300,
    batch=64,
)
def contextual_bandit(s: Session) -> None:
    """Learn by REINFORCE which arm fits a context."""
    arms = s["arms"]
    truth = torch.randn(6, arms)
    model = s.make(stack(6, s["width"], 1, arms, "tanh"))
    optimizer = s.optimizer(model.parameters())
    test = torch.randn(500, 6)
    s.skill(lambda: accuracy(model, test, (test @ truth).argmax(1)))
    latest = {"reward": 0.0}

    def loss_at(step: int) -> Tensor:
        context = torch.randn(s.batch, 6)
        scores = model(s.corrupt(context, step)) * s.get("factor", 1.0)
        chances = scores.log_softmax(1)
        noise = -torch.log(-torch.log(torch.rand_like(chances).clamp(1e-9, 1 - 1e-6)))
        action = (chances + noise).argmax(1)
        reward = (action == (context @ truth).argmax(1)).float()
        latest["reward"] = float(reward.mean())
        if s.get("constant_reward"):
            reward = torch.ones(s.batch)
        advantage = reward - reward.mean() if s.get("baseline", True) else reward
        if s.get("naive"):
            unlikely = chances.detach().argmin(1)
            chance = scores.softmax(1).gather(1, unlikely[:, None])[:, 0].log()
            advantage = reward - 0.5
        else:
            chance = chances.gather(1, action[:, None])[:, 0]
        loss: Tensor = -(chance * advantage).mean()
        return loss

    s.fit(model, optimizer, loss_at, metrics=lambda: latest)


@PROGRAMS.add(
    "bfloat",
    blow_up("root-inside", trap=("3", "root", 100)),
    blow_up("rate-too-high", lr=1e5, optimizer="sgd"),
    blow_up("rate-jump", optimizer="sgd", lr=0.1, momentum=0.9, jump=(110, 1e5)),
    blow_up("infinite-input", inf_at=125),
    other("updates-round-away", optimizer="sgd", lr=1e-5),
    irreducible("shuffled-labels", shuffled=True, steps=150),
    lookalike("warm-up", warmup=60),
    lookalike("large-inputs", inputs_factor=8.0),
    min_skill=0.45,
    variants=({"width": 48, "lr": 2e-3}, {"width": 64, "lr": 5e-3, "eps": 1e-6}),
    steps=220,
)
def bfloat_digits(s: Session) -> None:
    """Classify images with weights in bfloat16."""
    data = digits()
    model = s.make(stack(64, s["width"], 2, 10, "silu")).to(torch.bfloat16)
    optimizer = s.optimizer(model.parameters())
    labels = s.labels(data.y)
    s.skill(lambda: accuracy(model, (data.test_x * s.get("inputs_factor", 1.0)).to(torch.bfloat16), data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(labels), (32,))
        return F.cross_entropy(model(s.corrupt(data.x[index], step).to(torch.bfloat16)).float(), labels[index])

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "words",
    blow_up("rate-too-high", optimizer="sgd", lr=1e6),
    blow_up("rate-jump", optimizer="sgd", lr=2.0, jump=(150, 1e4)),
    signal("zero-vectors", zero_both=True),
    other("no-rate", lr=1e-10),
    lookalike("sum-of-batch", loss_factor=10.0),
    lookalike("cosine", cosine=True),
    min_skill=0.08,
    variants=({"width": 16, "lr": 0.02}, {"width": 24, "lr": 0.03, "optimizer": "adamw"}),
    steps=300,
)
def next_character_vectors(s: Session) -> None:
    """Predict the next character from the mean of the vectors before it."""
    ids, characters = text()
    ids = ids[:30_000]

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vectors = nn.EmbeddingBag(characters, s["width"], mode="mean")
            self.last = nn.Embedding(characters, s["width"])
            self.out = nn.Linear(s["width"], characters, bias=False)

        def forward(self, window: Tensor) -> Tensor:
            output: Tensor = self.out(self.vectors(window) + self.last(window[:, -1]))
            return output

    model = s.make(Bag())
    if s.get("zero_both"):
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    optimizer = s.optimizer(model.parameters())
    held = torch.randint(len(ids) - 5, (400, 1)) + torch.arange(5)
    counts = torch.bincount(ids, minlength=characters).double() / len(ids)
    entropy = -float((counts[counts > 0] * counts[counts > 0].log()).sum())

    def skill() -> float:
        return 1 - float(F.cross_entropy(model(ids[held[:, :4]]), ids[held[:, 4]])) / entropy

    s.skill(skill)

    def loss_at(_: int) -> Tensor:
        place = torch.randint(len(ids) - 5, (64, 1)) + torch.arange(5)
        return F.cross_entropy(model(ids[place[:, :4]]), ids[place[:, 4]])

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "noise",
    blow_up("branch-not-taken", trap=("1", "where", 125)),
    blow_up("rate-too-high", optimizer="sgd", lr=1e3, momentum=0.9),
    blow_up("division-by-zero", spread_floor=0.0, constant_at=120),
    irreducible("random-targets", shuffled=True),
    other("no-rate", lr=1e-9),
    lookalike("label-noise-half", label_noise=0.5, steps=350),
    lookalike("tiny-batches", batch=2, lr=1e-3, steps=600),
    lookalike("constant-batch", constant_at=120),
    min_skill=0.5,
    variants=({"width": 32, "lr": 3e-3, "classes": 4}, {"width": 24, "lr": 5e-3, "classes": 3}),
    steps=240,
    batch=32,
    spread_floor=1e-5,
)
def noisy_clusters(s: Session) -> None:
    """Classify noisy clusters after a standardization of each batch."""
    data = clusters(s["classes"], 8, spread=0.8)
    model = s.make(stack(8, s["width"], 1, s["classes"], "elu"))
    optimizer = s.optimizer(model.parameters())
    labels = s.labels(data.y)
    s.skill(lambda: accuracy(model, (data.test_x - data.x.mean(0)) / data.x.std(0), data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(labels), (s.batch,))
        x = data.x[index]
        if s.is_at("constant_at", step):
            x = x[:1].expand_as(x)
        x = (x - data.x.mean(0)) / data.x.std(0)
        spread = x.std(0, keepdim=True)
        x = x * (spread / (spread + s["spread_floor"])) if s.batch > 8 else x
        return F.cross_entropy(model(s.corrupt(x, step)), labels[index])

    s.fit(model, optimizer, loss_at)
