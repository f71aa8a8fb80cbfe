"""Networks for tables, images and short sequences (foreign-fit)."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.corpus.foreign.cases import Programs, blow_up, irreducible, lookalike, other, signal
from benchmarks.corpus.foreign.session import Session
from benchmarks.corpus.foreign.tasks import accuracy, digits, r2, split, table, teacher

PROGRAMS: Final = Programs()

ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
}


def stack(inputs: int, width: int, depth: int, outputs: int, activation: str) -> nn.Sequential:
    """Return a plain network of `depth` hidden layers."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(inputs if index == 0 else width, width), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(width if depth else inputs, outputs))


@PROGRAMS.add(
    "tables",
    blow_up("root-inside", trap=("1", "root", 130)),
    blow_up("rate-too-high", lr=3.0, optimizer="sgd", momentum=0.9),
    blow_up("late-jump", optimizer="sgd", lr=0.05, jump=(150, 400.0)),
    blow_up("large-targets-summed", optimizer="sgd", lr=0.05, loss_factor=64.0, target_factor=10.0),
    blow_up("missing-value", nan_at=170),
    signal("sigmoid-depth", activation="sigmoid", depth=9, optimizer="sgd", lr=0.05),
    signal("tiny-weights", depth=6, gain=0.03, optimizer="sgd", lr=0.02),
    other("no-rate", lr=1e-9),
    other("broadcast", broadcast=True),
    lookalike("large-targets", target_factor=50.0, lr=0.02, steps=400),
    lookalike("tiny-loss", target_factor=0.02, lr=2e-3),
    lookalike("warm-restarts", restarts=60),
    lookalike("bad-batch", bad_batch=(140, 50.0), optimizer="sgd", lr=0.02, clip=1.0),
    min_skill=0.5,
    variants=({"width": 32, "depth": 2, "lr": 5e-3}, {"width": 64, "depth": 3, "lr": 2e-3, "optimizer": "adamw"}),
    steps=300,
    activation="tanh",
)
def table_regression(s: Session) -> None:
    """Fit a random function by squared error."""
    factor = s.get("target_factor", 1.0)
    train = teacher(8)
    targets = train.y * factor
    model = s.make(stack(8, s["width"], s["depth"], 1, s["activation"]))
    optimizer = s.optimizer(model.parameters())
    s.skill(lambda: r2(model(train.test_x) / factor, train.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(targets), (64,))
        target = targets[index, 0] if s.get("broadcast") else targets[index]
        loss: Tensor = (model(s.corrupt(train.x[index], step)) - target).pow(2).mean()
        return loss

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "images",
    blow_up("branch-not-taken", trap=("1", "where", 110)),
    blow_up("rate-too-high", optimizer="sgd", lr=20.0, momentum=0.9),
    blow_up("wild-weights", gain=30.0, optimizer="sgd", lr=0.5),
    blow_up("missing-pixel", nan_at=120),
    blow_up("rate-jump", optimizer="sgd", lr=0.1, momentum=0.9, jump=(140, 300.0)),
    blow_up("mild-jump", jump=(130, 60.0), optimizer="adam", lr=3e-3),
    signal("dead-relu", bias=-20.0),
    signal("sigmoid-depth", activation="sigmoid", extra=7, optimizer="sgd", lr=0.05),
    other("softmax-twice", softmax_twice=True, optimizer="sgd", lr=0.002),
    irreducible("shuffled-labels", shuffled=True, steps=160),
    lookalike("late-zero", late_zero=True, dense_zero=True),
    lookalike("gradient-noise", batch=6, optimizer="sgd", lr=0.05, momentum=0.9, steps=350),
    lookalike("label-noise", label_noise=0.4, steps=300),
    min_skill=0.5,
    variants=({"channels": 8, "lr": 3e-3}, {"channels": 12, "lr": 0.1, "optimizer": "sgd", "momentum": 0.9}),
    steps=220,
    activation="relu",
    extra=0,
)
def digit_convolutions(s: Session) -> None:
    """Classify small images by convolutions."""
    data, channels, act = digits(), s["channels"], ACTIVATIONS[s["activation"]]
    middle = [part for _ in range(s["extra"]) for part in (nn.Conv2d(channels, channels, 3, padding=1), act())]
    model = s.make(
        nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1), act(), *middle, nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1), act(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(8 * channels, 10),
        )
    )  # fmt: skip
    optimizer = s.optimizer(model.parameters())
    labels = s.labels(data.y)
    s.skill(lambda: accuracy(model, data.test_x.view(-1, 1, 8, 8), data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(labels), (s.batch,))
        images = s.corrupt(data.x[index], step).view(-1, 1, 8, 8)
        return F.cross_entropy(s.logits(model(images)), labels[index])

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "compression",
    blow_up("root-inside", trap=("0", "root", 105)),
    blow_up("rate-too-high", optimizer="sgd", lr=60.0, momentum=0.9),
    blow_up("ramp", optimizer="sgd", lr=0.5, ramp=(100, 1.06)),
    blow_up("infinite-pixel", inf_at=130),
    signal("sigmoid-depth", activation="sigmoid", depth=6, optimizer="sgd", lr=0.1),
    signal("tiny-weights", gain=0.01, depth=4, optimizer="sgd", lr=0.1, steps=500),
    other("forgotten-rate", lr=1e-10),
    lookalike("converged-early", steps=600, lr=6e-3),
    lookalike("float-loss", logs="float", cosine=True),
    min_skill=0.35,
    variants=({"code": 8, "width": 48, "lr": 3e-3}, {"code": 12, "width": 64, "lr": 5e-3, "optimizer": "rmsprop"}),
    steps=250,
    depth=1,
    activation="relu",
)
def digit_autoencoder(s: Session) -> None:
    """Reconstruct small images from a short code."""
    data, width = digits(), s["width"]
    if s.get("optimizer") == "rmsprop":
        s.settings["lr"] = s["lr"] / 5
    model = s.make(
        nn.Sequential(
            stack(64, width, s["depth"], s["code"], s["activation"]),
            stack(s["code"], width, s["depth"], 64, s["activation"]),
        )
    )
    optimizer = s.optimizer(model.parameters())
    s.skill(lambda: r2(model(data.test_x), data.test_x))

    def loss_at(step: int) -> Tensor:
        images = s.corrupt(data.draw(64)[0], step)
        return F.mse_loss(model(images), images)

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "recurrent",
    blow_up("root-inside", trap=("rnn", "root", 140)),
    blow_up("no-clipping", cell="rnn", gain=3.0, optimizer="sgd", lr=3.0, clip=None),
    blow_up("relu-recurrence", cell="relu", gain=3.5, optimizer="sgd", lr=1.0, clip=None, length=40),
    blow_up("missing-value", nan_at=150),
    signal("long-sequence", length=120, cell="rnn", gain=0.4, optimizer="sgd", lr=0.05, steps=150),
    irreducible("shuffled-labels", shuffled=True),
    other("no-rate", lr=1e-9),
    lookalike("clipped-always", clip=0.05, lr=0.01),
    lookalike("warm-up", warmup=80),
    min_skill=0.5,
    variants=({"cell": "lstm", "width": 24, "lr": 0.02, "length": 10}, {"cell": "gru", "width": 32, "lr": 5e-3}),
    steps=260,
    length=16,
    clip=1.0,
)
def remembered_sign(s: Session) -> None:
    """Read a sequence and give back the class of its first value."""
    length, width, cell = s["length"], s["width"], s["cell"]

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind: Any = {"lstm": nn.LSTM, "gru": nn.GRU}.get(cell, nn.RNN)
            more = {"nonlinearity": "relu"} if cell == "relu" else {}
            self.rnn = kind(2, width, batch_first=True, **more)
            self.head = nn.Linear(width, 2)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.head(self.rnn(x)[0][:, -1])
            return output

    signs = torch.randint(2, (1200,))
    x = 0.1 * torch.randn(1200, length, 2)
    x[:, 0, 0] += 2.0 * signs - 1
    data = split(x, signs)
    labels = s.labels(data.y)
    model = s.make(Reader())
    optimizer = s.optimizer(model.parameters())
    s.skill(lambda: accuracy(model, data.test_x, data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(labels), (32,))
        return F.cross_entropy(model(s.corrupt(data.x[index], step)), labels[index])

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "frozen",
    blow_up("rate-jump", optimizer="sgd", lr=0.1, jump=(120, 3000.0), momentum=0.9),
    blow_up("wild-inputs", inputs_factor=3e4, optimizer="sgd", lr=0.1),
    signal("dead-features", body_bias=0.0),
    other("wrong-head", detached_head=True),
    irreducible("shuffled-labels", shuffled=True, steps=150),
    lookalike("thawed", thaw=True),
    lookalike("tiny-rate", lr=5e-4, steps=350),
    lookalike("scheduled", restarts=70),
    min_skill=0.45,
    variants=({"width": 48, "lr": 3e-3}, {"width": 32, "lr": 1e-2, "optimizer": "nadam"}),
    steps=240,
)
def frozen_features(s: Session) -> None:
    """Train a head on features that stay as they are."""
    data, width = digits(), s["width"]
    body = stack(64, width, 2, width, "relu")
    head = nn.Linear(width, 10)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.mul_(2.5)
    if s.get("body_bias") is not None:
        *_, weight, bias = body.parameters()
        nn.init.zeros_(weight)
        nn.init.zeros_(bias)
    body.requires_grad_(bool(s.get("thaw")))
    model = nn.Sequential(body, head)
    optimizer = s.optimizer([parameter for parameter in model.parameters() if parameter.requires_grad])
    labels = s.labels(data.y)
    s.skill(lambda: accuracy(model, data.test_x, data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(labels), (48,))
        outputs = model(s.corrupt(data.x[index], step))
        if s.get("detached_head"):  # the optimizer trains a head that the loss does not use well
            outputs = outputs.detach() + 0.0 * outputs
        return F.cross_entropy(outputs, labels[index])

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "wine",
    blow_up("branch-not-taken", trap=("1", "where", 90)),
    blow_up("rate-too-high", optimizer="sgd", lr=300.0),
    blow_up("summed-parts", optimizer="sgd", lr=1.0, accumulate=8, summed_parts=True, loss_factor=32.0, depth=3),
    signal("sigmoid-depth", activation="sigmoid", depth=8, optimizer="sgd", lr=0.05),
    other("rate-drops-to-zero", drop=(3, 0.0), lr=1e-4),
    other("softmax-twice", softmax_twice=True, lr=1e-4),
    lookalike("gradients-vanish-solved", steps=600, lr=0.02),
    lookalike("accumulated", accumulate=4, batch=8),
    lookalike("negative", offset=-3.0),
    min_skill=0.6,
    variants=({"width": 32, "lr": 0.01}, {"width": 64, "lr": 0.05, "optimizer": "adagrad"}),
    steps=200,
    depth=1,
    activation="relu",
)
def wine_classes(s: Session) -> None:
    """Classify a small table."""
    data = table("wine")
    model = s.make(stack(13, s["width"], s["depth"], 3, s["activation"]))
    optimizer = s.optimizer(model.parameters())
    s.skill(lambda: accuracy(model, data.test_x * s.get("inputs_factor", 1.0), data.test_y))

    def loss_at(step: int) -> Tensor:
        x, y = data.draw(s.batch)
        loss: Tensor = F.cross_entropy(s.logits(model(s.corrupt(x, step))), y) + s.get("offset", 0.0)
        return loss

    s.fit(model, optimizer, loss_at)
