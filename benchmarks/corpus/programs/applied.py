"""Programs of applied work: forecasts, rankings, masks, click rates, survival times, codes, transcripts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.corpus.ledger import Ledger
from benchmarks.corpus.program import Program
from benchmarks.corpus.programs.datasets import dataset
from benchmarks.corpus.programs.feedforward import dense_stack, supervised
from benchmarks.corpus.programs.modules import ACTIVATIONS, accuracy_skill, batches, normalization, variance_skill
from benchmarks.corpus.programs.sequences import Recurrence


def forecasting(
    ledger: Ledger,
    batch: int,
    *,
    layers: int = 5,
    width: int = 12,
    activation: str = "relu",
    norm: str | None = None,
    residual: bool = True,
    init: str = "default",
    gain: float = 1.0,
    level: float = 0.0,
    unit: float = 1.0,
) -> Program:
    """Forecast the next value of a seasonal series by a stack of dilated causal convolutions.

    `level` and `unit` are the zero point and the unit of the series, which the forecaster reads unscaled.
    """
    length = 48
    act = ACTIVATIONS[activation]
    first = ledger.add(nn.Conv1d(1, width, 1), "first")
    body: list[tuple[nn.Conv1d, nn.Module | None]] = []
    for index in range(layers):
        convolution = nn.Conv1d(width, width, 2, dilation=2 ** (index % 5))
        ledger.add(convolution, f"{index}.conv", activation=activation, normalized=norm is not None, branch=residual)
        body.append(
            (convolution, ledger.add(normalization(norm, width, 1), f"{index}.norm", branch=residual) if norm else None)
        )
    last = ledger.add(nn.Conv1d(width, 1, 1), "last")
    ledger.initialize(init, gain)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        t = torch.arange(length + 1) + 100 * torch.rand(count, 1)
        series = (t * 2 * math.pi / 12).sin() + 0.6 * (t * 2 * math.pi / 7).cos() * torch.rand(count, 1)
        seen = (series + 0.1 * torch.randn(count, length + 1)) * unit + level
        return seen[:, None, :-1], seen[:, 1:]

    def forward(x: Tensor) -> Tensor:
        h = first(x)
        for convolution, norm_module in body:
            change = convolution(functional.pad(h, (convolution.dilation[0], 0)))
            if norm_module is not None:
                change = norm_module(change)
            h = h + act(change) if residual else act(change)
        out: Tensor = last(h)[:, 0]
        return out

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, y = draw(batch)
        return functional.mse_loss(forward(x), y)

    def skill() -> float:
        x, y = draw(300)
        return variance_skill(forward(x)[:, 20:].flatten(), y[:, 20:].flatten())

    x, y = draw(batch)
    return Program(loss=step_loss, skill=skill, inputs=x, targets=y)


def ranking(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "impedance",
    inputs: str = "std",
    hidden: list[int] | None = None,
    activation: str = "relu",
    norm: str | None = None,
    init: str = "default",
    gain: float = 1.0,
    hinge: bool = False,
) -> Program:
    """Learn scores from pairs of which one is better (Burges et al. 2005). Skill: how far the loss is below chance."""
    made = dataset(data, inputs=inputs)
    forward, modules = dense_stack(
        ledger, [made.x.shape[1], *(hidden or [24, 24]), 1], activation=activation, norm=norm
    )
    ledger.initialize(init, gain)
    draw = batches(made.x, made.y, batch)

    def margins(x: Tensor, y: Tensor, other_x: Tensor, other_y: Tensor) -> Tensor:
        margin: Tensor = (forward(x) - forward(other_x)) * (y - other_y).sign()
        return margin

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        margin = margins(*draw(), *draw())
        return functional.relu(1 - margin).mean() if hinge else functional.softplus(-margin).mean()

    def skill() -> float:
        for module in modules:
            module.eval()
        half = len(made.eval_x) // 2
        x, y = made.eval_x, made.eval_y
        margin = margins(x[:half], y[:half], x[half : 2 * half], y[half : 2 * half])
        return 1.0 - float(functional.softplus(-margin).mean()) / math.log(2)

    return Program(loss=step_loss, skill=skill, inputs=draw()[0])


def segmentation(
    ledger: Ledger,
    batch: int,
    *,
    width: int = 8,
    depth: int = 2,
    activation: str = "relu",
    norm: str | None = "batch",
    shortcuts: bool = True,
    init: str = "default",
    gain: float = 1.0,
    overlap: bool = False,
    brightness: float = 1.0,
) -> Program:
    """Find the pixels of an object with a small U-Net (Ronneberger et al. 2015).

    With `overlap`, the loss is one minus the share that both masks have in common.
    """
    act = ACTIVATIONS[activation]
    modules: list[nn.Module] = []

    def stage(name: str, inputs: int) -> tuple[nn.Conv2d, nn.Module | None]:
        convolution = nn.Conv2d(inputs, width, 3, padding=1)
        ledger.add(convolution, f"{name}.conv", activation=activation, normalized=norm is not None)
        norm_module = ledger.add(normalization(norm, width, 2), f"{name}.norm") if norm else None
        modules.extend(m for m in (convolution, norm_module) if m is not None)
        return convolution, norm_module

    down = [stage(f"down{i}", width if i else 1) for i in range(depth + 1)]
    up = [stage(f"up{i}", 2 * width if shortcuts else width) for i in range(depth)]
    last = ledger.add(nn.Conv2d(width, 1, 1), "last")
    ledger.initialize(init, gain)

    def through(layer: tuple[nn.Conv2d, nn.Module | None], x: Tensor) -> Tensor:
        h: Tensor = layer[0](x)
        return act(layer[1](h) if layer[1] is not None else h)

    def forward(x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for layer in down[:-1]:
            x = through(layer, x)
            kept.append(x)
            x = functional.max_pool2d(x, 2)
        x = through(down[-1], x)
        for layer, fine in zip(up, reversed(kept), strict=True):
            x = functional.interpolate(x, scale_factor=2.0)
            x = through(layer, torch.cat([x, fine], 1) if shortcuts else x)
        out: Tensor = last(x)[:, 0]
        return out

    def draw(count: int) -> tuple[Tensor, Tensor]:
        centre, radius = torch.rand(count, 2, 1, 1) * 8 + 2, torch.rand(count, 1, 1) * 2.5 + 1.5
        axis = torch.arange(12.0)
        distance = (axis[:, None] - centre[:, 0]).square() + (axis[None] - centre[:, 1]).square()
        mask = (distance < radius.square()).float()
        return (mask + 0.4 * torch.randn_like(mask))[:, None] * brightness, mask

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, mask = draw(batch)
        out = forward(x)
        if overlap:
            guess = torch.sigmoid(out)
            return 1 - 2 * (guess * mask).sum() / (guess.sum() + mask.sum())
        return functional.binary_cross_entropy_with_logits(out, mask)

    def skill() -> float:
        for module in modules:
            module.eval()
        x, mask = draw(200)
        logits = forward(x).flatten()
        return accuracy_skill(torch.stack([-logits, logits], -1), mask.flatten().long(), 2)

    return Program(loss=step_loss, skill=skill, inputs=draw(batch)[0])


def click_rates(
    ledger: Ledger,
    batch: int,
    *,
    categories: int = 60,
    width: int = 8,
    hidden: list[int] | None = None,
    activation: str = "relu",
    scale: float = 0.1,
    logarithms: bool = True,
    init: str = "default",
    gain: float = 1.0,
) -> Program:
    """Predict clicks from embedded categories and from amounts, of which a good script takes the logarithm."""
    columns = 3
    taste = torch.randn(columns, categories)
    tables = [ledger.add(nn.Embedding(categories, width), f"table{i}") for i in range(columns)]
    for table in tables:
        nn.init.normal_(table.weight, 0.0, scale)
    top, _ = dense_stack(ledger, [columns * width + 2, *(hidden or [32]), 1], activation=activation, prefix="top.")
    ledger.initialize(init, gain)

    def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
        chosen = (torch.rand(count, columns).square() * categories).long()
        amounts = torch.randn(count, 2)
        logit = 1.5 * taste[torch.arange(columns), chosen].sum(1) + amounts[:, 0] - amounts[:, 1]
        clicked = (torch.rand(count) < torch.sigmoid(2 * logit)).float()
        return chosen, amounts if logarithms else (2 * amounts + 3).exp(), clicked

    def forward(chosen: Tensor, amounts: Tensor) -> Tensor:
        parts = [table(chosen[:, i]) for i, table in enumerate(tables)]
        return top(torch.cat([*parts, amounts], 1))[:, 0]

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        chosen, amounts, clicked = draw(batch)
        return functional.binary_cross_entropy_with_logits(forward(chosen, amounts), clicked)

    def skill() -> float:
        chosen, amounts, clicked = draw(3000)
        logits = forward(chosen, amounts)
        return accuracy_skill(torch.stack([-logits, logits], -1), clicked.long(), 2)

    return Program(loss=step_loss, skill=skill, inputs=draw(batch)[1])


def survival(
    ledger: Ledger,
    batch: int,
    *,
    hidden: list[int] | None = None,
    activation: str = "tanh",
    partial: bool = False,
    inputs: float = 1.0,
    days: float = 1.0,
    init: str = "default",
    gain: float = 1.0,
) -> Program:
    """Predict survival times, some of them censored, by an exponential model or a `partial` likelihood.

    Skill: explained variance of the true log-hazard.
    """
    forward, _ = dense_stack(ledger, [5, *(hidden or [24]), 1], activation=activation)
    ledger.initialize(init, gain)
    direction = torch.randn(5)
    direction = direction / direction.norm()

    def draw(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = torch.randn(count, 5)
        hazard = 1.2 * (x @ direction) + 0.5 * (x[:, 0] * x[:, 1]).tanh() - math.log(days)
        time, censoring = (torch.empty(count).exponential_() / h for h in (hazard.exp(), 0.3 / days))
        return x * inputs, torch.minimum(time, censoring), (time < censoring).float(), hazard

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, time, happened, _ = draw(batch)
        score = forward(x)[:, 0]
        if partial:
            order = time.argsort(descending=True)
            at_risk = torch.logcumsumexp(score[order], 0)
            return ((at_risk - score[order]) * happened[order]).sum() / happened.sum().clamp_min(1)
        return (score.exp() * time - happened * score).mean()

    def skill() -> float:
        x, _, _, hazard = draw(1000)
        score = forward(x)[:, 0]
        if partial:
            score = score - score.mean() + hazard.mean()
        return variance_skill(score, hazard)

    return Program(loss=step_loss, skill=skill, inputs=draw(batch)[0])


def quantized_codes(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "dots",
    codes: int = 24,
    parts: int = 4,
    width: int = 4,
    hidden: int = 48,
    activation: str = "relu",
    spread: float = 0.3,
    init: str = "default",
    gain: float = 1.0,
) -> Program:
    """An autoencoder whose code is the nearest entries of a trained table (van den Oord et al. 2017)."""
    made = dataset(data)
    size = made.x.shape[1]
    encode, _ = dense_stack(ledger, [size, hidden, parts * width], activation=activation, prefix="encoder.")
    table = ledger.add(nn.Embedding(codes, width), "codes")
    decode, _ = dense_stack(ledger, [parts * width, hidden, size], activation=activation, prefix="decoder.")
    ledger.initialize(init, gain)
    nn.init.normal_(table.weight, 0.0, spread)
    draw = batches(made.x, made.x, batch)

    def through(x: Tensor) -> tuple[Tensor, Tensor]:
        h = encode(x).reshape(len(x), parts, width)
        entry = table(torch.cdist(h, table.weight.expand(len(x), -1, -1)).argmin(-1))
        cost = functional.mse_loss(entry, h.detach()) + 0.25 * functional.mse_loss(h, entry.detach())
        return decode((h + (entry - h).detach()).flatten(1)), cost

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, _ = draw()
        out, cost = through(x)
        return functional.mse_loss(out, x) + cost

    x, _ = draw()
    return Program(
        loss=step_loss, skill=lambda: variance_skill(through(made.eval_x)[0], made.eval_x), inputs=x, targets=x
    )


def hypernetwork(
    ledger: Ledger,
    batch: int,
    *,
    hidden: list[int] | None = None,
    inner: int = 16,
    activation: str = "relu",
    scale: float = 0.3,
    init: str = "default",
    gain: float = 1.0,
) -> Program:
    """A network that computes the weights of another: it maps the height and phase of a wave to the wave's function."""
    sizes = [inner, inner, inner * inner, inner, inner, 1]
    write, _ = dense_stack(ledger, [2, *(hidden or [32]), sum(sizes)], activation=activation)
    ledger.initialize(init, gain)
    fixed = [torch.randn(n) / (math.sqrt(inner) if n == inner * inner or index == 4 else 1) * 1.5
             for index, n in enumerate(sizes)]  # fmt: skip

    def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
        wave, x = torch.rand(count, 2) * 2 - 1, torch.rand(count, 20, 1) * 4 - 2
        return wave, x, (1.5 + wave[:, None, :1]) * (1.5 * x + 1.5 * wave[:, None, 1:]).sin()

    def forward(wave: Tensor, x: Tensor) -> Tensor:
        pieces = [f + scale * w for f, w in zip(fixed, torch.split(write(wave), sizes, -1), strict=True)]
        h = torch.tanh(x * pieces[0][:, None] + pieces[1][:, None])
        h = torch.tanh(h @ pieces[2].reshape(-1, inner, inner) + pieces[3][:, None])
        out: Tensor = h @ pieces[4][..., None] + pieces[5][:, None]
        return out

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        wave, x, y = draw(batch)
        return functional.mse_loss(forward(wave, x), y)

    def skill() -> float:
        wave, x, y = draw(300)
        return variance_skill(forward(wave, x).flatten(), y.flatten())

    return Program(loss=step_loss, skill=skill, inputs=draw(batch)[0])


def fixed_point(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "chi_square",
    width: int = 32,
    iterations: int = 15,
    activation: str = "tanh",
    init: str = "orthogonal",
    gain: float = 0.5,
    inputs: str = "std",
) -> Program:
    """One layer that reads its input again in each of many iterations (Bai et al. 2019), unrolled."""
    made = dataset(data, inputs=inputs)
    act = ACTIVATIONS[activation]
    read = ledger.add(nn.Linear(made.x.shape[1], width), "read", activation=activation)
    again = ledger.add(nn.Linear(width, width, bias=False), "again", activation=activation)
    head = ledger.add(nn.Linear(width, made.classes or 1), "head")
    with torch.no_grad():
        if init == "orthogonal":
            nn.init.orthogonal_(again.weight)
        again.weight.mul_(gain)

    def forward(x: Tensor) -> Tensor:
        drive = read(x)
        h = torch.zeros_like(drive)
        for _ in range(iterations):
            h = act(drive + again(h))
        out: Tensor = head(h)
        return out

    return supervised(made, forward, batch, "ce" if made.classes else "mse", modules=[], bad_batch=None)


def transcription(
    ledger: Ledger,
    batch: int,
    *,
    said: int = 3,
    frames: int = 15,
    cell: str = "gru",
    width: int = 32,
    init: str | None = None,
    gain: float = 1.0,
) -> Program:
    """Recognize symbols in noisy frames by the sum over all alignments (Graves et al. 2006).

    With fewer `frames` than symbols that were `said` no alignment exists. Skill: share of transcripts without an error.
    """
    symbols = 5
    recurrence = Recurrence(cell, symbols, width)
    recurrence.add_to_ledger(ledger, "rnn")
    ledger.initialize(init, gain, roles=("recurrent",))
    head = ledger.add(nn.Linear(width, symbols + 1), "head")
    stay = max(1, frames // said)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        text = torch.randint(symbols, (count, said))
        heard = functional.one_hot(text.repeat_interleave(stay, 1)[:, :frames], symbols).float()
        return heard + 0.3 * torch.randn_like(heard), text + 1

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, text = draw(batch)
        log_probability = head(recurrence(x)[0]).log_softmax(-1).transpose(0, 1)
        lengths = (torch.full((batch,), x.shape[1]), torch.full((batch,), said))
        return functional.ctc_loss(log_probability, text, *lengths)

    def skill() -> float:
        x, text = draw(300)
        best = head(recurrence(x)[0]).argmax(-1)
        right = 0
        for row, wanted in zip(best, text, strict=True):
            merged = torch.unique_consecutive(row)
            right += merged[merged > 0].tolist() == wanted.tolist()
        return right / len(text)

    return Program(loss=step_loss, skill=skill, inputs=draw(batch)[0])
