"""Contrasts, graphs and physics (foreign-aside)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.corpus.foreign.cases import Programs, blow_up, irreducible, lookalike, other, signal
from benchmarks.corpus.foreign.session import Session
from benchmarks.corpus.foreign.tasks import accuracy, clusters, digits, r2

PROGRAMS: Final = Programs()


def net(inputs: int, width: int, outputs: int, depth: int = 1, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return a plain network."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(width if index else inputs, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def _freeze_last_bias(model: nn.Module) -> None:
    """Keep the last bias at zero, so that it cannot learn the frequencies of the classes alone."""
    last = list(model.parameters())[-1]
    nn.init.zeros_(last)
    last.requires_grad_(False)


@PROGRAMS.add(
    "contrasts",
    blow_up("mild-jump", jump=(110, 60.0)),
    blow_up("branch-not-taken", trap=("0", "where", 70)),
    blow_up("cold-temperature", temperature=1e-39),
    blow_up("zero-vector", zero_at=90, floor=0.0),
    blow_up("rate-jump", jump=(130, 1e12), optimizer="sgd", lr=0.1, normalized=False),
    signal("collapsed", gain=0.0, bias=0.0),
    other("no-rate", lr=1e-9),
    irreducible("wrong-pairs", shuffled=True),
    lookalike("cool", temperature=0.1),
    lookalike("zero-vector-with-floor", zero_at=90),
    lookalike("warm-up", warmup=50),
    min_skill=0.4,
    variants=({"width": 64, "lr": 3e-3}, {"width": 48, "lr": 4e-3, "optimizer": "adamw"}, {"width": 96, "lr": 2e-3}),
    steps=180,
    temperature=0.2,
    floor=1e-6,
    normalized=True,
)
def contrasted_images(s: Session) -> None:
    """Learn vectors of images in which two noisy views agree (InfoNCE, van den Oord et al. 2018)."""
    data = digits()
    model = s.make(net(64, s["width"], 16, activation=nn.Tanh if s.get("tanh") else nn.ReLU))
    optimizer = s.optimizer(model.parameters())

    def view(x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) > 0.25) + 0.1 * torch.randn_like(x)

    def vectors(x: Tensor) -> Tensor:
        z = model(x)
        loss: Tensor = z / (z.pow(2).sum(1, keepdim=True).sqrt() + s["floor"]) if s["normalized"] else z
        return loss

    def skill() -> float:
        first, second = vectors(view(data.test_x)), vectors(view(data.test_x))
        scores = first @ second.T
        rank = (scores > scores.diagonal()[:, None] + 1e-6).float().mean(1)
        flat = float(scores.std()) < 1e-6
        return 0.0 if flat else max(0.0, 1 - 10 * float(rank.mean()))

    s.skill(skill)

    def loss_at(step: int) -> Tensor:
        x, _ = data.draw(s.batch)
        second = x[torch.randperm(len(x))] if s.get("shuffled") else x
        first = vectors(s.corrupt(view(x), step))
        if s.is_at("zero_at", step):
            z = torch.cat([0.0 * model(x[:1]), model(view(x[1:]))])
            first = z / (z.pow(2).sum(1, keepdim=True) + s["floor"] ** 2).sqrt()
        scores = first @ vectors(view(second)).T / s["temperature"]
        return F.cross_entropy(scores, torch.arange(len(x)))

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "contrasts",
    blow_up("root-inside", trap=("1", "root", 100)),
    blow_up("root-at-zero", floor=0.0, same_at=100),
    blow_up("missing-value", nan_at=110),
    signal("tiny-weights", gain=0.005, depth=4, optimizer="sgd", lr=0.01),
    other("no-rate", lr=1e-10),
    irreducible("random-triplets", shuffled=True),
    lookalike("margin-satisfied", steps=400, lr=6e-3, spread=0.2),
    lookalike("same-with-floor", same_at=100),
    min_skill=0.5,
    variants=({"width": 32, "lr": 3e-3}, {"width": 48, "lr": 2e-3, "optimizer": "radam"}),
    steps=240,
    depth=2,
    floor=1e-6,
)
def triplets_of_clusters(s: Session) -> None:
    """Bring examples of a class nearer than those of another by a margin."""
    data = clusters(4, 10, spread=s.get("spread", 0.6))
    labels = s.labels(data.y)
    model = s.make(net(10, s["width"], 6, s["depth"]))
    optimizer = s.optimizer(model.parameters())

    def skill() -> float:
        known, asked = model(data.x), model(data.test_x)
        distance = torch.cdist(asked, asked)
        same = data.test_y[:, None] == data.test_y
        outside = float(distance[~same].mean())
        return 1 - float(distance[same].mean()) / outside if outside > 1e-6 and known.std() > 0 else 0.0

    s.skill(skill)
    places = [torch.nonzero(labels == label)[:, 0] for label in range(4)]

    def loss_at(step: int) -> Tensor:
        label = torch.randint(4, (48,))
        away = (label + 1 + torch.randint(3, (48,))) % 4

        def pick(wanted: Tensor) -> Tensor:
            return torch.stack([places[w][torch.randint(len(places[w]), ())] for w in wanted.tolist()])

        anchor, near, far = pick(label), pick(label), pick(away)
        if s.is_at("same_at", step):
            near[0] = anchor[0]
        a, p, n = (model(s.corrupt(data.x[index], step)) for index in (anchor, near, far))
        d_near = ((a - p).pow(2).sum(1) + s["floor"]).sqrt()
        d_far = ((a - n).pow(2).sum(1) + s["floor"]).sqrt()
        return F.relu(d_near - d_far + 1.0).mean()

    s.fit(model, optimizer, loss_at)


def _community(nodes: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, classes and adjacency of a graph whose communities are the classes."""
    y = torch.randint(classes, (nodes,))
    chance = torch.where(y[:, None] == y, 0.12, 0.01)
    links = (torch.rand(nodes, nodes) < chance).float().triu(1)
    x = F.one_hot(y, classes).float() @ torch.randn(classes, 12) * 0.4 + torch.randn(nodes, 12)
    return x, y, links + links.T


GRAPH_FAULTS: Final = (
    blow_up("isolated-node", self_loops=False, isolated_at=80),
    blow_up("rate-too-high", optimizer="sgd", lr=1e4),
    blow_up("missing-feature", nan_at=100),
    irreducible("shuffled-labels", shuffled=True),
    other("no-rate", lr=1e-9),
    lookalike("few-labels", labelled=0.2),
    lookalike("restarts", restarts=45),
)


@PROGRAMS.add(
    "graphs",
    blow_up("root-inside", trap=("parts.0", "root", 75)),
    *GRAPH_FAULTS,
    signal("deep-and-small", depth=9, gain=0.2, optimizer="sgd", lr=0.02),
    min_skill=0.5,
    variants=({"width": 16, "depth": 2, "lr": 0.02}, {"width": 32, "depth": 2, "lr": 0.01, "optimizer": "adamw"}),
    steps=180,
    labelled=0.5,
    self_loops=True,
)
def graph_communities(s: Session) -> None:
    """Classify nodes by graph convolutions (Kipf and Welling 2016)."""
    x, y, links = _community(160, 4)
    known = torch.rand(160) < s["labelled"]

    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [12, *[s["width"]] * (s["depth"] - 1), 4]
            self.parts = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

        def forward(self, x: Tensor, links: Tensor) -> Tensor:
            links = links + torch.eye(len(links)) if s["self_loops"] else links.clamp_max(1.0)
            scale = links.sum(1).pow(-0.5)
            mixed = scale[:, None] * links * scale
            for index, part in enumerate(self.parts):
                x = mixed @ part(x)
                x = F.relu(x) if index < len(self.parts) - 1 else x
            return x

    if not s["self_loops"]:
        links = links + (links.sum(1) == 0).float().diag()
    model = s.make(Convolutions())
    optimizer = s.optimizer(model.parameters())
    labels = s.labels(y)
    s.skill(lambda: accuracy(lambda x: model(x, links)[~known], x, y[~known]))

    def loss_at(step: int) -> Tensor:
        kept = links * (torch.rand_like(links) > 0.1) + (links.diagonal().diag() if not s["self_loops"] else 0)
        kept = kept if s["self_loops"] else torch.maximum(kept.clamp_max(1.0), (kept.sum(1) == 0).float().diag())
        if s.is_at("isolated_at", step):
            kept = kept.clone()
            kept[5, :], kept[:, 5] = 0.0, 0.0
        return F.cross_entropy(model(s.corrupt(x, step), kept)[known], labels[known])

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "graphs",
    blow_up("mild-jump", jump=(90, 60.0)),
    blow_up("branch-not-taken", trap=("first", "where", 60)),
    *GRAPH_FAULTS[1:5],
    blow_up("sums-without-norm", sums=True, rounds=8, optimizer="sgd", lr=0.1, gain=2.0),
    signal("saturated-rounds", rounds=10, tanh=True, gain=0.15, optimizer="sgd", lr=0.01),
    lookalike("sums-under-adam", sums=True, lr=2e-3),
    lookalike("drops-late", drop=(100, 0.05)),
    min_skill=0.45,
    variants=({"width": 24, "rounds": 2, "lr": 0.01}, {"width": 32, "rounds": 3, "lr": 6e-3, "optimizer": "nadam"}),
    steps=160,
)
def graph_messages(s: Session) -> None:
    """Classify nodes after some rounds of messages."""
    x, y, links = _community(140, 3)
    known = torch.rand(140) < 0.5
    width = s["width"]

    class Messages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(12, width), nn.Linear(width, 3)
            self.message, self.update = nn.Linear(width, width), nn.Linear(2 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            state = torch.tanh(self.first(x))
            mixed = links if s.get("sums") else links / links.sum(1, keepdim=True).clamp_min(1)
            for _ in range(s["rounds"]):
                state = self.update(torch.cat([state, mixed @ self.message(state)], 1))
                state = torch.tanh(state) if s.get("tanh") else F.relu(state)
            output: Tensor = self.last(state)
            return output

    model = s.make(Messages())
    optimizer = s.optimizer(model.parameters())
    labels = s.labels(y)
    s.skill(lambda: accuracy(lambda x: model(x)[~known], x, y[~known]))
    s.fit(model, optimizer, lambda step: F.cross_entropy(model(s.corrupt(x, step))[known], labels[known]))


@PROGRAMS.add(
    "physics",
    blow_up("rate-too-high", optimizer="sgd", lr=1.0, momentum=0.9),
    blow_up("root-of-energy", energy_at=140),
    blow_up("rate-jump", jump=(200, 1e4), optimizer="sgd", lr=1e-3),
    signal("tiny-weights", gain=0.003, optimizer="sgd", lr=1e-3),
    other("no-rate", lr=1e-9),
    lookalike("norm-rises", boundary=20.0),
    lookalike("cosine", cosine=True),
    min_skill=0.5,
    variants=({"width": 24, "lr": 8e-3}, {"width": 32, "lr": 6e-3, "optimizer": "nadam"}),
    steps=400,
    boundary=10.0,
)
def damped_oscillator(s: Session) -> None:
    """Solve the equation of an oscillator by a network (physics-informed)."""
    model = s.make(net(1, s["width"], 1, 2, nn.Tanh))
    optimizer = s.optimizer(model.parameters())
    held = torch.linspace(0, 1, 100)[:, None]

    def solution(t: Tensor) -> Tensor:
        return torch.exp(-1.0 * t) * torch.cos(math.sqrt(8) * t) + torch.exp(-1.0 * t) * torch.sin(
            math.sqrt(8) * t
        ) / math.sqrt(8)

    s.skill(lambda: r2(model(held), solution(held)))
    anchor = torch.tensor([[0.0]], requires_grad=True)

    def loss_at(step: int) -> Tensor:
        t = torch.rand(48, 1, requires_grad=True)
        u = model(t)
        slope = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
        bend = torch.autograd.grad(slope.sum(), t, create_graph=True)[0]
        start = model(anchor)
        push = torch.autograd.grad(start.sum(), anchor, create_graph=True)[0]
        loss: Tensor = (bend + 2 * slope + 9 * u).pow(2).mean() / 9
        loss = loss + s["boundary"] * ((start - 1).pow(2).mean() + push.pow(2).mean())
        if s.is_at("energy_at", step):
            loss = loss + (u - u.detach()).pow(2).mean().sqrt()
        return loss

    s.fit(model, optimizer, loss_at)
