"""Adversaries, experts, rewards, factors, graphs and adapters (causes-aside)."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.corpus.causes.cases import CausePrograms
from benchmarks.corpus.causes.faults import fault, lookalike
from benchmarks.corpus.causes.session import CauseSession
from benchmarks.corpus.foreign.tasks import accuracy, digits, r2

PROGRAMS: Final = CausePrograms()


def play(s: CauseSession, generator: nn.Module, critic: nn.Module, real: Tensor, codes: int, rate: float) -> None:
    """Train a generator against a critic, in turns."""
    optimizers = (
        torch.optim.SGD(generator.parameters(), lr=rate, momentum=0.5),
        torch.optim.Adam(critic.parameters(), lr=s["lr"], betas=(0.5, 0.99)),
    )
    s.run.watch(nn.ModuleDict({"generator": generator, "critic": critic}), optimizers)
    for _ in range(s.steps):
        for _ in range(s["critic_steps"]):
            batch, made = real[torch.randint(len(real), (32,))], generator(torch.randn(32, codes)).detach()
            critic_loss = F.softplus(-critic(batch)).mean() + F.softplus(critic(made)).mean()
            optimizers[1].zero_grad()
            critic_loss.backward()
            optimizers[1].step()
        score = critic(generator(torch.randn(32, codes)))
        loss = -F.softplus(score).mean() if s.get("saturating") else F.softplus(-score).mean()
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        s.run.log(loss, critic_loss=float(critic_loss.detach()))


@PROGRAMS.add(
    fault("adversary", critic_steps=15, saturating=True, name="steps", twin={"steps": 120}),
    fault("adversary", critic_steps=8, saturating=True, name="fewer-steps"),
    lookalike("balanced", critic_steps=2),
    min_skill=0.5,
    variants=({"width": 24}, {"width": 40}, {"width": 32, "lr": 1.5e-2}),
    steps=180,
    lr=1e-2,
    objective="none",
    critic_steps=1,
)
def two_clouds(s: CauseSession) -> None:
    """Draw from two clouds of points by a generator against a discriminator."""
    width = s["width"]
    real = torch.tensor([4.0, 5.0]) + torch.where(torch.rand(2000, 1) < 0.5, 1.0, -1.0) + 0.2 * torch.randn(2000, 2)
    generator = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 2))
    critic = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
    away = float((generator(torch.randn(500, 6)).mean(0) - real.mean(0)).norm().detach())
    s.skill(lambda: 1 - float((generator(torch.randn(500, 6)).mean(0) - real.mean(0)).norm()) / away)
    play(s, generator, critic, real, 6, 0.1)


@PROGRAMS.add(
    fault("adversary", critic_steps=10, saturating=True, name="steps"),
    fault("adversary", critic_steps=5, saturating=True, name="fewer-steps"),
    lookalike("balanced", critic_steps=2),
    min_skill=0.4,
    variants=({"width": 32}, {"width": 48}),
    steps=180,
    lr=4e-3,
    objective="none",
    critic_steps=1,
)
def drawn_digits(s: CauseSession) -> None:
    """Draw images of a digit by a generator against a discriminator with convolutions."""
    data, width = digits(), s["width"]
    real = data.x[data.y == 0] * 4 - 2
    generator = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 64))
    critic = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(288, 1)
    )
    away = float((generator(torch.randn(300, 8)).mean(0) - real.mean(0)).norm().detach())
    s.skill(lambda: 1 - float((generator(torch.randn(300, 8)).mean(0) - real.mean(0)).norm()) / away)
    play(s, generator, critic, real, 8, 0.3)


@PROGRAMS.add(
    fault("router", bias=80.0, name="bias"),
    fault("router", router_scale=0.0, bias=1.0, name="blind"),
    lookalike("idle-expert", bias=-30.0),
    min_skill=0.5,
    variants=({"experts": 4}, {"experts": 6}),
    steps=200,
    lr=2e-2,
    router_scale=1.0,
    bias=None,
)
def routed_rings(s: CauseSession) -> None:
    """Classify by linear experts that a router chooses, each for the points of one sector."""
    experts, offset = s["experts"], s.settings.pop("bias") or 0.0

    def draw(count: int) -> tuple[Tensor, Tensor]:
        sector, inner = torch.randint(4, (count,)), torch.randn(count, 3)
        centers = 4 * torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
        turned = inner[torch.arange(count), 2] * torch.where(sector % 2 == 0, 1.0, -1.0)
        return centers[sector] + inner * torch.tensor([0.6, 0.6, 1.0]), (turned > 0).long()

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(3, experts)
            self.experts = nn.ModuleList([nn.Linear(3, 2) for _ in range(experts)])
            with torch.no_grad():
                self.router.weight *= s["router_scale"]
                self.router.bias.zero_()
                self.router.bias[0] = offset

        def forward(self, x: Tensor) -> Any:
            shares = self.router(x * s["router_scale"]).softmax(-1)
            share, chosen = shares.max(-1)
            out = x.new_zeros(len(x), 2)
            for index, expert in enumerate(self.experts):
                places = torch.nonzero(chosen == index)[:, 0]
                if len(places):
                    out[places] = expert(x[places]) * share[places, None]
            return out

    model = s.make(Routed())
    x, y = draw(600)
    s.skill(lambda: accuracy(model, x, y))

    def loss_at(step: int) -> Tensor:
        x, y = draw(64)
        return F.cross_entropy(model(s.corrupt(x, step)), y)

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("router", bias_of=0, name="bias"),
    fault("weights-too-large", gain=30.0, twin={"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}),
    lookalike("idle-experts", idle=True),
    min_skill=0.5,
    variants=({"tokens": 8}, {"tokens": 12}),
    steps=200,
    lr=1e-2,
    bias_of=None,
)
def switched_tokens(s: CauseSession) -> None:
    """Map tokens by a rule of their kind, by a layer of switched experts in a residual stream."""
    kinds, width, experts = 6, 12, 6
    rules = torch.randn(kinds, 4, 2)

    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(width, experts)
            self.experts = nn.ModuleList(
                [nn.Sequential(nn.Linear(width, 2), nn.ReLU(), nn.Linear(2, width)) for _ in range(experts)]
            )
            with torch.no_grad():
                if s["bias_of"] is not None:
                    self.gate.bias[s["bias_of"]] = 50.0
                    for expert in self.experts:
                        expert[0].weight *= 0.05
                if s.get("idle"):
                    self.gate.bias[-1] = -30.0

        def forward(self, x: Tensor) -> Any:
            share, chosen = self.gate(x).softmax(-1).max(-1)
            out = torch.zeros_like(x)
            for index, expert in enumerate(self.experts):
                is_chosen = chosen == index
                if bool(is_chosen.any()):
                    out[is_chosen] = expert(x[is_chosen]) * share[is_chosen][:, None]
            return out

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kinds, self.inner = nn.Embedding(kinds, 8), nn.Linear(4, 4)
            self.switch, self.head = Switch(), nn.Linear(width, 2)

        def forward(self, kind: Tensor, x: Tensor) -> Any:
            return self.head(self.switch(torch.cat([self.kinds(kind), self.inner(x)], -1)))

    def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
        kind, x = torch.randint(kinds, (count, s["tokens"])), torch.randn(count, s["tokens"], 4)
        return kind, x, torch.einsum("bti,btio->bto", x, rules[kind])

    model = s.make(Net())
    kind, x, y = draw(200)
    s.skill(lambda: r2(model(kind, x).flatten(0, 1), y.flatten(0, 1)))

    def loss_at(step: int) -> Tensor:
        kind, x, y = draw(32)
        return F.mse_loss(model(kind, s.corrupt(x, step)), y)

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("no-signal", equal=True),
    fault("log-of-zero", naive=True, lr_factor=10.0),
    fault("rate-too-high-adam", lr_factor=3000.0),
    lookalike("entropy-of-policy-falls", steps=350),
    min_skill=0.5,
    variants=({"width": 16}, {"width": 24}),
    steps=250,
    lr=1e-2,
    objective="maximize reward",
)
def steering(s: CauseSession) -> None:
    """Steer left or right towards a goal, by a policy gradient with a baseline."""
    policy = s.make(nn.Sequential(nn.Linear(2, s["width"]), nn.Tanh(), nn.Linear(s["width"], 3)))
    right = lambda state: (state[:, 0] > state[:, 1] + 0.3).long() - (state[:, 0] < state[:, 1] - 0.3).long() + 1  # noqa: E731
    test = torch.randn(500, 2)
    s.skill(lambda: (float((policy(test).argmax(1) == right(test)).float().mean()) - 0.42) / 0.58)
    rewards = [0.0]

    def loss_at(_: int) -> Tensor:
        state = torch.randn(64, 2)
        logits = policy(state)
        if s.get("naive"):  # a temperature of a twentieth: a share rounds to 0, and its logarithm is infinite
            shares = (20 * logits).softmax(1)
            logs = shares.log()
        else:
            shares, logs = logits.softmax(1), logits.log_softmax(1)
        action = torch.multinomial(shares.detach().nan_to_num(1 / 3).clamp(min=1e-3), 1)[:, 0]
        reward = (action == right(state)).float()
        rewards[0] = float(reward.mean())
        if s.get("equal"):
            reward = torch.full_like(reward, 0.5)
        advantage = reward - reward.mean()
        return -(advantage * logs.gather(1, action[:, None])[:, 0]).mean()

    s.train(policy, loss_at, metrics=lambda: {"reward": rewards[0]})


@PROGRAMS.add(
    fault("weights-zero", zero=True),
    fault("weights-too-large", spread=30.0, twin={"optimizer": "sgd", "lr": 1.0, "momentum": 0.9}),
    fault(
        "excessive-decay", weight_decay=0.5, twin={"optimizer": "sgd", "lr": 1.0, "momentum": 0.9, "weight_decay": 1e-5}
    ),
    fault("epsilon-too-large", eps=10.0),
    fault("unscaled-targets", target_factor=100.0, twin={"optimizer": "sgd", "lr": 1.0, "momentum": 0.9}),
    fault("left-out", leave_out="movies", small=True),
    lookalike("rare-rows", rare=True, steps=240),
    min_skill=0.4,
    variants=({"rank": 4}, {"rank": 6}),
    steps=180,
    lr=3e-2,
    spread=1.0,
)
def factors(s: CauseSession) -> None:
    """Complete a table of ratings by two tables of factors."""
    rows, columns, rank = 60, 40, s["rank"]
    truth = (torch.randn(rows, 3) @ torch.randn(3, columns)) / math.sqrt(3)
    factor = s.get("target_factor", 1.0)

    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.movies = nn.Embedding(rows, rank), nn.Embedding(columns, rank)
            with torch.no_grad():
                for table in (self.users, self.movies):
                    table.weight.mul_(0.0 if s.get("zero") else 0.5 * s["spread"])
                if s.get("small"):
                    self.movies.weight.mul_(1e-3)

        def forward(self, user: Tensor, movie: Tensor) -> Any:
            return (self.users(user) * self.movies(movie)).sum(-1)

    model = s.make(Factors())
    user, movie = torch.randint(rows, (500,)), torch.randint(columns, (500,))
    s.skill(lambda: r2(model(user, movie)[:, None] / factor, truth[user, movie][:, None]))

    def loss_at(_: int) -> Tensor:
        place = torch.rand(256) ** (3 if s.get("rare") else 1)
        user, movie = (place * rows).long(), torch.randint(columns, (256,))
        return F.mse_loss(model(user, movie), truth[user, movie] * factor)

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("no-normalization", norm=None, twin={"layers": 8}),
    fault("dead-units", bias=-10.0, twin={"norm": None, "layers": 2}),
    fault("saturating", activation="sigmoid", twin={"norm": None, "layers": 7, "residual": False, "he": True}),
    fault("rate-too-high-momentum", lr_factor=100.0),
    fault("unscaled-inputs", inputs_factor=1e3, twin={"norm": None, "layers": 2}),
    fault("root-of-zero", naive=True),
    fault("zero-over-zero", isolated=True),
    lookalike("decay-at-the-end", cosine=True, weight_decay=0.02),
    min_skill=0.5,
    variants=({"width": 24}, {"width": 32}),
    steps=160,
    optimizer="sgd",
    momentum=0.9,
    lr=0.05,
    norm="layer",
    layers=4,
)
def communities(s: CauseSession) -> None:
    """Tell the communities of a graph apart by graph convolutions."""
    nodes, groups = 120, 3
    group = torch.arange(nodes) % groups
    chance = torch.where(group[:, None] == group[None], 0.3, 0.03)
    links = (torch.rand(nodes, nodes) < chance).float()
    links = ((links + links.T + torch.eye(nodes)) > 0).float()
    mixing = links / links.sum(1, keepdim=True)
    x = torch.randn(nodes, 16) + 1.2 * F.one_hot(group, groups).float() @ torch.randn(groups, 16)
    known = torch.rand(nodes) < 0.6

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = s["width"]
            self.layers = nn.ModuleList([nn.Linear(16 if i == 0 else width, width) for i in range(s["layers"])])
            self.norms = nn.ModuleList([s.norm(width) for _ in range(s["layers"])])
            self.acts = nn.ModuleList([s.activation() for _ in range(s["layers"])])
            self.head = nn.Linear(width, groups)
            if s.get("he"):
                for layer in self.layers:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

        def forward(self, x: Tensor, mixing: Tensor) -> Any:
            for layer, norm, act in zip(self.layers, self.norms, self.acts, strict=True):
                x = act(norm(layer(0.5 * mixing @ x + 0.5 * x)))
            return self.head(x)

    model = s.make(Net())
    s.skill(lambda: accuracy(lambda x: model(s.see(x), mixing)[~known], x, group[~known]) if not known.all() else 0.0)

    def loss_at(step: int) -> Tensor:
        used = mixing
        if s.get("isolated") and step >= 50:  # edges are dropped, and one node keeps none: its mean is 0 over 0
            kept = links * (torch.rand(nodes, nodes) < 0.7)
            kept[4] = 0.0
            used = kept / kept.sum(1, keepdim=True)
        out = model(s.corrupt(x, step), used)
        loss = F.cross_entropy(out[known], group[known])
        if s.get("naive") and step >= 30:  # neighbors shall be close: the distance of a node to itself has no slope
            loss = loss + 1e-3 * ((out[:, None] - out[None]).square().sum(-1).sqrt() * mixing).mean()
        return loss

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("weights-zero", both_zero=True),
    fault("left-out", leave_out="adapter"),
    fault("detached", detached=True),
    lookalike("zero-b"),
    lookalike("zero-b-and-decay", optimizer="adamw", weight_decay=0.1),
    min_skill=0.3,
    variants=({"rank": 2}, {"rank": 4}),
    steps=180,
    lr=1e-2,
    learns_head=False,
)
def adapters(s: CauseSession) -> None:
    """Adapt a frozen network to turned targets by low-rank factors."""
    width, rank = 24, s["rank"]
    frozen = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = frozen
            self.adapter = nn.ModuleDict(
                {"a": nn.Linear(width, rank, bias=False), "b": nn.Linear(rank, width, bias=False)}
            )
            self.shift = nn.Parameter(torch.zeros(1))
            with torch.no_grad():
                self.adapter["b"].weight.zero_()
                if s.get("both_zero"):
                    self.adapter["a"].weight.zero_()

        def forward(self, x: Tensor) -> Any:
            x = self.frozen[1](self.frozen[0](x))
            change = s.features(lambda: self.adapter["b"](self.adapter["a"](x)))
            return self.frozen[4](self.frozen[3](self.frozen[2](x) + change)) + self.shift

    x = torch.randn(1500, 8)
    with torch.no_grad():
        hidden = frozen[1](frozen[0](x))
        turn = torch.randn(width, 2) @ torch.randn(2, width) / math.sqrt(width)
        y = frozen[4](frozen[3](frozen[2](hidden) + hidden @ turn))
    model = s.make(Adapted())
    with torch.no_grad():
        before = F.mse_loss(model(x[1200:]) if not s.get("both_zero") else frozen(x[1200:]), y[1200:]).item()
    s.skill(lambda: 1 - float(F.mse_loss(model(x[1200:]), y[1200:])) / before)

    def loss_at(step: int) -> Tensor:
        index = torch.randint(1200, (48,))
        return F.mse_loss(model(s.corrupt(x[index], step)), y[index]) * 10

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("bfloat16-stall", precision="bfloat16"),
    fault("bfloat16-stall", precision="bfloat16", name="slower", twin={"lr": 3e-4, "steps": 350}),
    fault("epsilon-of-zero", precision="half"),
    fault("rate-too-high-adam", lr_factor=3000.0),
    fault("unscaled-targets", target_factor=5000.0, twin={"optimizer": "sgd", "lr": 2e-2, "momentum": 0.5}),
    fault("broadcast", broadcast=True, twin={"lr": 5e-3}),
    fault(
        "half-underflow",
        precision="autocast",
        twin={"optimizer": "sgd", "lr": 1e7, "momentum": 0.9, "loss_factor": 1e-9, "unit_weights": False},
    ),
    lookalike("master-weights", precision="autocast"),
    lookalike("large-targets", target_factor=10.0, lr=1e-2),
    min_skill=0.4,
    variants=({"width": 48}, {"width": 64, "activation": "gelu"}),
    steps=260,
    lr=6e-4,
    activation="tanh",
    unit_weights=True,
)
def surface(s: CauseSession) -> None:
    """Fit a bumpy surface by wide layers."""
    width, factor = s["width"], s.get("target_factor", 1.0)
    x = torch.rand(2000, 2) * 2 - 1
    y = (2.5 * x[:, :1]).sin() * (2 * x[:, 1:]).cos() * 1.5
    model = s.make(
        nn.Sequential(s.linear(2, width), s.activation(), s.linear(width, width), s.activation(), s.linear(width, 1))
    )
    s.skill(lambda: r2(model(s.see(x[1600:])).float() / factor, y[1600:]))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(1600, (64,))
        target = s.cast(y[index] * factor)
        return F.mse_loss(model(s.corrupt(x[index], step)), target[:, 0] if s.get("broadcast") else target)

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("no-clipping", outlier=1e4, clip=None, twin={"clip": 1.0, "outlier": 1e4}),
    fault("excessive-clipping", clip=1e-6, twin={"clip": 1.0}),
    fault("summed-loss", loss_factor=128.0, twin={"lr": 0.05}),
    fault("rate-jump", jump=(80, 400.0)),
    fault("weights-too-small", gain=0.03, twin={"depth": 5, "he": True, "lr": 0.03}),
    fault("unbounded", activation="square", twin={"depth": 5, "he": True, "lr": 0.005}),
    lookalike("outliers-clipped", outlier=100.0, clip=1.0),
    lookalike("decay-at-the-end", cosine=True, weight_decay=0.01),
    min_skill=0.4,
    variants=({"width": 24}, {"width": 32}),
    steps=180,
    optimizer="sgd",
    momentum=0.9,
    lr=0.02,
    depth=2,
    activation="tanh",
    clip=None,
)
def prices(s: CauseSession) -> None:
    """Regress on heavy-tailed data in which a wrong entry occurs now and then."""
    width = s["width"]
    x = torch.randn(2000, 6)
    y = x[:, :1] * 0.8 + (x[:, 1:2] * x[:, 2:3]).tanh() * 0.8
    layers: list[nn.Module] = []
    for index in range(s["depth"]):
        linear = nn.Linear(6 if index == 0 else width, width)
        if s.get("he"):
            nn.init.normal_(linear.weight, std=1.2 / math.sqrt(linear.in_features))
        layers += [linear, s.activation()]
    model = s.make(nn.Sequential(*layers, nn.Linear(width, 1)))
    s.skill(lambda: r2(model(x[1600:]), y[1600:]))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(1600, (48,))
        target = y[index].clone()
        if (size := s.get("outlier")) and step % 14 == 13:
            target[0] = size
        return F.mse_loss(model(s.corrupt(x[index], step)), target)

    s.train(model, loss_at)
