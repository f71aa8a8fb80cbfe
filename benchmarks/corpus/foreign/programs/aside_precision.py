"""Half precision, accumulation, and unusual schedules (foreign-aside)."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.corpus.foreign.cases import Programs, blow_up, irreducible, lookalike, other, signal
from benchmarks.corpus.foreign.session import Session
from benchmarks.corpus.foreign.tasks import accuracy, digits, r2, teacher

PROGRAMS: Final = Programs()


def net(inputs: int, width: int, depth: int, outputs: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return a plain network."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(width if index else inputs, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


@PROGRAMS.add(
    "half",
    blow_up("inputs-overflow", inputs_factor=6e4, first_scale=1024.0),
    blow_up("rate-jump", jump=(120, 1e6), optimizer="sgd", lr=0.05),
    blow_up("unscaled-clip", loss_factor=1e4, no_scaler=True, optimizer="sgd", lr=0.3),
    blow_up("missing-pixel", nan_at=100, no_scaler=True),
    other("no-rate", lr=1e-9),
    irreducible("shuffled-labels", shuffled=True),
    lookalike("first-scale-too-large", first_scale=2.0**24),
    lookalike("skips-one-step", inf_at=90),
    lookalike("skips-a-root", trap=("1", "root", 110)),
    lookalike("clipped", clip=0.5),
    min_skill=0.45,
    variants=({"width": 48, "lr": 3e-3}, {"width": 64, "lr": 0.05, "optimizer": "sgd", "momentum": 0.9}),
    steps=200,
    first_scale=2.0**12,
)
def scaled_images(s: Session) -> None:
    """Classify images under autocast with a loss scaler."""
    data = digits()
    model = s.make(net(64, s["width"], 2, 10))
    optimizer = s.optimizer(model.parameters())
    labels = s.labels(data.y)
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=s["first_scale"], growth_interval=60, enabled=not s.get("no_scaler")
    )
    s.skill(lambda: accuracy(model, data.test_x * s.get("inputs_factor", 1.0), data.test_y))
    s.run.watch(model, optimizer, scaler=scaler)
    for step in range(s.steps):
        s.set_rate(optimizer, step)
        index = torch.randint(len(labels), (s.batch,))
        with torch.autocast("cpu", dtype=torch.float16):
            logits = model(s.corrupt(data.x[index], step))
            loss = F.cross_entropy(logits.float(), labels[index]) * s.get("loss_factor", 1.0)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if s.get("clip"):
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), s["clip"])
        scaler.step(optimizer)
        scaler.update()
        s.run.log(loss)


@PROGRAMS.add(
    "half",
    blow_up("root-inside", trap=("1", "root", 100)),
    blow_up("eps-is-zero", eps=1e-8, dead_inputs=True),
    blow_up("rate-too-high", optimizer="sgd", lr=2e3),
    blow_up("targets-overflow", target_factor=3e4, optimizer="sgd", lr=1e-3),
    blow_up("missing-value", nan_at=110),
    other("updates-round-away", optimizer="sgd", lr=1e-7),
    lookalike("warm-up", warmup=60),
    lookalike("cosine", cosine=True),
    min_skill=0.4,
    variants=({"width": 32, "lr": 4e-3}, {"width": 48, "lr": 3e-3, "optimizer": "adamw"}, {"width": 64, "lr": 2e-3}),
    steps=220,
    eps=1e-4,
)
def half_weights(s: Session) -> None:
    """Fit a function with weights in half precision."""
    data, factor = teacher(6), s.get("target_factor", 1.0)
    model = s.make(net(6, s["width"], 2, 1)).half()
    optimizer = s.optimizer(model.parameters())
    s.skill(lambda: r2(model(data.test_x.half()).float() / factor, data.test_y))

    def loss_at(step: int) -> Tensor:
        x, y = data.draw(64)
        if s.get("dead_inputs"):
            x = x * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
        return F.mse_loss(model(s.corrupt(x, step).half()).float(), factor * y)

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "accumulation",
    blow_up("branch-not-taken", trap=("1", "where", 80)),
    blow_up("never-zeroed", keep_gradients=True, optimizer="sgd", lr=0.3, momentum=0.9, target_factor=3.0),
    blow_up("summed-parts", summed_parts=True, accumulate=32, optimizer="sgd", lr=0.3, momentum=0.9),
    blow_up("missing-value", nan_at=90),
    signal("tiny-weights", gain=0.01, depth=5, optimizer="sgd", lr=0.02),
    other("no-rate", lr=1e-9),
    irreducible("shuffled-targets", shuffled=True),
    lookalike("many-parts", accumulate=8, batch=6),
    lookalike("summed-under-adam", summed_parts=True, optimizer="adam", lr=5e-3),
    lookalike("mean-in-log", logs="float", late_zero=True),
    min_skill=0.5,
    variants=({"width": 32, "lr": 6e-3}, {"width": 48, "lr": 0.05, "optimizer": "nesterov"}, {"width": 64, "lr": 3e-3}),
    steps=200,
    accumulate=4,
    batch=16,
    depth=2,
)
def accumulated_regression(s: Session) -> None:
    """Fit a function with gradients of several batches."""
    data, factor = teacher(8), s.get("target_factor", 1.0)
    model = s.make(net(8, s["width"], s["depth"], 1))
    optimizer = s.optimizer(model.parameters())
    targets = s.labels(data.y) * factor
    s.skill(lambda: r2(model(data.test_x) / factor, data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(targets), (s.batch,))
        return F.mse_loss(model(s.corrupt(data.x[index], step)), targets[index])

    s.fit(model, optimizer, loss_at)


class Residual(nn.Module):
    """A residual block of convolutions."""

    def __init__(self, channels: int, *, norm: bool, skip: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm1, self.norm2 = (nn.BatchNorm2d(channels) if norm else nn.Identity() for _ in range(2))
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """Transform `[batch, channel, row, column]`."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(x + y if self.skip else y)


def _residual(s: Session, **more: Any) -> None:
    data, channels = digits(), s["channels"]
    blocks = [Residual(channels, norm=s.get("norm", True), skip=s.get("skip", True)) for _ in range(s["blocks"])]
    model = s.make(
        nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(channels, 10),
        )
    )  # fmt: skip
    optimizer = s.optimizer(model.parameters(), **more)
    labels = s.labels(data.y)
    s.skill(lambda: accuracy(model, data.test_x.view(-1, 1, 8, 8), data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(labels), (s.batch,))
        return F.cross_entropy(s.logits(model(s.corrupt(data.x[index], step).view(-1, 1, 8, 8))), labels[index])

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "schedules",
    blow_up("root-inside", trap=("1", "root", 90)),
    blow_up("restarts-too-high", restarts=40, optimizer="sgd", lr=30.0, norm=False, momentum=0.9),
    blow_up("jump-without-norm", norm=False, optimizer="sgd", lr=0.05, momentum=0.9, jump=(100, 400.0)),
    blow_up("missing-pixel", nan_at=110),
    signal("plain-and-deep", norm=False, skip=False, blocks=6, gain=0.4, optimizer="sgd", lr=0.02),
    irreducible("shuffled-labels", shuffled=True),
    other("dropped-at-once", drop=(4, 1e-7)),
    lookalike("restarts", restarts=50),
    lookalike("jump-with-norm", jump=(110, 8.0)),
    lookalike("burst", burst=(80, 3, 15.0)),
    min_skill=0.45,
    variants=(
        {"channels": 10, "blocks": 2, "lr": 6e-3},
        {"channels": 12, "blocks": 2, "lr": 0.1, "optimizer": "nesterov"},
    ),
    steps=200,
    batch=24,
)
def residual_images(s: Session) -> None:
    """A residual network with batch normalization."""
    _residual(s)


@PROGRAMS.add(
    "schedules",
    blow_up("branch-not-taken", trap=("0", "where", 100)),
    blow_up("ramp", norm=False, optimizer="sgd", lr=0.02, momentum=0.9, ramp=(70, 1.08)),
    blow_up("wild-weights", norm=False, gain=30.0, optimizer="sgd", lr=0.1, clip=None),
    signal("no-skip-small", norm=False, skip=False, gain=0.3, blocks=5, optimizer="sgd", lr=0.02),
    other("softmax-twice", softmax_twice=True, optimizer="sgd", lr=1e-3),
    other("no-rate", lr=1e-9, norm=False),
    lookalike("warm-up-and-cosine", warmup=40, cosine=True),
    lookalike("steps-down", drop=(120, 0.1)),
    lookalike("triangle", restarts=25),
    min_skill=0.45,
    variants=({"channels": 10, "blocks": 2, "lr": 5e-3, "warmup": 20}, {"channels": 8, "blocks": 3, "lr": 4e-3}),
    steps=200,
    batch=32,
    clip=5.0,
)
def clipped_residual_images(s: Session) -> None:
    """A residual network that clips its gradients."""
    if s.get("norm", True) is False and s.get("ramp"):
        s.settings["clip"] = None
    _residual(s)


@PROGRAMS.add(
    "schedules",
    blow_up("root-inside", trap=("1", "root", 120)),
    blow_up("rises-each-cycle", cycle=40, growth=30.0, optimizer="sgd", lr=0.05),
    blow_up("jump", jump=(130, 500.0), optimizer="sgd", lr=0.05, momentum=0.9),
    signal("sigmoid-depth", sigmoid=True, depth=9, optimizer="sgd", lr=0.05),
    other("ends-before-it-begins", warmup=1e9),
    irreducible("shuffled-targets", shuffled=True),
    lookalike("cycles", cycle=40, growth=1.0),
    lookalike("noisy-batches", batch=4, lr=2e-3),
    lookalike("jump-down", drop=(100, 0.01)),
    min_skill=0.5,
    variants=(
        {"width": 48, "lr": 6e-3},
        {"width": 32, "lr": 5e-3, "optimizer": "nadam"},
        {"width": 64, "lr": 4e-3, "optimizer": "adamw"},
    ),
    steps=260,
    depth=2,
)
def cyclic_regression(s: Session) -> None:
    """Fit a function while the learning rate goes in cycles of its own."""
    data = teacher(8)
    model = s.make(net(8, s["width"], s["depth"], 1, nn.Sigmoid if s.get("sigmoid") else nn.ReLU))
    optimizer = s.optimizer(model.parameters())
    targets = s.labels(data.y)
    s.skill(lambda: r2(model(data.test_x), data.test_y))
    s.run.watch(model, optimizer)
    plan = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            s.rate_factor(step)
            * (
                s.get("growth", 1.0) ** (step // s["cycle"]) * (0.55 + 0.45 * math.cos(2 * math.pi * step / s["cycle"]))
                if s.get("cycle")
                else 1.0
            )
        ),
    )
    for step in range(s.steps):
        index = torch.randint(len(targets), (s.batch,))
        loss = F.mse_loss(model(s.corrupt(data.x[index], step)), targets[index])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        plan.step()
        s.run.log(loss.item(), rate=plan.get_last_lr()[0])
