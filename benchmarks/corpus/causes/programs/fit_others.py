"""Sequences, attention, adversaries, experts and rewards (causes-fit)."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.corpus.causes.cases import CausePrograms
from benchmarks.corpus.causes.faults import fault, lookalike
from benchmarks.corpus.causes.session import CauseSession, recurrent_gain
from benchmarks.corpus.foreign.tasks import accuracy, r2

PROGRAMS: Final = CausePrograms()


def recall(count: int, length: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return sequences of noise whose first element holds a class, and the classes."""
    y = torch.randint(classes, (count,))
    x = 0.1 * torch.randn(count, length, classes)
    x[:, 0] += F.one_hot(y, classes)
    return x, y


@PROGRAMS.add(
    fault("expanding-recurrence", recurrent=3.0, twin={"clip": None}),
    fault("contracting-recurrence", recurrent=0.4),
    fault("no-clipping", clip=None, bad_every=(20, 3000.0), twin={"clip": 1.0}),
    fault("rate-too-high", lr_factor=200.0),
    fault("excessive-clipping", clip=1e-6),
    lookalike("decay-and-clip", clip=0.5, cosine=True),
    min_skill=0.5,
    variants=({"cell": "RNN", "length": 30}, {"cell": "RNN", "length": 40, "lr": 0.03}),
    steps=200,
    optimizer="sgd",
    momentum=0.9,
    lr=0.02,
    clip=1.0,
    recurrent=1.0,
)
def fit_recall(s: CauseSession) -> None:
    """Recall the first element of a sequence by a plain recurrent network."""
    classes, length = 4, s["length"]
    x, y = recall(1500, length, classes)
    test_x, test_y = recall(300, length, classes)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(classes, 32, batch_first=True, nonlinearity=s.get("nonlinearity", "tanh"))
            self.head = nn.Linear(32, classes)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.rnn(x)[0][:, -1])

    model = Net()
    recurrent_gain(model, s["recurrent"])
    s.make(model)
    s.skill(lambda: accuracy(model, test_x, test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(x), (s.batch,))
        return F.cross_entropy(model(s.corrupt(x[index], step)), y[index])

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("forgetting", forget=-4.0),
    fault("nonfinite-input", nan_at=120),
    fault("left-out", leave_out="rnn"),
    fault("rate-jump", jump=(110, 3000.0)),
    lookalike("late-zero", late_zero=True),
    min_skill=0.5,
    variants=({"length": 25}, {"length": 30, "clip": 1.0}),
    steps=200,
    lr=2e-2,
    forget=3.0,
)
def fit_memory(s: CauseSession) -> None:
    """Recall the first element of a sequence by an LSTM."""
    classes, length = 3, s["length"]
    x, y = recall(1500, length, classes)
    test_x, test_y = recall(300, length, classes)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(classes, 24, batch_first=True)
            self.head = nn.Linear(24, classes)
            with torch.no_grad():
                self.rnn.bias_hh_l0[24:48].fill_(s["forget"])
                self.rnn.bias_ih_l0[24:48].zero_()

        def forward(self, x: Tensor) -> Any:
            return self.head(self.rnn(x)[0][:, -1])

    model = s.make(Net())
    s.skill(lambda: accuracy(model, test_x, test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(x), (s.batch,))
        return F.cross_entropy(model(s.corrupt(x[index], step)), y[index])

    s.train(model, loss_at)


class Attention(nn.Module):
    """Causal self-attention with its logits divided by the root of the width, times a factor."""

    def __init__(self, width: int, heads: int, factor: float) -> None:
        super().__init__()
        self.heads, self.factor = heads, factor
        self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Any:
        """Return `[batch, time, width]`."""
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        scale = self.factor / math.sqrt(q.shape[-1])
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return self.out(out.transpose(1, 2).flatten(-2))


@PROGRAMS.add(
    fault("attention-logits", attention=1e5),
    fault("rate-too-high-adam", lr_factor=100.0),
    fault(
        "kept-gradients",
        keep_gradients=True,
        twin={"optimizer": "sgd", "lr": 0.3, "momentum": 0.9, "clip": 1.0},
        clip=None,
    ),
    fault("log-of-zero", naive=True),
    fault("epsilon-too-large", eps=3.0),
    fault("excessive-decay", weight_decay=30.0),
    lookalike("entropy-falls", attention=2.0),
    lookalike("accumulation", accumulate=2),
    min_skill=0.5,
    variants=({"layers": 1}, {"layers": 2, "clip": 1.0}),
    steps=200,
    optimizer="adamw",
    lr=3e-3,
    attention=1.0,
)
def fit_attention(s: CauseSession) -> None:
    """Repeat the token before the last one by a small transformer."""
    classes, length, width = 8, 10, 32

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attention = Attention(width, 2, s["attention"])
            self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

        def forward(self, x: Tensor) -> Any:
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(classes, width), nn.Embedding(length, width)
            self.blocks = nn.Sequential(*[Block() for _ in range(s["layers"])])
            self.head = nn.Linear(width, classes)

        def forward(self, ids: Tensor) -> Any:
            return self.head(self.blocks(self.tokens(ids) + self.places.weight))

    model = s.make(Net())
    test = torch.randint(classes, (200, length))
    s.skill(lambda: accuracy(lambda ids: model(ids)[:, 1:].flatten(0, 1), test, test[:, :-1].flatten()))

    def loss_at(step: int) -> Tensor:
        ids = torch.randint(classes, (s.batch, length))
        logits = model(ids)[:, 1:].flatten(0, 1)
        if s.get("naive") and step > 20:  # probabilities of other classes round to 0, and 0 times log 0 is NaN
            share = (logits * 12).softmax(-1)
            entropy = -(share * share.log()).sum(-1).mean()
            return F.cross_entropy(logits, ids[:, :-1].flatten()) - 0.0001 * entropy
        return F.cross_entropy(logits, ids[:, :-1].flatten())

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("adversary", critic_steps=25, saturating=True, name="more-steps", twin={"steps": 120}),
    fault("adversary", critic_steps=15, saturating=True, name="steps", twin={"steps": 120}),
    lookalike("balanced", rate_of_critic=1.5),
    min_skill=0.5,
    variants=({"width": 24}, {"width": 32}),
    steps=200,
    lr=1e-2,
    objective="none",
    rate_of_critic=1.0,
    critic_steps=1,
)
def fit_adversaries(s: CauseSession) -> None:
    """Draw from a Gaussian far away by a generator against a discriminator."""
    width, target = s["width"], torch.tensor([6.0, -5.0])
    generator = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
    critic = nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))
    models = nn.ModuleDict({"generator": generator, "critic": critic})
    optimizers = (
        torch.optim.SGD(generator.parameters(), lr=10 * s["lr"], momentum=0.5),
        torch.optim.Adam(critic.parameters(), lr=s["lr"] * s["rate_of_critic"], betas=(0.5, 0.99)),
    )
    start = float((generator(torch.randn(500, 4)).mean(0) - target).norm().detach())
    s.skill(lambda: 1 - float((generator(torch.randn(500, 4)).mean(0) - target).norm()) / start)
    s.run.watch(models, optimizers)
    for _ in range(s.steps):
        for _ in range(s["critic_steps"]):
            real, made = target + 0.3 * torch.randn(32, 2), generator(torch.randn(32, 4)).detach()
            critic_loss = F.softplus(-critic(real)).mean() + F.softplus(critic(made)).mean()
            optimizers[1].zero_grad()
            critic_loss.backward()
            optimizers[1].step()
        score = critic(generator(torch.randn(32, 4)))
        loss = -F.softplus(score).mean() if s.get("saturating") else F.softplus(-score).mean()
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        s.run.log(loss, critic_loss=float(critic_loss))


@PROGRAMS.add(
    fault("router", router_bias=60.0),
    fault("unscaled-targets", target_factor=500.0, twin={"optimizer": "sgd", "lr": 0.01, "momentum": 0.9}),
    lookalike("idle-expert", router_bias=-20.0, biased=3),
    min_skill=0.6,
    variants=({"experts": 5}, {"experts": 8}),
    steps=200,
    lr=3e-2,
    router_bias=0.0,
    biased=0,
)
def fit_experts(s: CauseSession) -> None:
    """Fit a function that is linear in each of four regions by linear experts and a router."""
    inputs, experts = 6, s["experts"]
    centers, slopes = 3 * torch.randn(4, inputs), torch.randn(2, inputs).repeat(2, 1)
    slopes[2:] *= -1

    def draw(count: int) -> tuple[Tensor, Tensor]:
        region = torch.randint(4, (count,))
        noise = torch.randn(count, inputs)
        return centers[region] + noise, (noise * slopes[region]).sum(1) * s.get("target_factor", 1.0)

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(inputs, experts)
            self.experts = nn.ModuleList([nn.Linear(inputs, 1) for _ in range(experts)])
            with torch.no_grad():
                self.router.bias.zero_()
                self.router.bias[s["biased"]] = s["router_bias"]

        def forward(self, x: Tensor) -> Any:
            share, chosen = self.router(x).softmax(-1).topk(1)
            out = torch.zeros(len(x))
            for index, expert in enumerate(self.experts):
                at = (chosen[:, 0] == index).nonzero()[:, 0]
                if len(at):
                    out = out.index_add(0, at, expert(x[at])[:, 0] * share[at, 0])
            return out

    model = s.make(Mixture())
    test_x, test_y = draw(500)
    s.skill(lambda: r2(model(test_x), test_y))

    def loss_at(step: int) -> Tensor:
        x, y = draw(64)
        return F.mse_loss(model(s.corrupt(x, step)), y)

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("no-signal", equal_rewards=True),
    fault("rate-too-high-adam", lr_factor=2000.0),
    fault("exp-overflow", naive=True),
    lookalike("entropy-of-policy-falls", steps=300),
    min_skill=0.4,
    variants=({"width": 16}, {"width": 32}),
    steps=200,
    lr=2e-2,
    objective="maximize reward",
)
def fit_rewards(s: CauseSession) -> None:
    """Learn which of four arms pays in which context, by a policy gradient over groups of tries."""
    arms = 4
    good = torch.randn(arms, 5)
    policy = s.make(nn.Sequential(nn.Linear(5, s["width"]), nn.Tanh(), nn.Linear(s["width"], arms)))
    test = torch.randn(400, 5)
    s.skill(lambda: (float((policy(test).argmax(1) == (test @ good.T).argmax(1)).float().mean()) - 0.25) / 0.75)
    rewards = [0.0]

    def loss_at(step: int) -> Tensor:
        context = torch.randn(32, 5)
        logits = policy(context)
        if s.get("naive") and step > 30:  # a temperature that falls, and exponentials by hand
            weight = (logits * 1.1 ** (step - 30)).exp()
            shares = (weight / weight.sum(1, keepdim=True)).clamp(min=1e-6)
        else:
            shares = logits.softmax(1)
        tries = torch.multinomial(torch.nan_to_num(shares.detach(), nan=0.25), 8, replacement=True)
        reward = (tries == (context @ good.T).argmax(1, keepdim=True)).float()
        rewards[0] = float(reward.mean())
        if s.get("equal_rewards"):  # the format is rewarded, and every answer has it
            reward = torch.ones_like(reward)
        advantage = reward - reward.mean(1, keepdim=True)
        return -(advantage * shares.log().gather(1, tries)).mean()

    s.train(policy, loss_at, metrics=lambda: {"reward": rewards[0]})
