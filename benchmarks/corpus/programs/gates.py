"""Deep stacks whose signal passes gates, scales or signs: gated units, residual branches, binarized activations."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from benchmarks.corpus.ledger import Ledger
from benchmarks.corpus.program import Program
from benchmarks.corpus.programs.datasets import dataset
from benchmarks.corpus.programs.feedforward import supervised
from benchmarks.corpus.programs.modules import ACTIVATIONS, normalization


def gated_stack(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "gaussians:5",
    layers: int = 6,
    width: int = 24,
    gate_bias: float = 0.0,
    gate: str = "sigmoid",
    norm: str | None = None,
    init: str = "default",
    gain: float = 1.0,
) -> Program:
    """A sequence of gated linear units, each a candidate times its gate, without residual connections."""
    made = dataset(data)
    act = ACTIVATIONS[gate]
    sizes = [made.x.shape[1], *[width] * layers]
    parts: list[tuple[nn.Linear, nn.Linear, nn.Module | None]] = []
    for index, (a, b) in enumerate(itertools.pairwise(sizes)):
        value = ledger.add(nn.Linear(a, b), f"{index}.value", normalized=norm is not None)
        gating = ledger.add(nn.Linear(a, b), f"{index}.gate", activation=gate, normalized=norm is not None)
        nn.init.constant_(gating.bias, gate_bias)
        parts.append((value, gating, ledger.add(normalization(norm, b), f"{index}.norm") if norm else None))
    head = ledger.add(nn.Linear(width, made.classes or 1), "head")
    ledger.initialize(init, gain)

    def forward(x: Tensor) -> Tensor:
        for value, gating, norm_module in parts:
            x = value(x) * act(gating(x))
            if norm_module is not None:
                x = norm_module(x)
        out: Tensor = head(x)
        return out

    modules = [m for _, _, m in parts if m is not None]
    return supervised(made, forward, batch, "ce" if made.classes else "mse", modules=modules, bad_batch=None)


def pre_activation(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "gaussians:5",
    blocks: int = 8,
    width: int = 32,
    inner: int = 32,
    norm: str = "pre",
    identity: bool = True,
    layer_scale: float | None = None,
    branch_dropout: float = 0.0,
    activation: str = "relu",
    init: str = "he",
    gain: float = 1.0,
) -> Program:
    """Residual blocks of two layers; `norm`: `pre`, `post` or `none`. Without `identity` there are only the branches.

    `layer_scale` is a trained factor of each branch, `branch_dropout` the probability that a block is skipped.
    """
    made = dataset(data)
    act = ACTIVATIONS[activation]
    first = ledger.add(nn.Linear(made.x.shape[1], width), "first")
    blocks_: list[tuple[nn.Module | None, nn.Linear, nn.Linear, nn.Parameter | None]] = []
    for index in range(blocks):
        name = f"block{index}"
        own_norm = nn.LayerNorm(width) if norm != "none" else None
        if own_norm is not None and norm == "pre":
            ledger.add(own_norm, f"{name}.norm", branch=identity)
        up = ledger.add(nn.Linear(width, inner), f"{name}.up", activation=activation, branch=identity)
        down = ledger.add(nn.Linear(inner, width), f"{name}.down", branch=identity)
        scale = None
        if layer_scale is not None:
            scale = nn.Parameter(torch.full((width,), layer_scale))
            ledger.add_parameter(
                scale, f"{name}.scale", kind="LayerScale", role="gain", activation=None, branch=identity
            )
        if own_norm is not None and norm == "post":
            ledger.add(own_norm, f"{name}.norm", branch=False)
        blocks_.append((own_norm, up, down, scale))
    head = ledger.add(nn.Linear(width, made.classes or 1), "head")
    ledger.initialize(init, gain)

    def forward(x: Tensor) -> Tensor:
        h: Tensor = first(x)
        for own_norm, up, down, scale in blocks_:
            if torch.is_grad_enabled() and branch_dropout and float(torch.rand(())) < branch_dropout:
                continue
            change = down(act(up(own_norm(h) if own_norm is not None and norm == "pre" else h)))
            if scale is not None:
                change = scale * change
            h = h + change if identity else change
            if own_norm is not None and norm == "post":
                h = own_norm(h)
        out: Tensor = head(h)
        return out

    return supervised(made, forward, batch, "ce" if made.classes else "mse", modules=[], bad_batch=None)


def sign_network(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "gaussians:5",
    hidden: list[int] | None = None,
    window: float = 1.0,
    inputs: str = "std",
    norm: str | None = "layer",
    gain: float = 1.0,
) -> Program:
    """A network of units that are +1 or -1. Gradients pass where the input is within `window` (Hubara et al. 2016)."""
    made = dataset(data, inputs=inputs)
    layers: list[tuple[nn.Linear, nn.Module | None]] = []
    for index, (a, b) in enumerate(itertools.pairwise([made.x.shape[1], *(hidden or [64, 64])])):
        linear = ledger.add(nn.Linear(a, b), f"{index}", activation="tanh", normalized=norm is not None)
        layers.append((linear, ledger.add(normalization(norm, b), f"{index}.norm") if norm else None))
    head = ledger.add(nn.Linear(layers[-1][0].out_features, made.classes), "head")
    ledger.rescale(lambda record: record.role == "weight" and not record.name.startswith("head"), gain)

    def forward(x: Tensor) -> Tensor:
        for linear, norm_module in layers:
            h: Tensor = linear(x)
            if norm_module is not None:
                h = norm_module(h)
            through = h.clamp(-window, window)
            x = through + (h.sign() - through).detach()
        out: Tensor = head(x / math.sqrt(x.shape[1]))
        return out

    return supervised(made, forward, batch, "ce", modules=[m for _, m in layers if m is not None], bad_batch=None)
