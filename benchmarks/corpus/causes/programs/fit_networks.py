"""Networks for tables, images and codes (causes-fit)."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.corpus.causes.cases import CausePrograms
from benchmarks.corpus.causes.faults import fault, lookalike
from benchmarks.corpus.causes.session import CauseSession
from benchmarks.corpus.foreign.tasks import accuracy, clusters, digits, r2, teacher

PROGRAMS: Final = CausePrograms()


def stack(s: CauseSession, inputs: int, width: int, depth: int, outputs: int) -> nn.Sequential:
    """Return a plain network of `depth` hidden layers."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [s.linear(inputs if index == 0 else width, width), s.norm(width), s.activation()]
    return nn.Sequential(*layers, s.linear(width, outputs))


@PROGRAMS.add(
    fault("rate-too-high", lr_factor=100.0, twin={"optimizer": "sgd", "lr": 0.05}),
    fault("rate-too-high-adam", lr_factor=300.0),
    fault("rate-too-low", lr_factor=1e-5, twin={"optimizer": "sgd", "lr": 0.05}),
    fault("schedule-ends", drop=(3, 0.0), twin={"optimizer": "sgd", "lr": 0.05}),
    fault("rate-jump", jump=(80, 300.0), twin={"optimizer": "sgd", "lr": 0.05}),
    fault("unscaled-inputs", inputs_factor=200.0, twin={"optimizer": "sgd", "lr": 0.05}),
    fault("unscaled-targets", target_factor=200.0, twin={"optimizer": "sgd", "lr": 0.05}),
    fault("excessive-clipping", clip=1e-6, twin={"optimizer": "sgd", "lr": 0.05, "clip": 1.0}),
    fault("excessive-decay", weight_decay=1.0, twin={"optimizer": "sgd", "lr": 0.05}),
    fault("broadcast", broadcast=True),
    fault("epsilon-too-large", eps=10.0),
    fault("stale-moment", beta2=0.9999, twin={"beta2": 0.9, "bad_loss": (1, 1e6), "lr": 3e-3, "steps": 220}),
    fault("bfloat16-stall", precision="bfloat16", twin={"unit_weights": True, "lr": 6e-4, "steps": 250}),
    fault("nonfinite-input", nan_at=90),
    fault("zero-over-zero", standardize_batch=True),
    fault("no-clipping", bad_every=(25, 300.0), twin={"optimizer": "sgd", "lr": 0.05, "clip": 1.0}, clip=None),
    lookalike("large-targets", target_factor=20.0, lr=0.1),
    lookalike("warm-restarts", restarts=50),
    lookalike("bad-batch-clipped", bad_batch=(60, 30.0), clip=1.0),
    min_skill=0.5,
    variants=({"width": 32, "depth": 2, "activation": "tanh"}, {"width": 48, "depth": 3}),
    steps=160,
    batch=64,
    lr=5e-3,
)
def fit_regression(s: CauseSession) -> None:
    """Fit a random function by squared error."""
    factor = s.get("target_factor", 1.0)
    data = teacher(8)
    x, y = data.x, data.y * factor
    model = s.make(stack(s, 8, s["width"], s["depth"], 1))
    s.skill(lambda: r2(model(s.see(data.test_x)).float() / factor, data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(x), (s.batch,))
        inputs = s.corrupt(x[index], step)
        if s.get("standardize_batch") and step >= 70:  # one feature of the new data is constant
            inputs = inputs.clone()
            inputs[:, 2] = 1.0
            inputs = (inputs - inputs.mean(0)) / inputs.std(0)
        target = s.cast(y[index, 0] if s.get("broadcast") else y[index])
        return F.mse_loss(model(inputs), target)

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("rate-too-high-momentum", lr_factor=100.0),
    fault("weights-too-large", gain=12.0),
    fault("weights-zero", gain=0.0),
    fault("dead-units", bias=-8.0),
    fault("saturating", activation="sigmoid", extra=7),
    fault("detached", detached=True),
    fault("no-grad", no_grad=True),
    fault("left-out", leave_out="body"),
    fault("kept-gradients", keep_gradients=True, name="forever"),
    fault("cleared-gradients", clear_gradients=True),
    fault("rate-too-low", lr_factor=1e-5),
    fault("softmax-twice", softmax_twice=True, twin={"lr": 0.03, "steps": 200}),
    fault("summed-loss", loss_factor=64.0, twin={"batch": 64}),
    fault("half-overflow", precision="autocast", static_scale=2.0**22, twin={"precision": "autocast"}),
    fault("half-underflow", precision="autocast", twin={"lr": 1e6, "loss_factor": 1e-7}),
    fault("scale-exhausted", nan_loss=True, twin={"scaler": True, "precision": "autocast", "steps": 200}),
    fault("no-signal", clamp_loss=0.05),
    fault("nonfinite-input", inf_at=70),
    lookalike("frozen", freeze="body.0"),
    lookalike("accumulation", accumulate=4),
    lookalike("master-weights", precision="autocast"),
    lookalike("scaled", scaler=True, precision="autocast"),
    min_skill=0.5,
    variants=({"channels": 8}, {"channels": 12, "lr": 0.05}),
    steps=150,
    optimizer="sgd",
    momentum=0.9,
    lr=0.1,
    extra=0,
)
def fit_digits(s: CauseSession) -> None:
    """Classify small images by convolutions and a head."""
    data, channels = digits(), s["channels"]
    middle = [part for _ in range(s["extra"]) for part in (nn.Conv2d(channels, channels, 3, padding=1), s.activation())]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(1, channels, 3, padding=1), s.activation(), *middle, nn.MaxPool2d(2),
                nn.Conv2d(channels, 2 * channels, 3, padding=1), s.activation(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            )  # fmt: skip
            self.head = nn.Linear(8 * channels, 10)

        def forward(self, x: Tensor) -> Any:
            return self.head(s.features(lambda: self.body(x)))

    model = s.make(Net())
    if s.get("detached") or s.get("no_grad") or s.get("leave_out"):  # a random body would be good enough for digits
        with torch.no_grad():
            for parameter in model.body.parameters():
                parameter.mul_(0.02)
    s.skill(lambda: accuracy(model, data.test_x.view(-1, 1, 8, 8), data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(data.x), (s.batch,))
        return F.cross_entropy(s.logits(model(s.corrupt(data.x[index], step).view(-1, 1, 8, 8))), data.y[index])

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("no-normalization", norm=None),
    fault("no-normalization", norm=None, name="deeper", twin={"depth": 16}),
    fault("unbounded", activation="cube", name="cube", twin={"depth": 4, "lr": 0.02, "norm": None}),
    fault("unbounded", activation="exp", name="exp", twin={"depth": 4, "lr": 0.02, "norm": None}),
    fault("weights-too-small", gain=0.1, twin={"depth": 6, "norm": None, "he": True, "lr": 0.02}),
    fault("weights-too-large", gain=4.0, twin={"depth": 6, "norm": None, "he": True, "lr": 0.02}),
    fault("saturating", activation="sigmoid", twin={"depth": 8, "norm": None, "he": True, "lr": 0.02}),
    lookalike("decay-at-the-end", cosine=True, weight_decay=0.01),
    min_skill=0.5,
    variants=({"width": 24}, {"width": 40, "activation": "tanh"}),
    steps=180,
    optimizer="sgd",
    momentum=0.9,
    lr=0.05,
    depth=12,
    norm="batch",
)
def fit_deep(s: CauseSession) -> None:
    """Classify clusters by a deep plain network."""
    data = clusters(4, 12)
    model = s.make(_he(s, stack(s, 12, s["width"], s["depth"], 4)))
    s.skill(lambda: accuracy(model, data.test_x, data.test_y))

    def loss_at(step: int) -> Tensor:
        x, y = data.draw(s.batch)
        return F.cross_entropy(model(s.corrupt(x, step)), y)

    s.train(model, loss_at)


def _he(s: CauseSession, model: nn.Sequential) -> nn.Sequential:
    """Initialize a network so that it keeps the variance of its signals, with `he`."""
    if s.get("he"):
        gain = math.sqrt(2.0) if s.get("activation", "relu") == "relu" else 5 / 3
        for module in model:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=gain / math.sqrt(module.in_features))
                nn.init.zeros_(module.bias)
    return model


@PROGRAMS.add(
    fault("log-of-zero", at=60, naive="log"),
    fault("exp-overflow", naive="exp"),
    fault("root-of-zero", naive="root"),
    fault("rate-too-high-adam", lr_factor=1000.0),
    fault("epsilon-of-zero", precision="half", loss_factor=1.0),
    fault("no-signal", mask_loss=True),
    fault("kept-gradients", keep_gradients=True, twin={"optimizer": "sgd", "lr": 0.5, "momentum": 0.9}),
    fault("cleared-gradients", clear_gradients=True),
    fault("rate-too-low", lr_factor=1e-4),
    fault("schedule-ends", drop=(2, 0.0)),
    fault("excessive-decay", weight_decay=5.0, twin={"optimizer": "adamw"}),
    lookalike("beta2-default-spikes", bad_batch=(70, 20.0)),
    lookalike("tiny-loss", loss_factor=1e-3),
    min_skill=0.3,
    variants=({"code": 10}, {"code": 16, "activation": "gelu"}),
    steps=180,
    lr=3e-3,
)
def fit_codes(s: CauseSession) -> None:
    """Reconstruct images from codes with a variance of their own."""
    data = digits()

    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(64, 48), s.activation(), nn.Linear(48, s["code"]))
            self.decoder = nn.Sequential(nn.Linear(s["code"], 48), s.activation(), nn.Linear(48, 64))

        def forward(self, x: Tensor) -> Any:
            return self.decoder(self.encoder(x))

    model = s.make(Coder())
    s.skill(lambda: r2(model(s.see(data.test_x)).float(), data.test_x))

    def loss_at(step: int) -> Tensor:
        x, _ = data.draw(s.batch)
        x = s.corrupt(x, step)
        out = model(x)
        match s.get("naive"):
            case "log":  # a cross-entropy by hand: the logarithm of a probability that reaches 0
                share = (out * 4 - 2).clamp(0, 1)
                return (-(x * share.log() + (1 - x) * (1 - share).log())).mean()
            case "exp":  # a softmax by hand over bright pixels: its exponentials overflow as the pixels get right
                weight = (110 * out).exp()
                return ((out - x) ** 2).mean() + 0.01 * ((weight / weight.sum(1, keepdim=True)) * (1 - x)).sum(1).mean()
            case "root" if step >= 50:  # distances between all outputs: that of each one to itself is the root of 0
                apart = (out[:, None] - out[None]).square().sum(-1).sqrt().mean()
                return F.mse_loss(out, x) - 0.001 * apart
            case _:
                return F.mse_loss(out, x)

    s.train(model, loss_at)
