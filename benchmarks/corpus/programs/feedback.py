"""Programs whose targets depend on their own outputs: values, games, components, actors, meta-learners."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.corpus.ledger import Ledger
from benchmarks.corpus.program import Program
from benchmarks.corpus.programs.feedforward import dense_stack
from benchmarks.corpus.programs.modules import variance_skill


def drifting_values(
    ledger: Ledger,
    batch: int,
    *,
    features: int = 8,
    growth: float = 0.8,
    discount: float = 0.9,
    reward_noise: float = 0.1,
    hidden: list[int] | None = None,
    activation: str = "relu",
) -> Program:
    """Values of states whose features grow by `growth` at each transition, learned by bootstrapping, off the policy.

    Linear values diverge where discount times growth is above one. Skill: explained variance of the true values.
    """
    mixing = torch.linalg.qr(torch.randn(features, features))[0]
    reward = torch.randn(features, 1) / math.sqrt(features)
    true = torch.linalg.solve(torch.eye(features) - discount * growth * mixing.T, reward)
    if hidden is None:
        value: nn.Module = ledger.add(nn.Linear(features, 1), "value")
        forward = value.__call__
    else:
        forward, _ = dense_stack(ledger, [features, *hidden, 1], activation=activation)

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x = torch.randn(batch, features)
        with torch.no_grad():
            goal = x @ reward + discount * forward(growth * x @ mixing.T) + reward_noise * torch.randn(batch, 1)
        return functional.mse_loss(forward(x), goal)

    eval_x = torch.randn(500, features)
    return Program(
        loss=step_loss,
        skill=lambda: variance_skill(forward(eval_x), eval_x @ true),
        inputs=torch.randn(batch, features),
    )


def bilinear_game(
    ledger: Ledger, batch: int, *, width: int = 12, damping: float = 0.0, noise: float = 0.05, turns: bool = False
) -> Program:
    """Two players with one bilinear loss, which one minimizes and the other maximizes. Simultaneous steps diverge.

    Skill: how much nearer they come to the equilibrium.
    """
    matrix = torch.linalg.qr(torch.randn(width, width))[0]
    ledger.group = 0
    mover = ledger.add_parameter(nn.Parameter(torch.randn(width, 1)), "mover", kind="Player", role="weight")
    ledger.group = 1
    opponent = ledger.add_parameter(nn.Parameter(torch.randn(width, 1)), "opponent", kind="Player", role="weight")
    opponent.register_hook(torch.neg)  # type: ignore[no-untyped-call]
    start = float(mover.detach().norm().square() + opponent.detach().norm().square())

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        seen = matrix + noise * torch.randn(batch, width, width).mean(0)
        gain: Tensor = (mover.T @ seen @ opponent).sum()
        return gain + damping / 2 * (mover.square().sum() - opponent.square().sum())

    return Program(
        loss=step_loss,
        skill=lambda: 1.0 - float(mover.detach().norm().square() + opponent.detach().norm().square()) / start,
        turn=lambda step: step % 2 if turns else None,
    )


def principal_component(
    ledger: Ledger, batch: int, *, width: int = 16, penalty: float = 1.0, spread: float = 2.0
) -> Program:
    """Find the direction of the largest variance by ascent. Without a penalty the vector becomes longer for ever."""
    scale = torch.linspace(0.3, 1.0, width) ** 2 * spread
    rotation = torch.linalg.qr(torch.randn(width, width))[0]
    direction = ledger.add(nn.Linear(width, 1, bias=False), "direction")

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x = (torch.randn(batch, width) * scale) @ rotation
        explained: Tensor = direction(x)
        length = direction.weight.square().sum()
        return -explained.square().mean() / 2 + penalty * (length - 1).square()

    def skill() -> float:
        found = functional.normalize(direction.weight, dim=1) @ rotation.T
        return float(found[0, -3:].square().sum())

    return Program(loss=step_loss, skill=skill, inputs=(torch.randn(batch, width) * scale) @ rotation)


def actor_critic(
    ledger: Ledger,
    batch: int,
    *,
    states: int = 10,
    hidden: int = 24,
    discount: float = 0.9,
    reward_scale: float = 1.0,
    entropy: float = 0.01,
    activation: str = "tanh",
) -> Program:
    """Two networks, two optimizers: an actor on a ring of states, and a critic that bootstraps from itself.

    Skill: how often it turns to the side on which the goal is nearer, against chance.
    """
    ledger.group = 0
    act, _ = dense_stack(ledger, [states, hidden, 2], activation=activation, prefix="actor.")
    ledger.group = 1
    judge, _ = dense_stack(ledger, [states, hidden, 1], activation=activation, prefix="critic.")
    one_hot = torch.eye(states)

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        state = torch.randint(1, states, (batch,))
        log_probability = torch.log_softmax(act(one_hot[state]), -1)
        action = torch.multinomial(log_probability.exp().detach(), 1)
        following = (state + 2 * action[:, 0] - 1) % states
        arrived = following == 0
        reward = reward_scale * (arrived.float() - 0.05)
        with torch.no_grad():
            ahead = judge(one_hot[following])[:, 0] * ~arrived
        error = reward + discount * ahead - judge(one_hot[state])[:, 0]
        chosen = log_probability.gather(1, action)[:, 0]
        spread = -(log_probability.exp() * log_probability).sum(-1).mean()
        return error.square().mean() - (chosen * error.detach()).mean() - entropy * spread

    def skill() -> float:
        right = torch.arange(states) > states / 2
        decided = torch.arange(states) != states // 2
        decided[0] = False
        hits = (act(one_hot).argmax(1) == right.long())[decided]
        return 2 * float(hits.double().mean()) - 1

    return Program(loss=step_loss, skill=skill, inputs=one_hot)


def meta_learning(
    ledger: Ledger, batch: int, *, hidden: int = 24, inner_rate: float = 0.05, inner_steps: int = 2, tasks: int = 3
) -> Program:
    """Learn weights from which a few gradient steps fit a new sine wave (Finn et al. 2017): gradients of gradients."""
    sizes = [(hidden, 1), (hidden,), (hidden, hidden), (hidden,), (1, hidden), (1,)]
    weights = []
    for index, shape in enumerate(sizes):
        start = torch.randn(shape) / math.sqrt(shape[1]) if len(shape) == 2 else torch.zeros(shape)
        role = "weight" if len(shape) == 2 else "bias"
        name = f"{index // 2}.{role}"
        weights.append(ledger.add_parameter(nn.Parameter(start), name, kind="Linear", role=role, activation="tanh"))

    def forward(values: list[Tensor], x: Tensor) -> Tensor:
        h = torch.tanh(functional.linear(x, values[0], values[1]))
        h = torch.tanh(functional.linear(h, values[2], values[3]))
        return functional.linear(h, values[4], values[5])

    def adapted(create_graph: bool) -> tuple[Tensor, Tensor]:
        amplitude, phase = 0.5 + 2 * torch.rand(()), math.pi * torch.rand(())
        x, new_x = torch.rand(batch, 1) * 6 - 3, torch.rand(batch, 1) * 6 - 3
        values: list[Tensor] = list(weights)
        for _ in range(inner_steps):
            loss = functional.mse_loss(forward(values, x), amplitude * (x + phase).sin())
            slopes = torch.autograd.grad(loss, values, create_graph=create_graph)
            values = [value - inner_rate * slope for value, slope in zip(values, slopes, strict=True)]
        return forward(values, new_x), amplitude * (new_x + phase).sin()

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        return torch.stack([functional.mse_loss(*adapted(True)) for _ in range(tasks)]).mean()

    def skill() -> float:
        with torch.enable_grad():
            answers = [adapted(False) for _ in range(60)]
        return variance_skill(torch.cat([a.detach() for a, _ in answers]), torch.cat([y for _, y in answers]))

    return Program(loss=step_loss, skill=skill, inputs=torch.rand(batch, 1) * 6 - 3)
