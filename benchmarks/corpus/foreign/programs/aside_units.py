"""Sparse vectors, spikes, margins, irreducible noise, teachers and equations (foreign-aside)."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.corpus.foreign.cases import Programs, blow_up, irreducible, lookalike, other, signal
from benchmarks.corpus.foreign.session import Session
from benchmarks.corpus.foreign.tasks import accuracy, clusters, digits, r2, table, teacher

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
    "sparse",
    blow_up("rate-jump", jump=(150, 1e5), optimizer="sgd", lr=20.0, sparse=False),
    blow_up("log-of-zero", naive=True, factor=1e3),
    other("no-rate", lr=1e-10),
    irreducible("shuffled-pairs", shuffled=True),
    signal("zero-vectors", zero_both=True),
    lookalike("dense", sparse=False),
    lookalike("many-others", others=10),
    min_skill=0.3,
    variants=({"width": 12, "lr": 0.03, "words": 80}, {"width": 16, "lr": 0.02, "words": 120}),
    steps=300,
    batch=128,
    sparse=True,
    others=5,
)
def skipped_words(s: Session) -> None:
    """Learn word vectors from pairs, with sparse gradients and sampled negatives (Mikolov et al. 2013)."""
    words, groups = s["words"], 8
    group = torch.arange(words) % groups
    sparse = bool(s["sparse"])

    class Vectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.word = nn.Embedding(words, s["width"], sparse=sparse)
            self.context = nn.Embedding(words, s["width"], sparse=sparse)
            nn.init.normal_(self.word.weight, 0, 0.1)
            nn.init.normal_(self.context.weight, 0, 0.1)
            if s.get("zero_both"):
                nn.init.zeros_(self.word.weight)
                nn.init.zeros_(self.context.weight)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            loss: Tensor = s.get("factor", 1.0) * (self.word(a) * self.context(b)).sum(-1)
            return loss

    model = s.make(Vectors())
    if sparse:
        optimizer: torch.optim.Optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=s["lr"])
    else:
        optimizer = s.optimizer(model.parameters())

    def skill() -> float:
        first, second = model.parameters()
        scores = first @ second.T
        same = group[:, None] == group
        return 2 * float((scores[same][:, None] > scores[~same][None, :400]).float().mean()) - 1

    s.skill(skill)

    def loss_at(_: int) -> Tensor:
        a = torch.randint(words, (s.batch,))
        b = (a + groups * torch.randint(words // groups, (s.batch,))) % (words - words % groups)
        b = torch.where(group[a] == group[b], b, a)
        if s.get("shuffled"):
            b = torch.randint(words, (s.batch,))
        wrong = torch.randint(words, (s.batch, s["others"]))
        if s.get("naive"):
            near, far = model(a, b).sigmoid().log(), (1 - model(a[:, None], wrong).sigmoid()).log()
        else:
            near, far = F.logsigmoid(model(a, b)), F.logsigmoid(-model(a[:, None], wrong))
        loss: Tensor = -(near.mean() + far.sum(1).mean())
        return loss

    s.fit(model, optimizer, loss_at)


class Spike(torch.autograd.Function):
    """A step function whose backward pass is that of a steep sigmoid (surrogate gradient)."""

    sharpness = 4.0

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, voltage: Tensor, sharpness: float) -> Tensor:
        """Return 1 where the voltage is above 0."""
        context.save_for_backward(voltage)
        context.sharpness = sharpness  # type: ignore[attr-defined]
        return (voltage > 0).float()

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient through the steep sigmoid."""
        (voltage,) = context.saved_tensors  # type: ignore[attr-defined]
        sharpness: float = context.sharpness  # type: ignore[attr-defined]
        return gradient / (1 + sharpness * voltage.abs()).pow(2), None


@PROGRAMS.add(
    "spikes",
    blow_up("mild-jump", jump=(110, 60.0)),
    blow_up("root-inside", trap=("first", "root", 85)),
    blow_up("rate-too-high", optimizer="sgd", lr=1e6),
    blow_up("missing-pixel", nan_at=80),
    signal("silent-neurons", gain=0.01, optimizer="sgd", lr=0.01),
    signal("sharp-surrogate", sharpness=1e7, optimizer="sgd", lr=0.02),
    irreducible("shuffled-labels", shuffled=True),
    lookalike("soft-surrogate", sharpness=2.0),
    lookalike("warm-up", warmup=40),
    min_skill=0.4,
    variants=({"width": 64, "lr": 5e-3}, {"width": 48, "lr": 8e-3, "optimizer": "nadam"}),
    steps=180,
    sharpness=5.0,
)
def spiking_images(s: Session) -> None:
    """Classify images by neurons that spike over six steps of time."""
    data = digits()
    sharpness = s["sharpness"]

    class Spiking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, s["width"]), nn.Linear(s["width"], s["width"])
            self.out = nn.Linear(s["width"], 10)

        def forward(self, x: Tensor) -> Tensor:
            v1 = v2 = torch.zeros(len(x), s["width"])
            total = torch.zeros(len(x), 10)
            current = 3.0 * self.first(x)
            for _ in range(6):
                v1 = 0.8 * v1 + current
                s1 = Spike.apply(v1 - 1.0, sharpness)  # type: ignore[no-untyped-call]
                v1 = v1 * (1 - s1.detach())
                v2 = 0.8 * v2 + 3.0 * self.second(s1)
                s2 = Spike.apply(v2 - 1.0, sharpness)  # type: ignore[no-untyped-call]
                v2 = v2 * (1 - s2.detach())
                total = total + self.out(s2)
            return total / 6

    model = s.make(Spiking())
    optimizer = s.optimizer(model.parameters())
    labels = s.labels(data.y)
    s.skill(lambda: accuracy(model, data.test_x, data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(labels), (32,))
        return F.cross_entropy(model(s.corrupt(data.x[index], step)), labels[index])

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "spikes",
    blow_up("mild-jump", jump=(190, 60.0)),
    blow_up("branch-not-taken", trap=("1", "where", 140)),
    blow_up("rate-jump", jump=(200, 1e9), optimizer="sgd", lr=0.5, mse=True, linear_out=True),
    blow_up("missing-value", nan_at=150),
    signal("nine-sigmoids", depth=9, optimizer="sgd", lr=0.1),
    signal("twelve-sigmoids", depth=12, lr=5e-4),
    irreducible("shuffled-labels", shuffled=True, lr=1e-3),
    lookalike("slow-start", optimizer="sgd", lr=2.0, steps=500, depth=1),
    lookalike("small-rate", lr=3e-3, steps=400),
    min_skill=0.5,
    variants=({"width": 32, "lr": 0.01}, {"width": 48, "lr": 8e-3, "optimizer": "rmsprop"}),
    steps=280,
    depth=2,
)
def sigmoid_stack(s: Session) -> None:
    """Classify clusters by layers of sigmoids."""
    data = clusters(3, 8)
    model = s.make(net(8, s["width"], 3, s["depth"], nn.Sigmoid))
    optimizer = s.optimizer(model.parameters(), rate=0.4 if s.get("optimizer") == "rmsprop" else 1.0)
    labels = s.labels(data.y)
    s.skill(lambda: accuracy(model, data.test_x, data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(labels), (48,))
        outputs = model(s.corrupt(data.x[index], step))
        if s.get("mse"):
            return F.mse_loss(outputs, F.one_hot(labels[index], 3).float())
        return F.cross_entropy(outputs, labels[index])

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "margins",
    blow_up("root-inside", trap=("1", "root", 70)),
    blow_up("squared-hinge-rate", squared=True, optimizer="sgd", lr=30.0, momentum=0.9),
    blow_up("missing-value", nan_at=90),
    blow_up("large-inputs", inputs_factor=1e5, squared=True, optimizer="sgd", lr=0.5),
    signal("dead-relu", bias=-25.0),
    other("no-rate", lr=1e-9),
    irreducible("shuffled-labels", shuffled=True),
    lookalike("satisfied", steps=450, lr=0.02, optimizer="adam"),
    lookalike("satisfied-descent", steps=500, optimizer="sgd", lr=0.2, momentum=0.9),
    lookalike("squared", squared=True),
    min_skill=0.6,
    variants=(
        {"width": 32, "lr": 0.01, "table": "wine"},
        {"width": 48, "lr": 5e-3, "table": "breast_cancer"},
        {"width": 24, "lr": 0.02, "table": "iris"},
    ),
    steps=180,
)
def margin_classes(s: Session) -> None:
    """Classify a table by margins; the gradients are zero where every margin is satisfied."""
    data = table(s["table"])
    classes = int(data.y.max()) + 1
    model = s.make(net(data.x.shape[1], s["width"], classes))
    if s.get("bias") is not None:
        _freeze_last_bias(model)
    optimizer = s.optimizer([parameter for parameter in model.parameters() if parameter.requires_grad])
    labels = s.labels(data.y)
    s.skill(lambda: accuracy(model, data.test_x * s.get("inputs_factor", 1.0), data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(labels), (32,))
        outputs = model(s.corrupt(data.x[index], step))
        return F.multi_margin_loss(outputs, labels[index], p=2 if s.get("squared") else 1)

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "irreducible",
    blow_up("mild-jump", jump=(150, 60.0)),
    blow_up("branch-not-taken", trap=("1", "where", 110)),
    blow_up("rate-jump", jump=(150, 1e3), optimizer="sgd", lr=0.05, squared=True, momentum=0.9),
    blow_up("heavy-tail", tail_at=120, squared=True, optimizer="sgd", lr=0.1),
    irreducible("random-targets", shuffled=True),
    other("no-rate", lr=1e-9),
    signal("tiny-weights", gain=0.005, depth=5, optimizer="sgd", lr=0.02),
    lookalike("mostly-noise", noise=2.0, steps=400),
    lookalike("noise-and-outliers", noise=0.7, outliers=0.02),
    lookalike("noise-and-small-batches", noise=1.0, batch=4, lr=1e-3, steps=600),
    min_skill=0.35,
    variants=(
        {"width": 32, "lr": 4e-3},
        {"width": 24, "lr": 6e-3, "optimizer": "nadam"},
        {"width": 48, "lr": 2e-3, "optimizer": "adamw"},
    ),
    steps=260,
    depth=2,
    noise=1.0,
    batch=64,
)
def noisy_targets(s: Session) -> None:
    """Fit a function whose targets are mostly noise, by absolute errors."""
    data = teacher(5, 4000, 6)
    model = s.make(net(5, s["width"], 1, s["depth"], nn.SiLU))
    optimizer = s.optimizer(model.parameters())
    noisy = data.y + s["noise"] * torch.randn_like(data.y)
    noisy = noisy + (torch.rand_like(noisy) < s.get("outliers", 0.0)) * 15.0
    targets = s.labels(noisy)
    s.skill(lambda: r2(model(data.test_x), data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(targets), (s.batch,))
        target = targets[index] * (1e25 if s.is_at("tail_at", step) else 1.0)
        outputs = model(s.corrupt(data.x[index], step))
        return F.mse_loss(outputs, target) if s.get("squared") else F.l1_loss(outputs, target)

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "teachers",
    blow_up("mild-jump", jump=(120, 60.0)),
    blow_up("root-inside", trap=("1", "root", 95)),
    blow_up("log-of-zero", naive=True, factor=1e4),
    blow_up("rate-too-high", optimizer="sgd", lr=3e3, momentum=0.9),
    signal("dead-relu", bias=-20.0),
    other("no-rate", lr=1e-9),
    irreducible("wrong-teacher", shuffled=True),
    lookalike("hot", heat=4.0, steps=300),
    lookalike("converged", steps=500, lr=5e-3),
    min_skill=0.45,
    variants=({"width": 32, "lr": 4e-3}, {"width": 48, "lr": 3e-3, "optimizer": "adamw"}, {"width": 64, "lr": 2e-3}),
    steps=220,
    heat=1.0,
)
def distilled_images(s: Session) -> None:
    """Learn the outputs of a trained network by the Kullback-Leibler divergence (Hinton et al. 2015)."""
    data, heat = digits(), s["heat"]
    teacher_net = net(64, 64, 10)
    first = torch.optim.Adam(teacher_net.parameters(), lr=5e-3)
    for _ in range(150):
        x, y = data.draw(64)
        first.zero_grad()
        F.cross_entropy(teacher_net(x), y).backward()  # type: ignore[no-untyped-call]
        first.step()
    teacher_net.requires_grad_(False)
    model = s.make(net(64, s["width"], 10))
    if s.get("bias") is not None:
        _freeze_last_bias(model)
    optimizer = s.optimizer([parameter for parameter in model.parameters() if parameter.requires_grad])
    s.skill(lambda: accuracy(model, data.test_x, data.test_y))

    def loss_at(step: int) -> Tensor:
        x, _ = data.draw(48)
        wanted = (teacher_net(x) / heat).softmax(1)
        wanted = wanted[torch.randperm(len(wanted))] if s.get("shuffled") else wanted
        outputs = model(s.corrupt(x, step)) / heat
        if s.get("naive"):
            loss: Tensor = (wanted * (wanted.log() - (s["factor"] * outputs).softmax(1).log())).sum(1).mean()
            return loss
        return F.kl_div(outputs.log_softmax(1), wanted, reduction="batchmean")

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "equations",
    blow_up("branch-not-taken", trap=("lift", "where", 80)),
    blow_up("stiff", field_gain=6.0, solver_steps=20, optimizer="sgd", lr=0.5),
    blow_up("rate-jump", jump=(110, 1e4), optimizer="sgd", lr=0.05),
    blow_up("missing-value", nan_at=100),
    signal("tiny-field", gain=0.001, optimizer="sgd", lr=0.005),
    other("no-rate", lr=1e-9),
    irreducible("shuffled-labels", shuffled=True),
    lookalike("finer", solver_steps=12),
    lookalike("clipped", clip=0.3),
    min_skill=0.5,
    variants=({"width": 24, "lr": 0.01}, {"width": 32, "lr": 8e-3, "optimizer": "adamw"}),
    steps=180,
    solver_steps=6,
)
def continuous_depth(s: Session) -> None:
    """Classify two rings by a differential equation that is solved in small steps (Chen et al. 2018)."""
    width = s["width"]

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.out = nn.Linear(2, 6), nn.Linear(6, 2)
            self.field = nn.Sequential(nn.Linear(6, width), nn.Softplus(), nn.Linear(width, 6))

        def forward(self, x: Tensor) -> Tensor:
            state, count = self.lift(x), s["solver_steps"]
            for _ in range(count):
                state = state + 2.0 / count * s.get("field_gain", 1.0) * self.field(state)
            output: Tensor = self.out(state)
            return output

    def rings(count: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(2, (count,))
        angle = 2 * math.pi * torch.rand(count)
        radius = 0.6 + 0.9 * y + 0.1 * torch.randn(count)
        return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1), y

    x, y = rings(1500)
    labels = s.labels(y)
    model = s.make(Field())
    optimizer = s.optimizer(model.parameters())
    test_x, test_y = rings(500)
    s.skill(lambda: accuracy(model, test_x, test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(labels), (64,))
        return F.cross_entropy(model(s.corrupt(x[index], step)), labels[index])

    s.fit(model, optimizer, loss_at)
