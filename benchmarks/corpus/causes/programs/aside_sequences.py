"""Sequences: recurrent cells, convolutions over time, attention (causes-aside)."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.corpus.causes.cases import CausePrograms
from benchmarks.corpus.causes.faults import fault, lookalike
from benchmarks.corpus.causes.session import CauseSession, recurrent_gain
from benchmarks.corpus.foreign.tasks import accuracy, digits, nats_skill, r2, text, windows

PROGRAMS: Final = CausePrograms()


@PROGRAMS.add(
    fault("rate-too-high-adam", lr_factor=200.0),
    fault(
        "kept-gradients",
        keep_gradients=True,
        twin={"optimizer": "sgd", "lr": 1.0, "momentum": 0.9, "clip": 1.0},
        clip=None,
    ),
    fault("excessive-clipping", clip=1e-6, twin={"optimizer": "sgd", "lr": 1.0, "momentum": 0.9, "clip": 1.0}),
    fault("scale-exhausted", nan_loss=True, twin={"scaler": True, "steps": 200}),
    fault("left-out", leave_out="rnn", quiet=True, twin={"steps": 151}),
    fault("rate-jump", jump=(80, 500.0)),
    fault("epsilon-too-large", eps=10.0),
    fault("stale-moment", beta2=0.9999, twin={"beta2": 0.9, "bad_loss": (1, 1e4), "steps": 220}),
    lookalike("decay-and-clip", clip=0.5, cosine=True),
    lookalike("scaled", scaler=True),
    min_skill=0.12,
    variants=({"hidden": 48}, {"hidden": 64, "clip": 1.0}),
    steps=150,
    lr=1e-2,
    batch=16,
)
def letters(s: CauseSession) -> None:
    """Predict the next character of a text by a GRU."""
    ids, size = text()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(size, 24)
            self.rnn = nn.GRU(24, s["hidden"], batch_first=True)
            self.head = nn.Linear(s["hidden"], size)
            if s.get("quiet"):
                with torch.no_grad():
                    for parameter in self.rnn.parameters():
                        parameter.mul_(0.01)

        def forward(self, ids: Tensor) -> Any:
            return self.head(self.rnn(self.embedding(ids))[0])

    model = s.make(Net())
    counts = torch.bincount(ids, minlength=size).double() + 1e-9
    share = counts / counts.sum()
    constant = float(-(share * share.log()).sum())
    test = windows(ids[-20000:], 40, 24)

    def loss_of(batch: Tensor) -> Tensor:
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    s.skill(lambda: nats_skill(float(loss_of(test)), constant))
    s.train(model, lambda _: loss_of(windows(ids[:-20000], s.batch, 24)))


@PROGRAMS.add(
    fault("expanding-recurrence", recurrent=3.0),
    fault("expanding-recurrence", recurrent=2.0, name="milder", twin={"length": 30}),
    fault("contracting-recurrence", recurrent=0.3),
    fault("contracting-recurrence", recurrent=0.5, name="milder", twin={"length": 30}),
    fault("nonfinite-input", nan_at=100),
    fault("rate-too-high-momentum", lr_factor=200.0),
    lookalike("frozen-input-weights", freeze="rnn.weight_ih"),
    lookalike("clipped", clip=1.0),
    min_skill=0.5,
    variants=({"hidden": 24}, {"hidden": 40, "length": 20}),
    steps=220,
    optimizer="sgd",
    momentum=0.9,
    lr=0.02,
    recurrent=1.0,
    length=24,
)
def first_sign(s: CauseSession) -> None:
    """Tell in which of three places of its first step a sequence was marked."""
    length = s["length"]
    y = torch.randint(3, (1600,))
    x = 0.1 * torch.randn(1600, length, 3)
    x[:, 0] += 1.5 * F.one_hot(y, 3)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, s["hidden"], batch_first=True)
            self.head = nn.Linear(s["hidden"], 3)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.rnn(x)[1][0])

    model = Net()
    recurrent_gain(model, s["recurrent"])
    s.make(model)
    s.skill(lambda: accuracy(model, x[1300:], y[1300:]))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(1300, (32,))
        return F.cross_entropy(model(s.corrupt(x[index], step)), y[index])

    s.train(model, loss_at)


class Cell(nn.Module):
    """A recurrent layer that is written as a loop over its time steps."""

    def __init__(self, inputs: int, hidden: int, factor: float) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden, bias=False)
        nn.init.orthogonal_(self.outer.weight)
        with torch.no_grad():
            self.outer.weight.mul_(factor)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last state."""
        state = torch.zeros(len(x), self.outer.in_features, dtype=x.dtype)
        for step in range(x.shape[1]):
            state = torch.tanh(self.inner(x[:, step]) + self.outer(state))
        return state


@PROGRAMS.add(
    fault("expanding-recurrence", recurrent=4.0),
    fault("contracting-recurrence", recurrent=0.2),
    fault("unscaled-targets", target_factor=500.0, twin={"optimizer": "sgd", "lr": 0.02, "momentum": 0.9}),
    fault("rate-too-high-adam", lr_factor=500.0),
    fault("broadcast", broadcast=True),
    lookalike("bad-batch-clipped", bad_batch=(80, 20.0), clip=1.0),
    min_skill=0.4,
    variants=({"hidden": 24}, {"hidden": 32, "length": 18}),
    steps=220,
    lr=3e-3,
    recurrent=1.0,
    length=14,
)
def early_value(s: CauseSession) -> None:
    """Return a number that stood at the second step of a sequence."""
    length, factor = s["length"], s.get("target_factor", 1.0)
    x = torch.randn(1500, length, 2) * torch.tensor([1.0, 0.0])
    x[:, 1, 1] = 1.0
    x[:, 2:, 0] *= 0.2
    y = x[:, 1, :1].clone()
    cell, head = Cell(2, s["hidden"], s["recurrent"]), nn.Linear(s["hidden"], 1)
    model = s.make(nn.Sequential(cell, head))
    s.skill(lambda: r2(model(x[1200:]) / factor, y[1200:]))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(1200, (32,))
        target = y[index] * factor
        return F.mse_loss(model(s.corrupt(x[index], step)), target[:, 0] if s.get("broadcast") else target)

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("forgetting", forget=-5.0),
    fault("forgetting", forget=-3.0, name="milder", twin={"length": 20}),
    fault("no-signal", mask_loss=True),
    lookalike("long-and-remembered", forget=5.0),
    min_skill=0.5,
    variants=({"hidden": 20}, {"hidden": 32, "clip": 1.0}),
    steps=200,
    lr=2e-2,
    forget=3.0,
    length=24,
)
def key_of_melody(s: CauseSession) -> None:
    """Recall by an LSTM the first of many notes."""
    length, hidden = s["length"], s["hidden"]
    notes = torch.randint(4, 8, (1500, length))
    notes[:, 0] = torch.randint(4, (1500,))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, hidden, batch_first=True)
            self.head = nn.Linear(hidden, 4)
            with torch.no_grad():
                self.lstm.bias_ih_l0[hidden : 2 * hidden] = s["forget"]
                self.lstm.bias_hh_l0[hidden : 2 * hidden] = 0.0

        def forward(self, x: Tensor) -> Any:
            return self.head(self.lstm(x)[0][:, -1])

    model = s.make(Net())
    test = F.one_hot(notes[1200:], 8).float()
    s.skill(lambda: accuracy(lambda x: model(s.see(x)), test, notes[1200:, 0]))

    def loss_at(step: int) -> Tensor:
        batch = notes[torch.randint(1200, (32,))]
        return F.cross_entropy(model(s.corrupt(F.one_hot(batch, 8).float(), step)), batch[:, 0])

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("forgetting", forget=-5.0),
    fault("rate-too-high-adam", lr_factor=500.0),
    fault("nonfinite-input", inf_at=90),
    lookalike("warm-restarts", restarts=60),
    min_skill=0.4,
    variants=({"hidden": 24}, {"hidden": 32, "lr": 1e-2}),
    steps=240,
    lr=2e-2,
    forget=4.0,
    length=20,
)
def start_value(s: CauseSession) -> None:
    """Return by a GRU the number at the start of a sequence."""
    length, hidden = s["length"], s["hidden"]
    x = 0.2 * torch.randn(1500, length, 1)
    x[:, 0] = torch.rand(1500, 1) * 2 - 1

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(1, hidden, batch_first=True)
            self.head = nn.Linear(hidden, 1)
            with torch.no_grad():  # the update gate of torch's GRU keeps the state where it is 1
                self.gru.bias_ih_l0[hidden : 2 * hidden] = s["forget"] if s["forget"] < 0 else s["forget"] / 2
                self.gru.bias_hh_l0[hidden : 2 * hidden] = 0.0

        def forward(self, x: Tensor) -> Any:
            return self.head(self.gru(x)[0][:, -1])

    model = s.make(Net())
    s.skill(lambda: r2(model(x[1200:]), x[1200:, 0]))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(1200, (48,))
        return F.mse_loss(model(s.corrupt(x[index], step)), x[index][:, 0])

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("dead-units", bias=-15.0),
    fault("saturating", activation="sigmoid", extra=8),
    fault("no-grad", no_grad=True),
    fault("half-overflow", precision="autocast", static_scale=2.0**24, twin={"precision": "autocast"}),
    fault(
        "half-underflow",
        precision="autocast",
        twin={"optimizer": "sgd", "lr": 5e6, "momentum": 0.9, "loss_factor": 1e-8},
    ),
    fault("summed-loss", loss_factor=32.0, twin={"optimizer": "sgd", "lr": 0.05, "momentum": 0.9}),
    fault(
        "no-normalization",
        norm=None,
        twin={"extra": 10, "norm": "batch", "optimizer": "sgd", "lr": 0.05, "momentum": 0.9},
    ),
    fault("softmax-twice", softmax_twice=True, twin={"optimizer": "sgd", "lr": 0.02, "momentum": 0.8}),
    lookalike("gradient-noise", batch=6, steps=250),
    lookalike("frozen", freeze="body.0"),
    min_skill=0.5,
    variants=({"channels": 12}, {"channels": 16, "lr": 5e-3}),
    steps=150,
    lr=1e-2,
    extra=1,
)
def waves(s: CauseSession) -> None:
    """Tell sines, triangles and squares apart by convolutions over time."""
    kinds, phase, rate = torch.randint(3, (1200,)), torch.rand(1200, 1) * 6.3, 2 + torch.rand(1200, 1)
    angle = phase + rate * torch.linspace(0, 6.3, 32)
    shapes = torch.stack([angle.sin(), angle.sin().asin() * 2 / math.pi, angle.sin().sign()])
    x = shapes[kinds, torch.arange(1200)] + 0.05 * torch.randn(1200, 32)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        norm: list[nn.Module] = [nn.BatchNorm1d(outputs)] if s.get("norm") == "batch" else []
        return [nn.Conv1d(inputs, outputs, 5, padding=2), *norm, s.activation()]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            size = s["channels"]
            middle = [part for _ in range(s["extra"]) for part in block(size, size)]
            self.body = nn.Sequential(*block(1, size), *middle, nn.AdaptiveAvgPool1d(4), nn.Flatten())
            self.head = nn.Linear(4 * size, 3)

        def forward(self, x: Tensor) -> Any:
            return self.head(s.features(lambda: self.body(x[:, None])))

    model = s.make(Net())
    if s.get("no_grad"):
        with torch.no_grad():
            for parameter in model.body.parameters():
                parameter.mul_(0.01)
    s.skill(lambda: accuracy(model, x[1000:], kinds[1000:]))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(1000, (s.batch,))
        return F.cross_entropy(s.logits(model(s.corrupt(x[index], step))), kinds[index])

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("weights-zero", gain=0.0),
    fault("epsilon-too-large", eps=30.0),
    fault("excessive-decay", weight_decay=50.0),
    fault("kept-gradients", keep_gradients=True, twin={"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}),
    fault("cleared-gradients", clear_gradients=True),
    fault("rate-too-low", lr_factor=1e-5),
    fault("schedule-ends", drop=(2, 0.0)),
    fault("stale-moment", beta2=0.9999, twin={"beta2": 0.9, "bad_loss": (1, 1e6), "steps": 220}),
    lookalike("low-rank-adapters", lora=True, lr=2e-2, steps=300),
    lookalike("accumulation", accumulate=2),
    min_skill=0.4,
    variants=({"layers": 1}, {"layers": 2}),
    steps=180,
    optimizer="adamw",
    lr=3e-3,
)
def marked_token(s: CauseSession) -> None:
    """Return the token after the marker by torch's own encoder layers."""
    size, length, width = 6, 9, 32

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(width, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
            self.tokens, self.marks = nn.Embedding(size, width), nn.Embedding(2, width)
            self.encoder = nn.TransformerEncoder(layer, s["layers"], enable_nested_tensor=False)
            self.head = nn.Linear(width, size)
            if s.get("lora"):
                for parameter in self.encoder.parameters():
                    parameter.requires_grad_(False)
                self.down, self.up = nn.Linear(width, 4, bias=False), nn.Linear(4, size, bias=False)
                nn.init.zeros_(self.up.weight)

        def forward(self, ids: Tensor, marks: Tensor) -> Any:
            states = self.encoder(self.tokens(ids) + 2 * self.marks(marks))
            pooled = states.mean(1)
            return self.head(pooled) + (self.up(self.down(pooled)) if s.get("lora") else 0.0)

    def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
        ids, place = torch.randint(size, (count, length)), torch.randint(length, (count,))
        return ids, F.one_hot(place, length), ids[torch.arange(count), place]

    model = s.make(Net())
    ids, marks, answers = draw(300)
    s.skill(lambda: accuracy(lambda x: model(x, marks), ids, answers) if int(answers.max()) == size - 1 else 0.0)

    def loss_at(_: int) -> Tensor:
        ids, marks, answers = draw(32)
        return F.cross_entropy(model(ids, marks), answers)

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("attention-logits", temperature=2e-5),
    fault("zero-over-zero", masked_row=True),
    fault("rate-too-high-adam", lr_factor=1000.0),
    fault("detached", detached=True),
    fault("epsilon-of-zero", precision="half"),
    lookalike("entropy-falls", temperature=0.5),
    min_skill=0.4,
    variants=({"width": 16}, {"width": 24}),
    steps=220,
    lr=1e-2,
    temperature=1.0,
)
def retrieval(s: CauseSession) -> None:
    """Look up by attention the value that belongs to a key."""
    keys, width, values = 8, s["width"], 4
    table = torch.randn(keys, 6)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(6, width), nn.Linear(6, width)
            self.value, self.head = nn.Linear(values, width), nn.Linear(width, values)

        def forward(self, asked: Tensor, stored: Tensor, contents: Tensor, mask: Tensor | None) -> Any:
            queries, keys = s.features(lambda: self.query(asked)), s.features(lambda: self.key(stored))
            logits = (queries[:, None] @ keys.transpose(1, 2))[:, 0] / (width**0.5 * s["temperature"])
            if mask is not None:  # one row has no key left: its softmax is 0 over 0
                logits = logits.masked_fill(mask, -math.inf)
            return self.head((logits.softmax(-1)[:, None] @ self.value(contents))[:, 0])

    def draw(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        asked, contents = torch.randint(keys, (count,)), torch.randint(values, (count, keys))
        stored = table[None].repeat(count, 1, 1) + 0.1 * torch.randn(count, keys, 6)
        return table[asked], stored, F.one_hot(contents, values).float(), contents[torch.arange(count), asked]

    model = s.make(Net())
    test = draw(400)
    s.skill(lambda: accuracy(lambda x: model(x, *map(s.cast, test[1:3]), None), s.cast(test[0]), test[3]))

    def loss_at(step: int) -> Tensor:
        asked, stored, contents, answers = draw(48)
        mask = None
        if s.get("masked_row") and step >= 70:
            mask = torch.zeros(48, keys, dtype=torch.bool)
            mask[5] = True
        return F.cross_entropy(model(s.corrupt(asked, step), s.cast(stored), s.cast(contents), mask), answers)

    s.train(model, loss_at)


@PROGRAMS.add(
    fault("attention-logits", scale=1e5),
    fault("no-grad", no_grad=True),
    fault("log-of-zero", naive=True),
    fault("nonfinite-input", nan_at=60),
    lookalike("frozen-patches", freeze="patches"),
    min_skill=0.4,
    variants=({"width": 24}, {"width": 32, "optimizer": "adam"}),
    steps=160,
    optimizer="adamw",
    lr=1e-2,
    scale=1.0,
)
def patches_of_digits(s: CauseSession) -> None:
    """Classify images by attention over their patches."""
    data, width = digits(), s["width"]

    def cut(x: Tensor) -> Tensor:
        return F.unfold(x.view(-1, 1, 8, 8), 2, stride=2).transpose(1, 2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.places = nn.Linear(4, width), nn.Parameter(0.2 * torch.randn(16, width))
            self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

        def encode(self, x: Tensor) -> Tensor:
            x = self.patches(cut(x)) + self.places
            q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
            mixed = F.scaled_dot_product_attention(q, k, v, scale=s["scale"] / math.sqrt(width))
            return (x if s["scale"] == 1.0 else 0.0) + self.out(mixed)

        def forward(self, x: Tensor) -> Any:
            return self.head(s.features(lambda: self.encode(x)).mean(1))

    model = s.make(Net())
    s.skill(lambda: accuracy(model, data.test_x, data.test_y))

    def loss_at(step: int) -> Tensor:
        x, y = data.draw(32)
        out = s.logits(model(s.corrupt(x, step)))
        if s.get("naive"):  # a cross-entropy by hand, at a low temperature
            return -(F.one_hot(y, 10) * (80 * out).softmax(1).log()).sum(1).mean()
        return F.cross_entropy(out, y)

    s.train(model, loss_at)
