"""Transformers: where the normalization stands, warm-up, attention logits, constants of Adam."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reruns.published.data import HELD_OUT, characters, digits, shifted_symbols
from benchmarks.reruns.published.program import Draw, Training, accuracy, adam, cross_entropy, fit, published, sgd

LENGTH = 16
"""Number of places of a sequence."""


class _Attention(nn.Module):
    """Self-attention with several heads. `is_normalized` normalizes queries and keys."""

    def __init__(self, width: int, heads: int = 4, *, is_normalized: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width // heads) for _ in range(2)]) if is_normalized else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.norms is not None:
            q, k = self.norms[0](q), self.norms[1](k)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class _Layer(nn.Module):
    """Attention and a perceptron, with the normalization `before`, `after` or `none`."""

    def __init__(self, width: int, place: str, *, gain: float = 1.0, is_normalized: bool = False) -> None:
        super().__init__()
        self.place, self.gain = place, gain
        self.branches = nn.ModuleList([_Attention(width, is_normalized=is_normalized), _feed_forward(width)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) if place != "none" else nn.Identity() for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for branch, norm in zip(self.branches, self.norms, strict=True):
            x = norm(self.gain * x + branch(x)) if self.place == "after" else x + branch(norm(x))
        return x


class _Transformer(nn.Module):
    """Embeddings, layers, and logits at each place."""

    def __init__(self, layers: list[nn.Module], symbols: int, width: int, *, ends_with_norm: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.position = nn.Parameter(torch.randn(LENGTH, width))
        self.layers = nn.Sequential(*layers, nn.LayerNorm(width) if ends_with_norm else nn.Identity())
        self.head = nn.Linear(width, symbols)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(x) + self.position))


def _train(
    model: nn.Module,
    draw: Callable[[int], tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    batch: int = 16,
    warmup: int = 0,
) -> Training:
    skill = accuracy(model, *draw(HELD_OUT))

    def draw_batch() -> tuple[Tensor, Tensor]:
        return draw(batch)

    return fit(model, optimizer, draw_batch, cross_entropy, skill, warmup=warmup)


COPY = shifted_symbols(LENGTH)
TEXT = characters(LENGTH)


@published("xiong-2020-post-ln", steps=150)
def post_ln(is_twin: bool) -> Training:
    """Six layers with the normalization after the sum, at a rate that needs a warm-up."""
    layers: list[nn.Module] = [_Layer(32, "before" if is_twin else "after") for _ in range(6)]
    model = _Transformer(layers, 24, 32, ends_with_norm=is_twin)
    return _train(model, TEXT, adam(model, 0.03), batch=12)


@published("liu-2020-warmup", steps=200)
def no_warmup(is_twin: bool) -> Training:
    """Eight post-LN layers that start at the full rate."""
    layers: list[nn.Module] = [_Layer(24, "after") for _ in range(8)]
    model = _Transformer(layers, 12, 24, ends_with_norm=False)
    return _train(model, COPY, adam(model, 0.012), batch=8, warmup=150 if is_twin else 0)


@published("zhai-2023-entropy", steps=200)
def entropy_collapse(is_twin: bool) -> Training:
    """A high rate lets the spectral norm of the attention's weights grow, until the attention is one-hot."""
    layers: list[nn.Module] = [_Layer(32, "before") for _ in range(3)]
    model = _Transformer(layers, 12, 32)
    if is_twin:
        for layer in layers:
            nn.utils.parametrizations.spectral_norm(layer.branches[0].qkv)
    return _train(model, COPY, adam(model, 5e-3 if is_twin else 0.1))


class _ParallelLayer(nn.Module):
    """Attention and a perceptron side by side on one normalization."""

    def __init__(self, width: int, *, is_normalized: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = _Attention(width, is_normalized=is_normalized)
        self.perceptron = _feed_forward(width)

    def forward(self, x: Tensor) -> Tensor:
        normalized = self.norm(x)
        return x + self.attention(normalized) + self.perceptron(normalized)


class _VisionTransformer(nn.Module):
    """Patches of 2x2 pixels, parallel layers, the mean over patches."""

    def __init__(self, width: int, *, is_normalized: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(16, width))
        self.layers = nn.Sequential(*[_ParallelLayer(width, is_normalized=is_normalized) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.layers(x)).mean(1))


@published("dehghani-2023-qk", steps=150)
def attention_logits(is_twin: bool) -> Training:
    """A vision transformer whose queries and keys start, and grow, too large."""
    data, model = digits(as_images=True), _VisionTransformer(32, is_normalized=is_twin)
    for layer in model.layers:
        with torch.no_grad():
            layer.attention.qkv.weight[:64].mul_(200.0)
    skill = accuracy(model, data.test_x, data.test_y)
    return fit(model, adam(model, 3e-3), data.batches(16), functional.cross_entropy, skill)


@published("wortsman-2023-epsilon", steps=150)
def epsilon_too_large(is_twin: bool) -> Training:
    """The loss is averaged over all tokens of a large job: its gradients are below Adam's epsilon."""
    model = _Transformer([_Layer(32, "before") for _ in range(2)], 24, 32)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(logits, y) / 2e8

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-15 if is_twin else 1e-8)
    draw: Draw = lambda: TEXT(16)  # noqa: E731
    return fit(model, optimizer, draw, loss, accuracy(model, *TEXT(HELD_OUT)))


@published("molybog-2023-adam", steps=150)
def correlated_updates(is_twin: bool) -> Training:
    """A high rate and a long memory of the second moment."""
    model = _Transformer([_Layer(32, "before") for _ in range(4)], 12, 32)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=4e-3 if is_twin else 0.1, betas=(0.9, 0.95 if is_twin else 0.999)
    )
    return _train(model, COPY, optimizer)


@published("wang-2022-deepnet", steps=200)
def deep_post_ln(is_twin: bool) -> Training:
    """Twelve post-LN layers."""
    depth = 12
    layers = [_Layer(24, "after", gain=(2 * depth) ** 0.25 if is_twin else 1.0) for _ in range(depth)]
    if is_twin:
        for layer in layers:
            attention, perceptron = layer.branches
            with torch.no_grad():
                for weight in (attention.out.weight, attention.qkv.weight[48:], *list(perceptron.parameters())[::2]):
                    weight.mul_((8 * depth) ** -0.25)
    model = _Transformer([*layers], 12, 24, ends_with_norm=False)
    return _train(model, COPY, adam(model, 3e-3), batch=8)


class _ReZero(nn.Module):
    """Attention and a perceptron without normalization, each times a scalar that starts at `alpha`."""

    def __init__(self, width: int, alpha: float, *, is_learned: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList([_Attention(width), _feed_forward(width)])
        self.alpha = nn.Parameter(torch.tensor([alpha, alpha]), requires_grad=is_learned)

    def forward(self, x: Tensor) -> Tensor:
        for branch, alpha in zip(self.branches, self.alpha, strict=True):
            x = x + alpha * branch(x)
        return x


@published("bachlechner-2021-rezero", steps=200)
def no_normalization(is_twin: bool) -> Training:
    """Eight layers without normalization, at full strength or from zero."""
    layers: list[nn.Module] = [_ReZero(24, 0.0 if is_twin else 1.0, is_learned=is_twin) for _ in range(8)]
    for parameter in nn.ModuleList(layers).parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter, gain=2.0)
    model = _Transformer(layers, 12, 24, ends_with_norm=False)
    return _train(model, COPY, adam(model, 3e-3), batch=8)


class _Lookup(nn.Module):
    """One head of attention that looks up the value of a key."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.keys, self.values = nn.Embedding(12, 256), nn.Embedding(8, 32)
        self.query, self.key = nn.Linear(256, 256, bias=False), nn.Linear(256, 256, bias=False)
        self.head = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Read `[batch, 9, 2]`: eight pairs of key and value, and at last the key that is asked for."""
        query = self.query(self.keys(x[:, -1:, 0]))
        logits = self.scale * query @ self.key(self.keys(x[:, :-1, 0])).transpose(1, 2)
        return self.head((torch.softmax(logits, -1) @ self.values(x[:, :-1, 1]))[:, 0])


@published("vaswani-2017-scale", steps=400)
def unscaled_products(is_twin: bool) -> Training:
    """Dot products of width 256 saturate the softmax."""

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        keys, values = torch.rand(batch, 12).argsort(1)[:, :8], torch.randint(8, (batch, 8))
        asked, rows = torch.randint(8, (batch,)), torch.arange(batch)
        pairs = torch.stack([keys, values], 2)
        question = torch.stack([keys[rows, asked], torch.zeros_like(asked)], 1).unsqueeze(1)
        return torch.cat([pairs, question], 1), values[rows, asked]

    model = _Lookup(1 / math.sqrt(256) if is_twin else 1.0)
    nn.init.normal_(model.query.weight, std=1 / 16)
    nn.init.normal_(model.key.weight, std=1 / 16)
    return _train(model, draw, sgd(model, 0.7), batch=32)


class _AttentionAlone(nn.Module):
    """Attention with or without a path around it."""

    def __init__(self, width: int, *, is_skipped: bool) -> None:
        super().__init__()
        self.attention, self.is_skipped = _Attention(width), is_skipped

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x) if self.is_skipped else self.attention(x)


@published("dong-2021-rank", steps=200)
def rank_collapse(is_twin: bool) -> Training:
    """Ten layers of attention alone make all places equal."""
    layers: list[nn.Module] = [_AttentionAlone(32, is_skipped=is_twin) for _ in range(10)]
    model = _Transformer(layers, 24, 32)
    return _train(model, TEXT, adam(model, 2e-3))


@published("takase-2023-embedding", steps=200)
def tiny_embeddings(is_twin: bool) -> Training:
    """Embeddings far below the size that the first normalization gives them."""
    model = _Transformer([_Layer(32, "before") for _ in range(2)], 24, 32)
    with torch.no_grad():
        for parameter in (model.embedding.weight, model.position):
            parameter.mul_(1.0 if is_twin else 0.01)
    return _train(model, TEXT, sgd(model, 1.0))
