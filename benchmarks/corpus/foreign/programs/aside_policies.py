"""Policy gradients, actor-critics and value learning (foreign-aside)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.corpus.foreign.cases import Programs, blow_up, lookalike, other
from benchmarks.corpus.foreign.session import Session

PROGRAMS: Final = Programs()


def body(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Return the usual small network of a policy."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
    )


class Corridor:
    """Many corridors of seven places; the reward of 1 is at the right end, and an episode has ten steps."""

    places = 7
    length = 10

    def __init__(self, count: int) -> None:
        self.place = torch.ones(count, dtype=torch.long)

    def see(self) -> Tensor:
        """Return the places as one-hot vectors."""
        return F.one_hot(self.place, self.places).float()

    def move(self, right: Tensor) -> Tensor:
        """Move each walker right or left, and return the rewards."""
        self.place = (self.place + 2 * right.long() - 1).clamp(0, self.places - 1)
        return (self.place == self.places - 1).float()


BEST_RETURN: Final = 6.0
"""A walker that always goes right reaches the end at its fifth step of ten."""


def _play(policy: Callable[[Tensor], Tensor], count: int = 100) -> float:
    """Return the share of the best return that the policy's own choices reach."""
    corridor, total = Corridor(count), torch.zeros(count)
    for _ in range(Corridor.length):
        logits = policy(corridor.see())
        if not bool(torch.isfinite(logits).all()):
            return -math.inf
        total += corridor.move(torch.rand(count) < logits.softmax(1)[:, 1])
    return float(total.mean()) / BEST_RETURN


RETURNS: Final = (
    other("no-rate", lr=1e-9),
    other("wrong-sign", sign=-1.0),
)


@PROGRAMS.add(
    "policies",
    blow_up("root-inside", trap=("1", "root", 60)),
    *RETURNS,
    blow_up("rate-jump", jump=(15, 1e10), optimizer="sgd", lr=0.05),
    blow_up("missing-observation", nan_at=70),
    other("no-reward", no_reward=True),
    lookalike("solved", steps=350, lr=0.02),
    lookalike("no-baseline", baseline=False, steps=250, lr=0.01),
    lookalike("declared", objective="maximize reward"),
    min_skill=0.7,
    surrogate=True,
    variants=({"width": 24, "lr": 0.01, "batch": 32}, {"width": 32, "lr": 0.006, "batch": 48, "optimizer": "adamw"}),
    steps=160,
    baseline=True,
)
def walk_by_reinforce(s: Session) -> None:
    """Learn to walk right by REINFORCE."""
    policy = s.make(body(Corridor.places, s["width"], 2))
    optimizer = s.optimizer(policy.parameters())
    s.skill(lambda: _play(policy))
    s.run.watch(policy, optimizer)
    for step in range(s.steps):
        s.set_rate(optimizer, step)
        corridor, chances, rewards = Corridor(s.batch), [], []
        for _ in range(Corridor.length):
            chosen = torch.distributions.Categorical(
                logits=policy(s.corrupt(corridor.see(), step)), validate_args=False
            )
            action = torch.rand(s.batch) < chosen.logits.softmax(1)[:, 1]
            chances.append(chosen.logits.log_softmax(1).gather(1, action.long()[:, None])[:, 0])
            rewards.append(corridor.move(action) * (0.0 if s.get("no_reward") else 1.0))
        returns = torch.stack(rewards).flip(0).cumsum(0).flip(0)
        advantage = returns - returns.mean(1, keepdim=True) if s["baseline"] else returns
        loss = -(torch.stack(chances) * advantage).mean() * s.get("sign", 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        s.run.log(loss, reward=float(torch.stack(rewards).sum(0).mean()))


@PROGRAMS.add(
    "policies",
    blow_up("branch-not-taken", trap=("3", "where", 40)),
    *RETURNS,
    blow_up("ratio-overflow", no_clip=True, epochs=8, lr=2.0, optimizer="sgd", factor=30.0),
    blow_up("deviation-of-one", spread_floor=0.0, group=1),
    blow_up("missing-observation", nan_at=50),
    lookalike("solved", steps=150, lr=0.01),
    lookalike("entropy", entropy=0.01),
    lookalike("declared", objective="maximize reward", log_loss="float"),
    min_skill=0.7,
    surrogate=True,
    variants=({"width": 24, "lr": 6e-3}, {"width": 32, "lr": 4e-3, "epochs": 3}),
    steps=80,
    epochs=2,
    batch=32,
    spread_floor=1e-6,
)
def walk_by_proximal_steps(s: Session) -> None:
    """Learn to walk right by clipped ratios, with several epochs a rollout and a critic (PPO)."""
    policy, critic = s.make(body(Corridor.places, s["width"], 2)), body(Corridor.places, s["width"], 1)
    optimizer = s.optimizer([*policy.parameters(), *critic.parameters()])
    s.skill(lambda: _play(policy))
    s.run.watch({"policy": policy, "critic": critic}, optimizer)
    for step in range(s.steps):
        s.set_rate(optimizer, step)
        corridor, seen, actions, old, rewards = Corridor(s.get("group", s.batch)), [], [], [], []
        for _ in range(Corridor.length if s.get("group") is None else 1):
            view = s.corrupt(corridor.see(), step)
            with torch.no_grad():
                chances = (policy(view) * s.get("factor", 1.0)).log_softmax(1)
            action = (torch.rand(len(view)) < chances.exp()[:, 1]).long()
            seen.append(view)
            actions.append(action)
            old.append(chances.gather(1, action[:, None])[:, 0])
            rewards.append(corridor.move(action))
        view, action, before = torch.cat(seen), torch.cat(actions), torch.cat(old)
        target = torch.stack(rewards).flip(0).cumsum(0).flip(0).flatten()
        with torch.no_grad():
            advantage = target - critic(view)[:, 0]
            advantage = (advantage - advantage.mean()) / (advantage.std() + s["spread_floor"]) * s.get("sign", 1.0)
        for _ in range(s["epochs"]):
            chances = (policy(view) * s.get("factor", 1.0)).log_softmax(1)
            ratio = (chances.gather(1, action[:, None])[:, 0] - before).exp()
            gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            if s.get("no_clip"):
                gain = ratio * advantage
            entropy = -(chances.exp() * chances).sum(1).mean()
            value = F.mse_loss(critic(view)[:, 0], target)
            loss = -gain.mean() + 0.25 * value - s.get("entropy", 0.0) * entropy
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        s.run.log(float(loss.detach()) if s.get("log_loss") else loss, reward=float(torch.stack(rewards).sum(0).mean()))


@PROGRAMS.add(
    "policies",
    blow_up("root-inside", trap=("letter", "root", 90)),
    *RETURNS,
    blow_up("deviation-of-zero", spread_floor=0.0, steps=260),
    blow_up("rate-jump", jump=(60, 1e3)),
    other("one-answer", group=1),
    lookalike("solved", steps=360, lr=8e-3),
    lookalike("solved-soon", steps=300, group=20),
    lookalike("with-reference", reference=0.02),
    min_skill=0.7,
    surrogate=True,
    variants=({"width": 24, "lr": 8e-3, "letters": 8}, {"width": 32, "lr": 8e-3, "letters": 12}),
    steps=240,
    group=16,
    spread_floor=1e-4,
)
def answers_by_groups(s: Session) -> None:
    """Learn to write a wanted word by rewards that are compared within groups of answers (GRPO)."""
    letters, length, width = s["letters"], 4, s["width"]

    class Writer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.letter, self.cell = nn.Embedding(letters + 1, width), nn.GRUCell(width, width)
            self.head = nn.Linear(width, letters)

        def forward(self, letter: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            state = self.cell(self.letter(letter), state)
            return self.head(state), state

    wanted = torch.randint(letters, (length,))
    model = s.make(Writer())
    optimizer = s.optimizer(model.parameters())

    def write(count: int) -> tuple[Tensor, Tensor, Tensor]:
        letter, state = torch.full((count,), letters), torch.zeros(count, width)
        chances, answer, spread = [], [], []
        for _ in range(length):
            logits, state = model(letter, state)
            scores = logits.log_softmax(1)
            letter = (scores - torch.log(-torch.log(torch.rand_like(scores).clamp_min(1e-9)))).argmax(1)
            chances.append(scores.gather(1, letter[:, None])[:, 0])
            spread.append((scores.exp() * scores).sum(1))
            answer.append(letter)
        return torch.stack(chances, 1).sum(1), torch.stack(answer, 1), torch.stack(spread).mean()

    def rate(answer: Tensor) -> Tensor:
        return (answer == wanted).float().mean(1)

    s.skill(lambda: (float(rate(write(200)[1]).mean()) - 1 / letters) / (1 - 1 / letters))
    s.run.watch(model, optimizer)
    for step in range(s.steps):
        s.set_rate(optimizer, step)
        chance, answer, spread = write(4 * s["group"])
        reward = rate(answer).view(4, -1)
        centered = reward - reward.mean(1, keepdim=True)
        deviation = reward.std(1, keepdim=True) if s["group"] > 1 else torch.ones(4, 1)
        advantage = (centered / (deviation + s["spread_floor"])).flatten() * s.get("sign", 1.0)
        loss = -(chance * advantage).mean() + s.get("reference", 0.0) * spread
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        s.run.log(loss, reward=float(reward.mean()))


@PROGRAMS.add(
    "policies",
    blow_up("branch-not-taken", trap=("trunk", "where", 70)),
    *RETURNS,
    blow_up("critic-summed", value_weight=1e6, optimizer="sgd", lr=0.01),
    blow_up("missing-observation", nan_at=80),
    lookalike("solved", steps=300, lr=0.015),
    lookalike("entropy", entropy=0.01),
    lookalike("clipped", clip=0.2, lr=0.02),
    min_skill=0.7,
    surrogate=True,
    variants=({"width": 24, "lr": 0.01}, {"width": 32, "lr": 8e-3, "optimizer": "rmsprop"}),
    steps=170,
    batch=32,
)
def walk_by_actor_and_critic(s: Session) -> None:
    """Learn to walk right by one-step advantages of a critic, in a network with two heads."""

    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(Corridor.places, s["width"]), nn.ReLU())
            self.policy, self.value = nn.Linear(s["width"], 2), nn.Linear(s["width"], 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.trunk(x)
            return self.policy(hidden), self.value(hidden)[:, 0]

    model = s.make(TwoHeads())
    optimizer = s.optimizer(model.parameters(), rate=0.5 if s.get("optimizer") == "rmsprop" else 1.0)
    s.skill(lambda: _play(lambda view: model(view)[0]))
    s.run.watch(model, optimizer)
    for step in range(s.steps):
        s.set_rate(optimizer, step)
        corridor, loss, total = Corridor(s.batch), torch.zeros(()), 0.0
        for time in range(Corridor.length):
            logits, value = model(s.corrupt(corridor.see(), step))
            scores = logits.log_softmax(1)
            action = (torch.rand(s.batch) < scores.exp()[:, 1]).long()
            reward = corridor.move(action)
            with torch.no_grad():
                after = model(corridor.see())[1] * (time < Corridor.length - 1)
                target = reward + 0.9 * after
                advantage = (target - value) * s.get("sign", 1.0)
            chance = scores.gather(1, action[:, None])[:, 0]
            entropy = -(scores.exp() * scores).sum(1).mean()
            loss = loss - (chance * advantage).mean() + s.get("value_weight", 0.5) * (value - target).pow(2).mean()
            loss = loss - s.get("entropy", 0.0) * entropy
            total += float(reward.mean())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if s.get("clip"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), s["clip"])
        optimizer.step()
        s.run.log(loss, reward=total)


@PROGRAMS.add(
    "values",
    blow_up("root-inside", trap=("1", "root", 150)),
    other("no-rate", lr=1e-9),
    other("wrong-sign", reward_factor=-1.0),
    blow_up("discount-above-one", discount=1.35, no_target=True, optimizer="sgd", lr=0.3),
    blow_up("huge-rewards", reward_factor=1e4, optimizer="sgd", lr=0.2, momentum=0.9),
    blow_up("missing-observation", nan_at=160),
    lookalike("large-rewards", reward_factor=20.0, lr=0.02),
    lookalike("rare-copies", copy_every=40),
    lookalike("declared", objective="maximize reward"),
    min_skill=0.7,
    surrogate=True,
    variants=({"width": 32, "lr": 4e-3}, {"width": 48, "lr": 3e-3, "optimizer": "adamw", "copy_every": 10}),
    steps=320,
    batch=64,
    copy_every=15,
    discount=0.9,
)
def walk_by_values(s: Session) -> None:
    """Learn the values of moves from stored ones, with a target network (DQN)."""
    model = s.make(body(Corridor.places, s["width"], 2))
    target = body(Corridor.places, s["width"], 2)
    target.load_state_dict(model.state_dict())
    optimizer = s.optimizer(model.parameters())

    def greedy() -> float:
        corridor, total = Corridor(20), torch.zeros(20)
        for _ in range(Corridor.length):
            total += corridor.move(model(corridor.see()).argmax(1))
        return float(total.mean()) / BEST_RETURN

    s.skill(greedy)
    store = Corridor(4000)
    store.place = torch.randint(Corridor.places, (4000,))
    moves = torch.randint(2, (4000,))
    before = store.see()
    rewards = store.move(moves) * s.get("reward_factor", 1.0)
    after = store.see()

    def loss_at(step: int) -> Tensor:
        if step % s["copy_every"] == 0:
            target.load_state_dict(model.state_dict())
        index = torch.randint(4000, (s.batch,))
        with torch.no_grad():
            ahead = (model if s.get("no_target") else target)(after[index]).amax(1)
            wanted = rewards[index] + s["discount"] * ahead
        value = model(s.corrupt(before[index], step)).gather(1, moves[index][:, None])[:, 0]
        return F.mse_loss(value, wanted) if s.get("reward_factor") else F.smooth_l1_loss(value, wanted)

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "values",
    blow_up("branch-not-taken", trap=("3", "where", 130)),
    other("no-rate", lr=1e-9),
    blow_up("root-of-negative", naive=True, born_in=r"actor\..*"),
    blow_up("rate-jump", jump=(140, 1e9), optimizer="sgd", lr=0.02),
    blow_up("missing-observation", nan_at=120),
    lookalike("solved", steps=450),
    lookalike("warm", entropy=0.02),
    min_skill=0.6,
    surrogate=True,
    variants=({"width": 32, "lr": 5e-3}, {"width": 48, "lr": 4e-3, "optimizer": "adamw"}),
    steps=320,
    batch=64,
    entropy=0.05,
)
def squashed_actions(s: Session) -> None:
    """Learn bounded actions with an entropy bonus and a critic (SAC, one step)."""
    actor, critic = s.make(body(2, s["width"], 2)), body(3, s["width"], 1)
    first, second = s.optimizer(actor.parameters()), s.optimizer(critic.parameters(), rate=2.0)
    place = 2 * torch.rand(500, 2) - 1

    def reward(view: Tensor, action: Tensor) -> Tensor:
        return 1 - (action - torch.sin(2 * view[:, 0]) * view[:, 1]).pow(2) * 4

    def skill() -> float:
        ordinary = float(reward(place, torch.zeros(500)).mean())
        return (float(reward(place, torch.tanh(actor(place)[:, 0])).mean()) - ordinary) / (1 - ordinary)

    s.skill(skill)
    s.run.watch({"actor": actor, "critic": critic}, [first, second])
    for step in range(s.steps):
        s.set_rate(first, step)
        s.set_rate(second, step)
        view = s.corrupt(2 * torch.rand(s.batch, 2) - 1, step)
        mean, spread = actor(view).unbind(1)
        deviation = spread.clamp(-3, 1).exp()
        raw = mean + deviation * torch.randn(s.batch)
        action = torch.tanh(raw)
        chance = -0.5 * ((raw - mean) / deviation).pow(2) - deviation.log()
        if s.get("naive"):
            chance = chance - torch.sqrt(0.999 - 1.05 * action.abs()).log()
        else:
            chance = chance - 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        value = critic(torch.cat([view, action.detach()[:, None]], 1))[:, 0]
        loss_c = F.mse_loss(value, reward(view, action.detach()) + 0.1 * torch.randn(s.batch))
        second.zero_grad()
        loss_c.backward()  # type: ignore[no-untyped-call]
        second.step()
        loss_a = (s["entropy"] * chance - critic(torch.cat([view, action[:, None]], 1))[:, 0]).mean()
        first.zero_grad()
        loss_a.backward()
        first.step()
        s.run.log(loss_a, critic_loss=float(loss_c.detach()), reward=float(reward(view, action.detach()).mean()))
