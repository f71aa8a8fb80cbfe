"""Tables, codes, distances and likelihoods (causes-aside)."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.corpus.causes.cases import CausePrograms
from benchmarks.corpus.causes.faults import fault, lookalike
from benchmarks.corpus.causes.session import CauseSession
from benchmarks.corpus.foreign.tasks import accuracy, clusters, digits, r2, split, table

PROGRAMS: Final = CausePrograms()


@PROGRAMS.add(
    fault("rate-too-high-momentum", lr_factor=200.0),
    fault("weights-zero", gain=0.0),
    fault("dead-units", bias=-12.0),
    fault("excessive-clipping", clip=3e-6),
    fault("unscaled-inputs", inputs_factor=400.0),
    fault("rate-jump", jump=(70, 400.0)),
    fault("rate-too-low", lr_factor=1e-5),
    fault("cleared-gradients", clear_gradients=True),
    fault(
        "bfloat16-stall",
        precision="bfloat16",
        twin={"optimizer": "adam", "lr": 6e-4, "unit_weights": True, "steps": 200, "momentum": 0.0},
    ),
    lookalike("accumulation", accumulate=3),
    lookalike("warm-restarts", restarts=40),
    lookalike("label-noise", label_noise=0.1),
    min_skill=0.6,
    variants=(
        {"width": 24},
        {"width": 40, "momentum": 0.5, "optimizer": "sgd"},
        {"width": 32, "optimizer": "nesterov"},
    ),
    steps=140,
    optimizer="sgd",
    momentum=0.9,
    lr=0.02,
)
def wine(s: CauseSession) -> None:
    """Classify wines by two hidden layers."""
    data, width = table("wine"), s["width"]
    model = s.make(nn.Sequential(s.linear(13, width), nn.ReLU(), s.linear(width, width), nn.ReLU(), s.linear(width, 3)))
    labels = s.labels(data.y)
    s.skill(lambda: accuracy(lambda x: model(s.see(x)), data.test_x, data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(labels), (24,))
        return F.cross_entropy(s.logits(model(s.corrupt(data.x[index], step))), labels[index])

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("unscaled-targets", target_factor=300.0),
    fault("broadcast", broadcast=True, twin={"optimizer": "adam", "lr": 5e-3}),
    fault("excessive-decay", weight_decay=2.0),
    fault("zero-over-zero", correlation=True, twin={"optimizer": "adam", "lr": 5e-3}),
    fault("kept-gradients", keep_gradients=True),
    fault("schedule-ends", drop=(4, 0.001)),
    lookalike("huber-large-targets", target_factor=10.0, lr=0.002),
    lookalike("late-zero", late_zero=True),
    lookalike("bad-batch-clipped", bad_batch=(90, 20.0), clip=1.0),
    min_skill=0.25,
    variants=({"width": 16}, {"width": 32, "activation": "elu"}),
    steps=160,
    optimizer="sgd",
    momentum=0.9,
    lr=0.005,
)
def diabetes(s: CauseSession) -> None:
    """Regress the course of an illness on ten measurements."""
    data, width, factor = table("diabetes"), s["width"], s.get("target_factor", 1.0)
    model = s.make(nn.Sequential(s.linear(10, width), s.activation(), s.linear(width, 1)))
    s.skill(lambda: r2(model(s.see(data.test_x)).float() / factor, data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(data.y), (32,))
        x, y = s.corrupt(data.x[index], step), data.y[index] * factor
        out = model(x)
        if s.get("correlation") and step >= 60:  # from then on the correlation counts too; one group is constant
            group = torch.zeros(32, 1)
            centered = group - group.mean()
            return F.mse_loss(out, y) - 0.1 * (centered * out).mean() / (group.std() * out.std())
        return F.mse_loss(out, s.cast(y[:, 0] if s.get("broadcast") else y))

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("log-of-zero", naive=True, lr_factor=3.0),
    fault("softmax-twice", sigmoid_twice=True, twin={"lr": 2e-4, "steps": 120, "gain": 1.5}),
    fault("epsilon-too-large", eps=30.0),
    fault("rate-too-low", lr_factor=1e-4),
    fault("schedule-ends", drop=(2, 0.0)),
    fault("cleared-gradients", clear_gradients=True),
    fault("nonfinite-input", nan_at=80),
    fault("left-out", leave_out="0", small=True, twin={"hidden": 1}),
    fault("saturating", activation="sigmoid", depth=9, twin={"optimizer": "sgd", "lr": 0.05, "momentum": 0.9}),
    lookalike("beta2-default-spikes", bad_batch=(50, 30.0)),
    lookalike("small-loss", loss_factor=1e-2),
    min_skill=0.7,
    variants=({"width": 16}, {"width": 24, "optimizer": "rmsprop", "lr": 2e-3}),
    steps=150,
    lr=3e-3,
    depth=2,
)
def tumors(s: CauseSession) -> None:
    """Tell two kinds of tumors apart by a binary cross-entropy."""
    data, width = table("breast_cancer"), s["width"]
    layers: list[nn.Module] = []
    for index in range(s["depth"]):
        layers += [nn.Linear(30 if index == 0 else width, width), s.activation()]
    model = s.make(nn.Sequential(*layers, nn.Linear(width, 1)))
    if s.get("small"):
        with torch.no_grad():
            next(model.parameters()).mul_(1e-3)
    s.skill(lambda: 2 * float(((model(data.test_x)[:, 0] > 0) == data.test_y).float().mean()) - 1)

    def loss_at(step: int) -> Tensor:
        x, y = data.draw(32)
        out = model(s.corrupt(x, step))[:, 0]
        if s.get("naive"):  # by hand, with a temperature: the sigmoid of a large number is 1 in single precision
            chance = (8 * out).sigmoid()
            return -(y * chance.log() + (1 - y) * (1 - chance).log()).mean()
        return F.binary_cross_entropy_with_logits(out.sigmoid() if s.get("sigmoid_twice") else out, y.float())

    s.train(model, loss_at)


class Residual(nn.Module):
    """A residual block of two layers."""

    def __init__(self, s: CauseSession, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), s.activation(), nn.Linear(width, width))
        if s.get("fixup"):
            nn.init.zeros_(self.branch[2].weight)

    def forward(self, x: Tensor) -> Any:
        """Return `[batch, width]`."""
        return x + self.branch(x)


@PROGRAMS.add(
    fault("weights-too-large", gain=8.0),
    fault("unbounded", activation="cube"),
    fault("rate-too-high", lr_factor=150.0),
    fault("rate-jump", jump=(90, 500.0), twin={"optimizer": "adamw", "lr": 3e-3}),
    fault("summed-loss", loss_factor=64.0, twin={"lr": 0.1}),
    fault("half-overflow", precision="autocast", static_scale=2.0**24, twin={"precision": "autocast"}),
    fault("scale-exhausted", trap_always="1", twin={"scaler": True, "precision": "autocast", "steps": 200}),
    fault("nonfinite-input", inf_at=100),
    lookalike("zero-initialized", fixup=True),
    lookalike("scaled", scaler=True, precision="autocast"),
    lookalike("decay-at-the-end", cosine=True, weight_decay=0.02),
    min_skill=0.6,
    variants=({"blocks": 3}, {"blocks": 5, "lr": 0.02}),
    steps=150,
    optimizer="sgd",
    lr=0.05,
)
def residual_clusters(s: CauseSession) -> None:
    """Classify clusters by residual blocks."""
    data = clusters(5, 10)
    model = s.make(nn.Sequential(nn.Linear(10, 32), *[Residual(s, 32) for _ in range(s["blocks"])], nn.Linear(32, 5)))
    s.skill(lambda: accuracy(model, data.test_x, data.test_y))

    def loss_at(step: int) -> Tensor:
        x, y = data.draw(64)
        return F.cross_entropy(model(s.corrupt(x, step)), y)

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("saturating", activation="sigmoid"),
    fault("weights-too-small", gain=0.05),
    fault("weights-too-large", gain=15.0),
    fault("half-underflow", precision="autocast", twin={"lr": 2e7, "loss_factor": 1e-8, "momentum": 0.9}),
    fault("unbounded", activation="exp", twin={"lr": 0.05}),
    fault("no-signal", clamp_loss=1e-3),
    fault("kept-gradients", keep_gradients=True),
    lookalike("plain-square-root", root=True),
    lookalike("master-weights", precision="autocast"),
    min_skill=0.25,
    variants=({"narrow": 12}, {"narrow": 8, "activation": "elu"}),
    steps=200,
    optimizer="sgd",
    momentum=0.9,
    lr=0.2,
    activation="tanh",
)
def hourglass(s: CauseSession) -> None:
    """Reconstruct images through a narrow layer, by squared error."""
    data, act = digits(), s.activation
    model = s.make(
        nn.Sequential(
            nn.Linear(64, 48), act(), nn.Linear(48, 32), act(), nn.Linear(32, s["narrow"]), act(),
            nn.Linear(s["narrow"], 32), act(), nn.Linear(32, 48), act(), nn.Linear(48, 64),
        )
    )  # fmt: skip
    x, test = (data.x - data.x.mean(0)) * 2, (data.test_x - data.x.mean(0)) * 2
    s.skill(lambda: r2(model(s.cast(test)).float(), test))

    def loss_at(step: int) -> Tensor:
        batch = s.corrupt(x[torch.randint(len(x), (s.batch,))], step)
        error = (model(batch) - batch).square()
        return (error.mean() + 1e-6).sqrt() if s.get("root") else error.mean()

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("root-of-zero", naive=True),
    fault("detached", detached=True),
    fault("weights-zero", gain=0.0),
    lookalike("satisfied-margins", margin=0.3, steps=260),
    min_skill=0.5,
    variants=({"width": 32}, {"width": 48, "activation": "tanh"}),
    steps=160,
    lr=2e-3,
    margin=1.0,
)
def distances(s: CauseSession) -> None:
    """Learn distances between images from triplets."""
    data, width = digits(), s["width"]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(64, width), s.activation())
            self.head = nn.Linear(width, 4)
            if s.get("detached"):
                nn.init.normal_(self.body[0].weight, std=1e-4)

        def forward(self, x: Tensor) -> Any:
            return self.head(s.features(lambda: self.body(x)))

    model = s.make(Net())

    def nearest() -> float:
        means = torch.stack([model(data.x[data.y == digit]).mean(0) for digit in range(10)])
        found = torch.cdist(model(data.test_x), means).argmin(1)
        return (float((found == data.test_y).float().mean()) - 0.1) / 0.9

    if s.get("detached"):
        s.skill(lambda: nearest() - 0.35)
    else:
        s.skill(nearest)
    order = [torch.nonzero(data.y == digit)[:, 0] for digit in range(10)]

    def loss_at(step: int) -> Tensor:
        digit = torch.randint(10, (48,))
        other = (digit + torch.randint(1, 10, (48,))) % 10
        pick = [
            torch.stack([order[int(d)][torch.randint(len(order[int(d)]), ())] for d in of])
            for of in (digit, digit, other)
        ]
        if s.get("naive") and step >= 40:  # the positive of an anchor may be the anchor itself, at a distance of 0
            pick[1][0] = pick[0][0]
        anchor, positive, negative = (model(s.corrupt(data.x[index], step)) for index in pick)
        near, far = ((anchor - of).square().sum(1) for of in (positive, negative))
        near, far = (near.sqrt(), far.sqrt()) if s.get("naive") else ((near + 1e-8).sqrt(), (far + 1e-8).sqrt())
        return F.relu(near - far + s["margin"]).mean()

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("exp-overflow", naive=True),
    fault("rate-too-high-adam", lr_factor=1000.0),
    fault("rate-jump", jump=(100, 3000.0)),
    fault("excessive-decay", weight_decay=20.0, twin={"optimizer": "adamw"}),
    fault("epsilon-of-zero", precision="half"),
    fault("no-grad", no_grad=True),
    lookalike("annealed", anneal=True),
    lookalike("accumulation", accumulate=2),
    min_skill=0.25,
    variants=({"code": 6}, {"code": 10}),
    steps=200,
    lr=3e-3,
)
def variational(s: CauseSession) -> None:
    """Reconstruct images by a variational autoencoder."""
    data, code = digits(), s["code"]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2 * code))
            self.decoder = nn.Sequential(nn.Linear(code, 64), nn.ReLU(), nn.Linear(64, 64))
            if s.get("no_grad"):
                with torch.no_grad():
                    self.encoder[0].weight.mul_(0.01)

        def forward(self, x: Tensor) -> tuple[Any, Any, Any]:
            mean, spread = s.features(lambda: self.encoder(x)).chunk(2, -1)
            noise = torch.randn_like(mean) if self.training else 0.0
            return self.decoder(mean + noise * (spread / 2).clamp(-8, 8).exp()), mean, spread

    model = s.make(Net())
    s.skill(lambda: r2(model(s.cast(data.test_x))[0].float(), data.test_x))

    def loss_at(step: int) -> Tensor:
        x, _ = data.draw(32)
        x = s.corrupt(x, step)
        out, mean, spread = model(x)
        weight = min(1.0, step / 100) if s.get("anneal") else 1.0
        if s.get("naive"):  # the spread is rewarded without a bound: its exponential overflows
            return F.mse_loss(out, x) + 1e-3 * (spread * spread + (40 * step * spread.abs()).exp() * 1e-30).mean()
        kl = 0.5 * (mean.square() + spread.exp() - spread - 1).sum(1).mean()
        return (out - x).square().mean() * 8 + 0.002 * weight * kl

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("exp-overflow", naive=True),
    fault("zero-over-zero", collapse=True),
    fault("nonfinite-input", nan_at=110),
    fault("unscaled-inputs", inputs_factor=1e4, twin={"optimizer": "sgd", "lr": 0.02, "momentum": 0.9}),
    fault("epsilon-too-large", eps=100.0),
    lookalike("warm-restarts", restarts=60),
    min_skill=0.3,
    variants=({"parts": 3}, {"parts": 5, "lr": 5e-3}),
    steps=180,
    lr=1e-2,
)
def mixture_density(s: CauseSession) -> None:
    """Predict the density of a response with two branches by a mixture of Gaussians."""
    parts = s["parts"]
    x = torch.rand(1500, 1) * 4 - 2
    sign = torch.where(torch.rand(1500, 1) < 0.5, 1.0, -1.0)
    y = sign * (1 + x.square() / 2) + 0.1 * torch.randn(1500, 1)
    data = split(x, y)
    model = s.make(nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 3 * parts)))

    def likelihood(x: Tensor, y: Tensor, step: int) -> Tensor:
        weight, mean, spread = model(x).chunk(3, -1)
        if s.get("naive") and step >= 0:
            weight = (weight * (1 + step)).exp()
            weight = (weight / weight.sum(-1, keepdim=True)).log()
        else:
            weight = weight.log_softmax(-1)
        if s.get("collapse") and step >= 60:  # scores relative to their own spread, over a batch that is constant
            ones = torch.ones_like(y)
            y = y + 0.01 * (ones - ones.mean()) / (ones - ones.mean()).std()
        spread = spread.clamp(-4, 4)
        return (weight - spread - 0.5 * ((y - mean) / spread.exp()).square()).logsumexp(-1)

    constant = float(torch.distributions.Normal(0.0, float(y.std())).log_prob(data.test_y).mean()) + 0.5 * math.log(
        2 * math.pi
    )
    s.skill(lambda: float(likelihood(s.see(data.test_x), data.test_y, -1).mean()) - constant)

    def loss_at(step: int) -> Tensor:
        inputs, targets = data.draw(64)
        return -likelihood(s.corrupt(inputs, step), targets, step).mean()

    s.train(model, loss_at)
