"""Reinforcement learning: bootstrapped values and policy gradients."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reruns.published.feedforward import dense
from benchmarks.reruns.published.program import Training, adam, published, sgd

CORRIDOR = 8
"""Number of places of the corridor. The reward is at its right end."""


def _corridor(place: Tensor, is_right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next places and the rewards. The end leads back to the start."""
    following = (place + 2 * is_right - 1).clamp(0, CORRIDOR)
    reached = following == CORRIDOR
    return torch.where(reached, 0, following), reached.float()


def _seen(place: Tensor) -> Tensor:
    """Return what is seen at places: smooth bumps `[batch, CORRIDOR]` around each."""
    return torch.exp(-0.5 * (place[:, None] - torch.arange(CORRIDOR)).float() ** 2)


@published("mnih-2015-dqn", steps=400)
def q_learning(is_twin: bool) -> Training:
    """Q-learning with large rewards and squared errors, that bootstraps from itself."""
    factor = 1.0 if is_twin else 200.0
    net = dense([CORRIDOR, 48, 48, 2], nn.ReLU)
    target = copy.deepcopy(net) if is_twin else net
    optimizer = sgd(net, 0.02)
    done = 0

    def step() -> Tensor:
        nonlocal done
        if is_twin and done % 10 == 0:
            target.load_state_dict(net.state_dict())
        done += 1
        place, is_right = torch.randint(CORRIDOR, (64,)), torch.randint(2, (64,))
        following, reward = _corridor(place, is_right)
        with torch.no_grad():
            best = target(_seen(following)).amax(1)
            wanted = factor * reward + 0.9 * best * (1 - reward)
        value = net(_seen(place))[torch.arange(64), is_right]
        loss = (functional.smooth_l1_loss if is_twin else functional.mse_loss)(value, wanted)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss

    def skill() -> float:  # the true values are powers of 0.9; going left is worth two steps more
        away = CORRIDOR - 1 - torch.arange(CORRIDOR)
        true = 0.9 ** torch.stack([(away + 2).clamp_max(CORRIDOR), away], 1).float()
        return 1 - float(((net(_seen(torch.arange(CORRIDOR))) / factor - true) ** 2).mean() / true.var(correction=0))

    return Training(models=net, optimizers=optimizer, step=step, skill=skill)


@published("baird-1995-star", steps=300)
def star(is_twin: bool) -> Training:
    """Baird's star: linear values, all states updated equally often, every state leads to the last."""
    features = torch.cat([2 * torch.eye(7), torch.ones(7, 1)], 1)
    features[6, 6], features[6, 7] = 1.0, 2.0
    net = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
        net.weight[0, 6] = 10.0
        start = float((net(features) ** 2).mean())
    optimizer = sgd(net, 0.05, momentum=0.0)

    def step() -> Tensor:
        state = torch.randint(7, (16,))
        following = net(features[6:]).squeeze()
        wanted = 0.99 * (following if is_twin else following.detach())
        loss = ((net(features[state]).squeeze(1) - wanted) ** 2).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss

    def skill() -> float:  # all true values are zero
        return 1 - float((net(features) ** 2).mean()) / start

    return Training(models=net, optimizers=optimizer, step=step, skill=skill)


@published("williams-1992-baseline", steps=300)
def no_baseline(is_twin: bool) -> Training:
    """A contextual bandit with rewards around 300."""
    context_size, arms = 6, 4
    best = torch.randn(context_size, arms)
    net = dense([context_size, 32, arms], nn.Tanh)
    optimizer = adam(net, 0.05)
    usual = 300.0

    def step() -> Tensor:
        nonlocal usual
        context = torch.randn(64, context_size)
        policy = torch.distributions.Categorical(logits=net(context))
        arm = policy.sample()
        reward = 300 + (context @ best)[torch.arange(64), arm]
        advantage = (reward - usual) / 2 if is_twin else reward
        usual = 0.9 * usual + 0.1 * float(reward.mean())
        loss = -(policy.log_prob(arm) * advantage).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss

    held = torch.randn(512, context_size)

    def skill() -> float:
        rewards = held @ best
        gained = (torch.softmax(net(held), 1) * rewards).sum(1).mean()
        return float((gained - rewards.mean()) / (rewards.amax(1).mean() - rewards.mean()))

    return Training(models=net, optimizers=optimizer, step=step, skill=skill)


class _ActorCritic(nn.Module):
    """A policy and a value on shared layers."""

    def __init__(self, inputs: int, actions: int) -> None:
        super().__init__()
        self.body = dense([inputs, 48, 48], nn.Tanh)
        self.policy, self.value = nn.Linear(48, actions), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x))
        return torch.cat([self.policy(hidden), self.value(hidden)], 1)


@published("cleanrl-441-value", steps=300)
def value_loss(is_twin: bool) -> Training:
    """The error of the value is a million times the policy's, and leaves it nothing of the clipped gradient."""
    features, actions = 6, 4
    factor = 1.0 if is_twin else 1000.0
    best = torch.randn(features, actions)
    net = _ActorCritic(features, actions)
    optimizer = sgd(net, 0.05)

    def step() -> Tensor:
        seen = torch.randn(64, features)
        with torch.no_grad():
            logits = net(seen)[:, :-1]
            before = torch.distributions.Categorical(logits=logits)
            action = before.sample()
            old = before.log_prob(action)
        gain = factor * (seen @ best)[torch.arange(64), action]
        out = net(seen)
        now, value = torch.distributions.Categorical(logits=out[:, :-1]), out[:, -1]
        advantage = gain - value.detach()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        ratio = (now.log_prob(action) - old).exp()
        surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        loss = 0.5 * ((value - gain) ** 2).mean() - surrogate - 0.01 * now.entropy().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        return loss

    held = torch.randn(512, features)

    def skill() -> float:
        rewards = held @ best
        gained = (torch.softmax(net(held)[:, :-1], 1) * rewards).sum(1).mean()
        return float((gained - rewards.mean()) / (rewards.amax(1).mean() - rewards.mean()))

    return Training(models=net, optimizers=optimizer, step=step, skill=skill)
