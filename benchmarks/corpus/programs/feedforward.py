"""Multilayer perceptrons and convolutional networks: classifiers, regressors, autoencoders."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.corpus.ledger import Ledger
from benchmarks.corpus.program import Program
from benchmarks.corpus.programs.datasets import Dataset, dataset
from benchmarks.corpus.programs.modules import (
    ACTIVATIONS,
    Map,
    accuracy_skill,
    batches,
    normalization,
    variance_skill,
)
from benchmarks.corpus.training import HALF_LARGEST


def dense_stack(
    ledger: Ledger,
    sizes: list[int],
    *,
    activation: str = "relu",
    norm: str | None = None,
    residual: str | None = None,
    out_activation: str = "linear",
    bias: float | None = None,
    prefix: str = "",
    dropout: float = 0.0,
    noise: float = 0.0,
    half: bool = False,
) -> tuple[Map, list[nn.Module]]:
    """Build Linear layers. `residual`: `plain` adds the identity, `zero` also starts branches at zero.

    `half`: activations overflow as half precision does.
    """
    act, out_act = ACTIVATIONS[activation], ACTIVATIONS[out_activation]
    linears: list[nn.Linear] = []
    norms: list[nn.Module | None] = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        last = index == len(sizes) - 2
        branch = residual is not None and inputs == outputs and not last
        linear = nn.Linear(inputs, outputs)
        if residual == "zero" and branch:
            nn.init.zeros_(linear.weight)
        if bias is not None:
            nn.init.constant_(linear.bias, bias)
        ledger.add(
            linear,
            f"{prefix}{2 * index}",
            activation=out_activation if last else activation,
            normalized=norm is not None and not last,
            branch=branch,
        )
        linears.append(linear)
        norms.append(None)
        if norm is not None and not last:
            norms[-1] = ledger.add(normalization(norm, outputs), f"{prefix}{2 * index + 1}", branch=branch)

    def forward(x: Tensor) -> Tensor:
        for index, (linear, norm_module) in enumerate(zip(linears, norms, strict=True)):
            h: Tensor = linear(x)
            if half:
                h = torch.where(h.abs() > HALF_LARGEST, h.sign() * math.inf, h)
            if index == len(linears) - 1:
                return out_act(h)
            if norm_module is not None:
                h = norm_module(h)
            h = act(h)
            if noise:
                h = h + noise * torch.randn_like(h)
            if dropout:
                h = functional.dropout(h, dropout, training=torch.is_grad_enabled())
            x = x + h if residual is not None and linear.in_features == linear.out_features else h
        return x

    return forward, [m for m in [*linears, *norms] if m is not None]


def supervised(
    made: Dataset,
    forward: Map,
    batch: int,
    loss: str,
    *,
    modules: list[nn.Module],
    bad_batch: tuple[int, float] | None,
    switch: tuple[int, str] | None = None,
) -> Program:
    """Train `forward` on a data set. `bad_batch` (step, factor): that step's inputs are multiplied.

    `switch` (step, kind): from that step on the data are changed: see `switched`.
    """
    draw = batches(made.x, made.y, batch)
    criterion = make_criterion(loss, made.classes)

    def step_loss(step: int) -> Tensor:
        x, y = draw()
        if switch is not None and step >= switch[0]:
            x, y = switched(x, y, switch[1], made.classes)
        if bad_batch is not None and step == bad_batch[0]:
            x = x * bad_batch[1]
        return criterion(forward(x), y)

    def skill() -> float:
        for module in modules:
            module.eval()
        eval_x, eval_y = made.eval_x, made.eval_y
        if switch is not None:
            eval_x, eval_y = switched(eval_x, eval_y, switch[1], made.classes)
        out = forward(eval_x)
        if made.classes == 0:
            return variance_skill(out.exp() if loss == "poisson" else out, eval_y)
        if loss in ("bce", "bce_naive"):
            cut = 0.0 if loss == "bce" else 0.5
            out = torch.cat([2 * cut - out, out], -1)
        return accuracy_skill(out, eval_y, made.classes)

    x, y = draw()
    return Program(loss=step_loss, skill=skill, inputs=x, targets=y)


def switched(x: Tensor, y: Tensor, kind: str, classes: int) -> tuple[Tensor, Tensor]:
    """Return changed data: permuted classes, mirrored or noisier inputs, or larger targets."""
    match kind:
        case "labels":
            return x, (y + 1) % classes
        case "mirror":
            return -x, y
        case "noise":
            return x + 0.5 * torch.randn_like(x), y
        case "targets":
            return x, 3 * y + 1
        case _:
            raise ValueError(f"unknown switch {kind!r}")


def make_criterion(loss: str, classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss by name. The naive ones take logarithms of probabilities that may be zero."""

    def one_hot(y: Tensor) -> Tensor:
        return functional.one_hot(y, classes).float()

    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "ce": functional.cross_entropy,
        "ce_sum": lambda out, y: functional.cross_entropy(out, y, reduction="sum"),
        "smooth_ce": lambda out, y: functional.cross_entropy(out, y, label_smoothing=0.1),
        "nll_naive": lambda out, y: (
            -(torch.exp(out) / torch.exp(out).sum(-1, keepdim=True)).log()[torch.arange(len(y)), y].mean()
        ),
        "bce": lambda out, y: functional.binary_cross_entropy_with_logits(out[:, 0], y.float()),
        "bce_naive": lambda out, y: -(y * out[:, 0].log() + (1 - y) * (1 - out[:, 0]).log()).mean(),
        "mse": functional.mse_loss,
        "mse_sum": lambda out, y: functional.mse_loss(out, y, reduction="sum"),
        "sum_one_hot": lambda out, y: functional.mse_loss(out, one_hot(y), reduction="sum"),
        "mse_one_hot": lambda out, y: functional.mse_loss(out, one_hot(y)),
        "mae": functional.l1_loss,
        "huber": functional.smooth_l1_loss,
        "quartic": lambda out, y: (out - y).pow(4).mean(),
        "log_cosh": lambda out, y: (out - y).cosh().log().mean(),
        "poisson": lambda out, y: (out.exp() - y * out).mean(),
        "relative": lambda out, y: ((out - y) / y).square().mean(),
        "focal": lambda out, y: (
            (1 - (-functional.cross_entropy(out, y, reduction="none")).exp()).square()
            * functional.cross_entropy(out, y, reduction="none")
        ).mean(),
        "hinge": functional.multi_margin_loss,
        "pinball": lambda out, y: torch.maximum(0.7 * (y - out), -0.3 * (y - out)).mean(),
        "ratio": lambda out, y: (y / out + out / y).mean(),
        "log_error": lambda out, y: (out - y).abs().log().mean(),
        "sqrt": lambda out, y: (out - y).square().sum(-1).sqrt().mean(),
    }
    return losses[loss]


def mlp(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "digits",
    inputs: str = "std",
    targets: str = "std",
    label_noise: float = 0.0,
    hidden: list[int] | None = None,
    activation: str = "relu",
    out_activation: str = "linear",
    norm: str | None = None,
    residual: str | None = None,
    init: str = "default",
    gain: float = 1.0,
    bias: float | None = None,
    loss: str | None = None,
    dropout: float = 0.0,
    bad_batch: tuple[int, float] | None = None,
    last_gain: float | None = None,
    wrong_sign_decay: float = 0.0,
    targets_shuffled: bool = False,
    noise: float = 0.0,
    half: bool = False,
    switch: tuple[int, str] | None = None,
) -> Program:
    """A multilayer perceptron.

    `wrong_sign_decay` subtracts a weight penalty by mistake. `targets_shuffled` assigns targets to the wrong inputs.
    """
    made = dataset(data, inputs=inputs, targets=targets, label_noise=label_noise)
    if targets_shuffled:
        made.y = made.y[torch.randperm(len(made.y))]
    chosen = loss or ("ce" if made.classes else "mse")
    outputs = 1 if chosen.startswith("bce") else made.classes or made.y.shape[1]
    sizes = [made.x.shape[1], *(hidden if hidden is not None else [32, 32]), outputs]
    forward, modules = dense_stack(
        ledger,
        sizes,
        activation=activation,
        norm=norm,
        residual=residual if residual != "zero" else "plain",
        out_activation=out_activation,
        bias=bias,
        dropout=dropout,
        noise=noise,
        half=half,
    )
    ledger.initialize(init, gain)
    if residual == "zero":
        ledger.rescale(lambda record: bool(record.branch) and record.role == "weight", 0.0)
    if last_gain is not None:
        last = [e.record.name for e in ledger.entries if e.record.role == "weight"][-1]
        ledger.rescale(lambda record: record.name == last, last_gain)
    program = supervised(made, forward, batch, chosen, modules=modules, bad_batch=bad_batch, switch=switch)
    if wrong_sign_decay:
        loss_alone, matrices = program.loss, [e.parameter for e in ledger.entries if e.record.role == "weight"]

        def mistaken_loss(step: int) -> Tensor:
            penalty = torch.stack([matrix.square().sum() for matrix in matrices]).sum()
            return loss_alone(step) - wrong_sign_decay * penalty

        program.loss = mistaken_loss
    return program


def linear_chain(
    ledger: Ledger, batch: int, *, layers: int = 10, width: int = 8, scale: float = 1.0, residual: bool = False
) -> Program:
    """Fit square linear layers W = scale * I without biases to a rotation."""
    weights = [nn.Linear(width, width, bias=False) for _ in range(layers)]
    for index, layer in enumerate(weights):
        ledger.add(layer, str(index), branch=residual)
    ledger.initialize("eye", scale)
    rotation, _ = torch.linalg.qr(torch.eye(width) + 0.3 * torch.randn(width, width))
    x = torch.randn(1000, width)
    y = x @ rotation

    def forward(h: Tensor) -> Tensor:
        for layer in weights:
            h = h + layer(h) if residual else layer(h)
        return h

    made = Dataset(x[:800], y[:800], x[800:], y[800:], 0)
    return supervised(made, forward, batch, "mse", modules=[], bad_batch=None)


def convolutional(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "digits",
    dims: int = 2,
    channels: list[int] | None = None,
    pool_after: list[int] | None = None,
    dense: list[int] | None = None,
    activation: str = "relu",
    norm: str | None = None,
    residual: bool = False,
    init: str = "default",
    gain: float = 1.0,
    inputs: str = "std",
    label_noise: float = 0.0,
    global_pool: bool = True,
    bad_batch: tuple[int, float] | None = None,
    switch: tuple[int, str] | None = None,
) -> Program:
    """A convolutional classifier; with `residual`, equal-width layers are branches beside an identity."""
    made = dataset(data, inputs=inputs, label_noise=label_noise)
    widths = [1, *(channels or [8, 16])]
    act = ACTIVATIONS[activation]
    pools = set(pool_after or [])
    convolutions: list[nn.Module] = []
    norms: list[nn.Module | None] = []
    for index, (a, b) in enumerate(itertools.pairwise(widths)):
        convolution = nn.Conv2d(a, b, 3, padding=1) if dims == 2 else nn.Conv1d(a, b, 5, padding=2)
        branch = residual and a == b
        convolutions.append(
            ledger.add(convolution, f"conv{index}", activation=activation, normalized=norm is not None, branch=branch)
        )
        norms.append(ledger.add(normalization(norm, b, dims), f"norm{index}", branch=branch) if norm else None)
    side = made.x.shape[1] if dims == 1 else math.isqrt(made.x.shape[1])
    for _ in pools:
        side //= 2
    features = widths[-1] if global_pool else widths[-1] * side**dims
    head, _ = dense_stack(ledger, [features, *(dense or []), made.classes], activation=activation, prefix="head.")
    ledger.initialize(init, gain)

    def forward(flat: Tensor) -> Tensor:
        x = flat[:, None] if dims == 1 else flat.reshape(len(flat), 1, math.isqrt(flat.shape[1]), -1)
        for index, (convolution, norm_module) in enumerate(zip(convolutions, norms, strict=True)):
            h = convolution(x)
            if norm_module is not None:
                h = norm_module(h)
            h = act(h)
            x = x + h if residual and h.shape == x.shape else h
            if index in pools:
                x = functional.max_pool2d(x, 2) if dims == 2 else functional.max_pool1d(x, 2)
        return head(x.flatten(2).mean(-1) if global_pool else x.flatten(1))

    modules = [*convolutions, *(m for m in norms if m is not None)]
    return supervised(made, forward, batch, "ce", modules=modules, bad_batch=bad_batch, switch=switch)


def autoencoder(
    ledger: Ledger,
    batch: int,
    *,
    hidden: list[int] | None = None,
    activation: str = "relu",
    init: str = "default",
    gain: float = 1.0,
    norm: str | None = None,
    residual: str | None = None,
    inputs: str = "unit",
    out_activation: str = "linear",
    variational: bool = False,
    beta: float = 1.0,
    data: str = "digits",
    loss: str = "mse",
    blur: float = 0.0,
    sparsity: float = 0.0,
) -> Program:
    """An autoencoder of images; `variational` draws its code and adds the Kullback-Leibler divergence.

    `blur` is noise of the inputs, not of the targets. `sparsity` is a penalty on the size of the code.
    """
    made = dataset(data, inputs="raw" if inputs in ("unit", "raw") else inputs)
    if inputs == "unit":
        peak = made.x.abs().max()
        made.x, made.eval_x = made.x / peak, made.eval_x / peak
    widths = hidden or [64, 32, 8]
    size = made.x.shape[1]
    code = widths[-1]
    encode_sizes = [size, *widths[:-1], 2 * code if variational else code]
    encode, encoder = dense_stack(
        ledger, encode_sizes, activation=activation, norm=norm, residual=residual, prefix="encoder."
    )
    decode, decoder = dense_stack(
        ledger,
        [code, *reversed(widths[:-1]), size],
        activation=activation,
        norm=norm,
        residual=residual,
        out_activation=out_activation,
        prefix="decoder.",
    )
    ledger.initialize(init, gain)
    draw = batches(made.x, made.x, batch)
    criterion = make_criterion(loss, 0)

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, _ = draw()
        h = encode(x + blur * torch.randn_like(x) if blur else x)
        if not variational:
            error = criterion(decode(h), x)
            return error + sparsity * h.abs().mean() if sparsity else error
        mean, log_variance = h.chunk(2, -1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1).mean()
        return functional.mse_loss(decode(z), x, reduction="sum") / len(x) + beta * divergence

    def skill() -> float:
        for module in [*encoder, *decoder]:
            module.eval()
        h = encode(made.eval_x)
        return variance_skill(decode(h.chunk(2, -1)[0] if variational else h), made.eval_x)

    x, _ = draw()
    return Program(loss=step_loss, skill=skill, inputs=x, targets=x)
