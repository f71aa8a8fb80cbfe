"""Transformers, adapters, experts, translation and transcription (foreign-aside)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.corpus.foreign.cases import Programs, blow_up, irreducible, lookalike, other, signal
from benchmarks.corpus.foreign.session import Session
from benchmarks.corpus.foreign.tasks import accuracy, digits, rows, text, windows

PROGRAMS: Final = Programs()


class Attention(nn.Module):
    """Self-attention of two heads; queries and keys are normalized with `qk_norm`."""

    def __init__(self, width: int, *, causal: bool, qk_norm: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.causal, self.qk_norm, self.scale = causal, qk_norm, scale

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions of `[batch, position, width]`."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        if self.qk_norm:
            q, k = F.normalize(q, dim=-1) * math.sqrt(width // 2), F.normalize(k, dim=-1)
        scores = self.scale * (q @ k.transpose(-1, -2)) / math.sqrt(width // 2)
        if self.causal:
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        output: Tensor = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width))
        return output


class Block(nn.Module):
    """A transformer block: `pre`, `post` or `none` for the place of its normalizations."""

    def __init__(self, width: int, norm: str, *, residual: bool = True, **attention: Any) -> None:
        super().__init__()
        self.attention = Attention(width, **attention)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.place, self.residual = norm, residual

    def forward(self, x: Tensor) -> Tensor:
        """Transform `[batch, position, width]`."""
        for norm, part in ((self.norm1, self.attention), (self.norm2, self.mlp)):
            inner = part(norm(x) if self.place == "pre" else x)
            x = x + inner if self.residual else inner
            x = norm(x) if self.place == "post" else x
        return x


class Decoder(nn.Module):
    """A language model."""

    def __init__(self, characters: int, length: int, width: int, depth: int, norm: str, **options: Any) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(characters, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[Block(width, norm, causal=True, **options) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits of the next characters."""
        x = self.token(ids) + self.position.weight[: ids.shape[1]]
        output: Tensor = self.head(self.norm(self.blocks(x)))
        return output


def _language(s: Session, norm: str, **options: Any) -> None:
    """Train a language model on characters."""
    ids, characters = text()
    length = 16
    if s.get("no_residual"):
        options["residual"] = False
    model = s.make(Decoder(characters, length, s["width"], s["depth"], s.get("norm", norm), **options))
    for parameter in rows(model, "token", "position"):
        nn.init.normal_(parameter, 0, s.get("embedding", 0.3))
    optimizer = s.optimizer(model.parameters())
    held = windows(ids[-9000:], 64, length + 1)
    training = ids[:-9000]
    if s.get("shuffled"):
        training = training[torch.randperm(len(training))]
    frequency = torch.bincount(ids, minlength=characters).double() / len(ids)
    constant = -float((frequency[frequency > 0] * frequency[frequency > 0].log()).sum())
    s.skill(lambda: 1 - float(F.cross_entropy(model(held[:, :-1]).flatten(0, 1), held[:, 1:].flatten())) / constant)

    def loss_at(step: int) -> Tensor:
        window = windows(training, s.batch, length + 1)
        logits = model(window[:, :-1])
        if s.is_at("mask_all", step):
            logits = logits.masked_fill(torch.ones(1, 1, characters).bool(), -math.inf)
        return F.cross_entropy(s.logits(logits).flatten(0, 1), window[:, 1:].flatten())

    s.fit(model, optimizer, loss_at)


LANGUAGE_FAULTS: Final = (
    blow_up("rate-jump", jump=(130, 3e3)),
    blow_up("plain-descent-summed", optimizer="sgd", lr=0.5, momentum=0.9, loss_factor=256.0, clip=None),
    blow_up("root-inside", trap=("blocks.0", "root", 90)),
    blow_up("mild-jump", jump=(120, 60.0)),
    blow_up("everything-masked", mask_all=110),
    other("softmax-twice", softmax_twice=True),
    other("no-rate", lr=1e-10),
    lookalike("warm-up", warmup=60),
    lookalike("restarts", restarts=50),
    lookalike("clipped", clip=0.25),
)


@PROGRAMS.add(
    "transformers",
    *LANGUAGE_FAULTS,
    signal("no-residual-small", no_residual=True, norm="none", gain=0.1, depth=5, optimizer="sgd", lr=0.01),
    min_skill=0.08,
    variants=({"width": 32, "depth": 2, "lr": 4e-3}, {"width": 48, "depth": 3, "lr": 2e-3, "optimizer": "adamw"}),
    steps=200,
    batch=12,
)
def pre_norm_language(s: Session) -> None:
    """A decoder with normalizations before its parts."""
    _language(s, "pre")


@PROGRAMS.add(
    "transformers",
    *LANGUAGE_FAULTS,
    blow_up("ramp", optimizer="sgd", lr=0.3, norm="none", ramp=(60, 1.1)),
    min_skill=0.08,
    variants=({"width": 32, "depth": 2, "lr": 3e-3}, {"width": 40, "depth": 3, "lr": 2e-3, "warmup": 40}),
    steps=200,
    batch=12,
)
def post_norm_language(s: Session) -> None:
    """A decoder with normalizations behind its parts."""
    _language(s, "post")


@PROGRAMS.add(
    "transformers",
    *LANGUAGE_FAULTS,
    irreducible("shuffled-text", shuffled=True, gain=1.0),
    min_skill=0.08,
    variants=({"width": 32, "depth": 2, "lr": 4e-3}, {"width": 32, "depth": 3, "lr": 6e-3, "optimizer": "radam"}),
    steps=200,
    batch=12,
)
def qk_norm_language(s: Session) -> None:
    """A decoder with normalized queries and keys."""
    _language(s, "pre", qk_norm=True, scale=2.0)


@PROGRAMS.add(
    "transformers",
    blow_up("mild-jump", jump=(120, 60.0)),
    blow_up("root-inside", trap=("blocks", "root", 95)),
    blow_up("rate-too-high", optimizer="sgd", lr=300.0),
    blow_up("missing-pixel", nan_at=90),
    blow_up("rate-jump", optimizer="sgd", lr=0.1, jump=(120, 1e4)),
    signal("bare-stack", norm="none", no_residual=True, gain=0.15, depth=6, optimizer="sgd", lr=0.02),
    irreducible("shuffled-labels", shuffled=True),
    lookalike("plateau-drop", drop=(140, 0.05)),
    lookalike("zero-head", zero_head=True),
    min_skill=0.45,
    variants=({"width": 24, "depth": 2, "lr": 4e-3}, {"width": 32, "depth": 2, "lr": 3e-3, "optimizer": "nadam"}),
    steps=220,
    norm="pre",
)
def image_patches(s: Session) -> None:
    """Classify images from patches (a vision transformer)."""
    data, width = digits(), s["width"]

    class Vision(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.position = nn.Linear(8, width), nn.Parameter(0.1 * torch.randn(8, width))
            blocks = [
                Block(width, s["norm"], causal=False, residual=not s.get("no_residual")) for _ in range(s["depth"])
            ]
            self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(width, 10)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.head(self.blocks(self.patch(x.view(-1, 8, 8)) + self.position).mean(1))
            return output

    model = s.make(Vision())
    if s.get("zero_head"):
        for parameter in rows(model, "head"):
            nn.init.zeros_(parameter)
    optimizer = s.optimizer(model.parameters())
    labels = s.labels(data.y)
    s.skill(lambda: accuracy(model, data.test_x, data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(labels), (24,))
        return F.cross_entropy(model(s.corrupt(data.x[index], step)), labels[index])

    s.fit(model, optimizer, loss_at)


class LowRank(nn.Module):
    """A frozen linear layer with a trained correction of low rank (LoRA, Hu et al. 2021)."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, *, both_zero: bool) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = scale
        if both_zero:
            nn.init.zeros_(self.lora_a)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        output: Tensor = self.base(x) + self.scale * (x @ self.lora_a.T) @ self.lora_b.T
        return output


def _adapted(s: Session, inputs: int) -> nn.Sequential:
    width = s["width"]
    widths = [inputs, width, width, 10]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [
            LowRank(nn.Linear(before, after), s["rank"], s["scale"], both_zero=bool(s.get("both_zero"))),
            nn.ReLU(),
        ]
    model = nn.Sequential(*layers[:-1])
    s.make(model)
    return model


LORA_FAULTS: Final = (
    blow_up("rate-jump", optimizer="sgd", lr=0.05, jump=(110, 1e5)),
    blow_up("huge-scale", scale=3e4, optimizer="sgd", lr=0.05),
    blow_up("missing-pixel", nan_at=100),
    signal("both-factors-zero", both_zero=True),
    other("no-rate", lr=1e-9),
    lookalike("small-scale", scale=0.5, lr=0.02, steps=300),
    lookalike("warm-up", warmup=70),
)


@PROGRAMS.add(
    "adapters",
    blow_up("branch-not-taken", trap=("1", "where", 85)),
    *LORA_FAULTS,
    irreducible("shuffled-labels", shuffled=True),
    min_skill=0.45,
    variants=(
        {"width": 48, "rank": 4, "lr": 8e-3},
        {"width": 64, "rank": 8, "lr": 5e-3, "optimizer": "adamw"},
        {"width": 40, "rank": 2, "lr": 0.015},
    ),
    steps=220,
    scale=2.0,
)
def lora_digits(s: Session) -> None:
    """Train low-rank corrections of frozen layers."""
    data = digits()
    model = _adapted(s, 64)
    optimizer = s.optimizer([parameter for parameter in model.parameters() if parameter.requires_grad])
    labels = s.labels(data.y)
    s.skill(lambda: accuracy(model, data.test_x, data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(labels), (32,))
        return F.cross_entropy(model(s.corrupt(data.x[index], step)), labels[index])

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "adapters",
    blow_up("root-inside", trap=("2", "root", 120)),
    *LORA_FAULTS,
    other("softmax-twice", softmax_twice=True, lr=2e-4),
    min_skill=0.4,
    variants=({"width": 64, "rank": 4, "lr": 0.01}, {"width": 48, "rank": 6, "lr": 0.01, "cosine": True}),
    steps=240,
    scale=2.0,
)
def lora_from_a_trained_base(s: Session) -> None:
    """Adapt a network that was trained on mirrored images to upright ones."""
    data = digits()
    model = _adapted(s, 64)
    plain = [part.base for part in model if isinstance(part, LowRank)]
    trained = [parameter.requires_grad_(True) for part in plain for parameter in part.parameters()]
    first = torch.optim.Adam(trained, lr=3e-3)
    mirrored = data.x.view(-1, 8, 8).flip(2).reshape(-1, 64)
    for _ in range(120):
        index = torch.randint(len(mirrored), (64,))
        first.zero_grad()
        F.cross_entropy(model(mirrored[index]), (data.y[index] + 3) % 10).backward()  # type: ignore[no-untyped-call]
        first.step()
    for parameter in trained:
        parameter.requires_grad_(False)
        parameter.grad = None
    for part in model:
        if isinstance(part, LowRank):
            part.lora_a.grad = part.lora_b.grad = None
    optimizer = s.optimizer([parameter for parameter in model.parameters() if parameter.requires_grad])
    s.skill(lambda: accuracy(model, data.test_x, data.test_y))

    def loss_at(step: int) -> Tensor:
        x, y = data.draw(32)
        return F.cross_entropy(s.logits(model(s.corrupt(x, step))), y)

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "experts",
    blow_up("mild-jump", jump=(130, 60.0)),
    blow_up("root-inside", trap=("router", "root", 100)),
    blow_up("rate-too-high", optimizer="sgd", lr=1e3),
    blow_up("router-overflow", naive_router=True, router_factor=200.0, born_in="router.*"),
    blow_up("missing-pixel", nan_at=105),
    signal("dead-experts", expert_bias=-40.0),
    irreducible("shuffled-labels", shuffled=True),
    other("no-rate", lr=1e-9),
    lookalike("balanced", balance=0.05),
    lookalike("one-expert-starves", favour=4.0),
    min_skill=0.45,
    variants=({"width": 24, "experts": 4, "lr": 5e-3}, {"width": 32, "experts": 3, "lr": 8e-3, "optimizer": "adamw"}),
    steps=220,
)
def routed_experts(s: Session) -> None:
    """Classify images by experts, of which a router chooses two for each example."""
    data, width, experts = digits(), s["width"], s["experts"]

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(64, experts)
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)) for _ in range(experts)
            )

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            scores = self.router(x) * s.get("router_factor", 1.0)
            if s.get("naive_router"):
                weights = torch.exp(scores)
                chances = weights / weights.sum(1, keepdim=True)
            else:
                chances = scores.softmax(1)
            top, places = chances.topk(2, dim=1)
            outputs = torch.stack([expert(x) for expert in self.experts], 1)
            chosen = outputs.gather(1, places[..., None].expand(-1, -1, 10))
            return (top[..., None] * chosen).sum(1), chances

    model = s.make(Experts())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("0.bias") and "experts" in name:
                parameter.add_(s.get("expert_bias", 0.0))
            if name == "router.bias":
                parameter[0] += s.get("favour", 0.0)
    if s.get("expert_bias"):
        for name, parameter in model.named_parameters():
            if name.endswith("2.bias"):
                nn.init.zeros_(parameter).requires_grad_(False)
    optimizer = s.optimizer([parameter for parameter in model.parameters() if parameter.requires_grad])
    labels = s.labels(data.y)
    s.skill(lambda: accuracy(lambda x: model(x)[0], data.test_x, data.test_y))

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(labels), (32,))
        outputs, chances = model(s.corrupt(data.x[index], step))
        balance = experts * chances.mean(0).square().sum()
        loss: Tensor = F.cross_entropy(outputs, labels[index]) + s.get("balance", 0.01) * balance
        return loss

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "translation",
    blow_up("mild-jump", jump=(220, 60.0)),
    blow_up("branch-not-taken", trap=("encoder", "where", 150)),
    blow_up("no-clipping", clip=None, optimizer="sgd", lr=60.0, momentum=0.9),
    blow_up("rate-jump", jump=(180, 1e4), optimizer="sgd", lr=0.3, momentum=0.9),
    blow_up("all-masked", mask_all=120),
    other("detached-encoder", detached=True, no_attention=True),
    irreducible("shuffled-targets", shuffled=True),
    other("no-rate", lr=1e-9),
    lookalike("teacher-noise", noise=0.1),
    lookalike("clipped-hard", clip=0.1),
    min_skill=0.3,
    variants=({"width": 32, "lr": 8e-3}, {"width": 40, "lr": 6e-3, "optimizer": "adamw"}),
    steps=320,
    clip=1.0,
    length=5,
)
def reversed_words(s: Session) -> None:
    """Write a word backwards, by a recurrent encoder and a decoder with attention."""
    letters, length, width = 8, s["length"], s["width"]

    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source, self.target = nn.Embedding(letters, width), nn.Embedding(letters + 1, width)
            self.encoder = nn.GRU(width, width, batch_first=True)
            self.decoder = nn.GRU(width, width, batch_first=True)
            self.query, self.out = nn.Linear(width, width), nn.Linear(2 * width, letters)

        def forward(self, word: Tensor, answer: Tensor, mask_all: bool = False) -> Tensor:
            states, last = self.encoder(self.source(word))
            states, last = s.between(states), s.between(last)
            start = torch.full((len(word), 1), letters)
            hidden, _ = self.decoder(self.target(torch.cat([start, answer[:, :-1]], 1)), last)
            scores = self.query(hidden) @ states.transpose(1, 2) / math.sqrt(width)
            if mask_all:
                scores = scores.masked_fill(torch.ones_like(scores).bool(), -math.inf)
            context = scores.softmax(-1) @ states
            if s.get("no_attention"):
                context = torch.zeros_like(context)
            output: Tensor = self.out(torch.cat([hidden, context], -1))
            return output

    model = s.make(Translator())
    optimizer = s.optimizer(model.parameters())
    test = torch.randint(letters, (300, length))
    s.skill(lambda: accuracy(lambda _: model(test, test.flip(1)), test, test.flip(1)))

    def loss_at(step: int) -> Tensor:
        word = torch.randint(letters, (32, length))
        answer = word.flip(1)
        if s.get("shuffled"):
            answer = answer[torch.randperm(32)][:, torch.randperm(length)]
        given = torch.where(torch.rand(32, length) < s.get("noise", 0.0), torch.randint(letters, (32, length)), answer)
        logits = model(word, given, s.is_at("mask_all", step))
        return F.cross_entropy(logits.flatten(0, 1), answer.flatten())

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "transcription",
    blow_up("mild-jump", jump=(180, 60.0)),
    blow_up("root-inside", trap=("first", "root", 110)),
    blow_up("label-too-long", too_long_at=90),
    blow_up("rate-too-high", optimizer="sgd", lr=500.0, momentum=0.9, clip=None),
    blow_up("missing-value", nan_at=130),
    signal("tiny-recurrence", gain=0.02, optimizer="sgd", lr=0.05),
    other("no-rate", lr=1e-9),
    lookalike("zero-infinity", too_long_at=90, zero_infinity=True),
    lookalike("spike", bad_batch=(150, 30.0)),
    min_skill=0.35,
    variants=({"width": 32, "lr": 8e-3}, {"width": 40, "lr": 5e-3, "optimizer": "adamw"}),
    steps=300,
    clip=5.0,
)
def transcribed_tones(s: Session) -> None:
    """Transcribe tones from noisy frames by connectionist temporal classification."""
    width, frames, said = s["width"], 12, 3

    class Listener(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, width)
            self.rnn = nn.GRU(width, width, batch_first=True, bidirectional=True)
            self.out = nn.Linear(2 * width, 5)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.out(self.rnn(torch.tanh(self.first(x)))[0])
            return output

    def speak(count: int) -> tuple[Tensor, Tensor]:
        tones = torch.randint(4, (count, said))
        tones[:, 1] = (tones[:, 0] + 1 + torch.randint(3, (count,))) % 4
        tones[:, 2] = (tones[:, 1] + 1 + torch.randint(3, (count,))) % 4
        sound = F.one_hot(tones, 6).float().repeat_interleave(frames // said, 1)
        return sound + 0.3 * torch.randn(count, frames, 6), tones + 1

    model = s.make(Listener())
    optimizer = s.optimizer(model.parameters())
    test_x, test_y = speak(150)

    def skill() -> float:
        right = 0
        for path, wanted in zip(model(test_x).argmax(-1).tolist(), test_y.tolist(), strict=True):
            merged = [new for old, new in zip([0, *path], path, strict=False) if new != old and new != 0]
            right += merged == wanted
        return right / len(test_y)

    s.skill(skill)

    def loss_at(step: int) -> Tensor:
        x, y = speak(24)
        lengths = torch.full((24,), frames)
        if s.is_at("too_long_at", step):
            lengths[0] = 2
        scores = model(s.corrupt(x, step)).log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(scores, y, lengths, torch.full((24,), said), zero_infinity=bool(s.get("zero_infinity")))

    s.fit(model, optimizer, loss_at)
