"""Recurrent networks: memory over long lags, eigenvalues beyond one, sequences that are not scaled."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reruns.published.data import (
    HELD_OUT,
    added_numbers,
    characters,
    recalled_symbol,
    split,
    wave_frequency,
)
from benchmarks.reruns.published.program import (
    Training,
    accuracy,
    adam,
    cross_entropy,
    explained,
    fit,
    published,
    sgd,
)

Fill = Callable[[nn.RNNBase], object]


class _LastState(nn.Module):
    """A recurrent module, and a linear layer on its last state."""

    def __init__(self, core: nn.RNNBase, outputs: int, fill: Fill | None = None) -> None:
        super().__init__()
        self.core = core
        self.head = nn.Linear(core.hidden_size, outputs)
        if fill is not None:
            with torch.no_grad():
                fill(core)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x)[0][:, -1])


def _recurrence(scale: float) -> Fill:
    """Return a filler: normal recurrent weights of spectral radius about `scale`."""
    return lambda core: nn.init.normal_(core.weight_hh_l0, std=scale / core.hidden_size**0.5)


def _forget_bias(value: float) -> Fill:
    """Return a filler for the bias of an LSTM's forget gates; the input gates' is zero."""

    def fill(core: nn.RNNBase) -> None:
        core.bias_ih_l0.zero_()
        core.bias_hh_l0.zero_()
        core.bias_ih_l0[core.hidden_size : 2 * core.hidden_size] = value

    return fill


def _answer(
    model: nn.Module,
    draw: Callable[[int], tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    batch: int = 32,
    clip: float | None = None,
) -> Training:
    """Return a training on generated sequences, which have one class each."""
    skill = accuracy(model, *draw(HELD_OUT))
    return fit(model, optimizer, lambda: draw(batch), functional.cross_entropy, skill, clip=clip)


@published("bengio-1994-latch", steps=250)
def latch(is_twin: bool) -> Training:
    """The sign at the start of noise decides; a plain recurrence forgets it."""

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(2, (batch,))
        x = 0.1 * torch.randn(batch, 40, 1)
        x[:, :3, 0] += (2 * y - 1.0)[:, None]
        return x, y

    if is_twin:
        model = _LastState(nn.LSTM(1, 16, batch_first=True), 2, _forget_bias(3.0))
    else:
        model = _LastState(nn.RNN(1, 16, batch_first=True), 2, _recurrence(0.4))
    return _answer(model, draw, adam(model, 0.01))


class _NextCharacter(nn.Module):
    """An embedding, a recurrent module, and logits of the next character."""

    def __init__(self, core: nn.RNNBase, symbols: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, core.input_size)
        self.core = core
        self.head = nn.Linear(core.hidden_size, symbols)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(self.embedding(x))[0])


@published("pascanu-2013-clip", steps=200)
def cliff(is_twin: bool) -> Training:
    """A language model with a ReLU recurrence near the cliff."""
    draw = characters(40)
    model = _NextCharacter(nn.RNN(16, 48, nonlinearity="relu", batch_first=True))
    with torch.no_grad():
        _recurrence(2.2)(model.core)
    skill = accuracy(model, *draw(HELD_OUT))
    return fit(model, sgd(model, 0.1), lambda: draw(16), cross_entropy, skill, clip=0.5 if is_twin else None)


@published("pascanu-2013-radius", steps=300)
def small_radius(is_twin: bool) -> Training:
    """The first symbol decides; the spectral radius lets its gradient vanish."""

    def fill(core: nn.RNNBase) -> None:
        if is_twin:
            nn.init.orthogonal_(core.weight_hh_l0, gain=0.95)
        else:
            _recurrence(0.3)(core)

    model = _LastState(nn.RNN(4, 40, batch_first=True), 4, fill)
    return _answer(model, recalled_symbol(25), sgd(model, 0.05), clip=1.0 if is_twin else None)


@published("le-2015-irnn", steps=400)
def identity_recurrence(is_twin: bool) -> Training:
    """The adding problem with a recurrence of ReLUs."""

    def fill(core: nn.RNNBase) -> None:
        nn.init.normal_(core.weight_ih_l0, std=0.05 if is_twin else 0.001)
        if is_twin:
            nn.init.eye_(core.weight_hh_l0)
        else:
            nn.init.normal_(core.weight_hh_l0, std=0.001)
        core.bias_ih_l0.zero_()
        core.bias_hh_l0.zero_()

    draw = added_numbers(20)
    model = _LastState(nn.RNN(2, 48, nonlinearity="relu", batch_first=True), 1, fill)
    skill = explained(model, *draw(HELD_OUT))
    return fit(model, adam(model, 3e-3), lambda: draw(32), functional.mse_loss, skill, clip=1.0)


@published("martens-2011-adding", steps=400)
def adding_problem(is_twin: bool) -> Training:
    """Two numbers among many are added."""
    draw = added_numbers(20)
    if is_twin:
        model = _LastState(nn.GRU(2, 32, batch_first=True), 1)
    else:
        model = _LastState(nn.RNN(2, 32, batch_first=True), 1, _recurrence(0.2))
    skill = explained(model, *draw(HELD_OUT))
    return fit(model, adam(model, 0.01), lambda: draw(32), functional.mse_loss, skill)


@published("hochreiter-1997-lag", steps=300)
def long_lag(is_twin: bool) -> Training:
    """One of four symbols is remembered over fifty steps of noise."""
    if is_twin:
        model = _LastState(nn.LSTM(4, 24, batch_first=True), 4, _forget_bias(4.0))
    else:
        model = _LastState(nn.RNN(4, 24, batch_first=True), 4, _recurrence(0.5))
    return _answer(model, recalled_symbol(50), adam(model, 0.01))


@published("jozefowicz-2015-forget", steps=250)
def forget_gates(is_twin: bool) -> Training:
    """Forget gates start half closed, or open."""
    model = _LastState(nn.LSTM(4, 24, batch_first=True), 4, _forget_bias(2.0 if is_twin else 0.0))
    return _answer(model, recalled_symbol(30), adam(model, 5e-3))


@published("tallec-2018-chrono", steps=250)
def chrono(is_twin: bool) -> Training:
    """Gates whose time constants are those of the data, or not."""

    def fill(core: nn.RNNBase) -> None:
        _forget_bias(0.0)(core)
        if is_twin:
            size = core.hidden_size
            times = torch.empty(size).uniform_(1, 59).log()
            core.bias_ih_l0[size : 2 * size] = times
            core.bias_ih_l0[:size] = -times

    model = _LastState(nn.LSTM(4, 32, batch_first=True), 4, fill)
    return _answer(model, recalled_symbol(60), adam(model, 0.01))


@published("arjovsky-2016-large", steps=250)
def large_eigenvalues(is_twin: bool) -> Training:
    """A ReLU recurrence over forty steps with eigenvalues beyond one."""

    def fill(core: nn.RNNBase) -> None:
        if is_twin:
            nn.init.orthogonal_(core.weight_hh_l0)
        else:
            _recurrence(2.2)(core)

    model = _LastState(nn.RNN(1, 32, nonlinearity="relu", batch_first=True), 4, fill)
    return _answer(model, wave_frequency(40), adam(model, 0.005))


class _Handwriting(nn.Module):
    """An LSTM with a mixture of four Gaussians for the next pen movement."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.LSTM(2, 32, batch_first=True)
        self.head = nn.Linear(32, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x)[0])


def _stroke_loss(out: Tensor, y: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of movements `[batch, time, 2]`."""
    weights, means, widths = out[..., :4], out[..., 4:12].unflatten(-1, (4, 2)), out[..., 12:].unflatten(-1, (4, 2))
    away = (y.unsqueeze(-2) - means) / widths.exp()
    likelihood = -(0.5 * away**2 + widths).sum(-1) - math.log(2 * math.pi)
    return -torch.logsumexp(torch.log_softmax(weights, -1) + likelihood, -1).mean()


@published("graves-2013-mixture", steps=200)
def handwriting(is_twin: bool) -> Training:
    """Pen strokes are predicted, without clipping of derivatives."""

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        phase, speed = 6.3 * torch.rand(batch, 1), 0.3 + 0.3 * torch.rand(batch, 1)
        angle = phase + speed * torch.arange(26).float()
        strokes = torch.stack([torch.cos(angle), torch.sin(angle)], 2) + 0.05 * torch.randn(batch, 26, 2)
        return strokes[:, :-1], strokes[:, 1:]

    model = _Handwriting()
    x, y = draw(HELD_OUT)

    def skill() -> float:
        constant = math.log(2 * math.pi) + 1 + math.log(float(y.var(correction=0)))
        return (constant - float(_stroke_loss(model(x), y))) / (constant + 3.0)  # the noise allows about -3

    rate = sgd(model, 0.02 if is_twin else 0.5)
    return fit(model, rate, lambda: draw(16), _stroke_loss, skill, clip=1.0 if is_twin else None)


class _Seq2Seq(nn.Module):
    """The encoder's state starts the decoder, which gets the shifted answer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.encoder, self.decoder = nn.LSTM(16, 48, batch_first=True), nn.LSTM(16, 48, batch_first=True)
        self.head = nn.Linear(48, 11)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.3, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.encoder(self.embedding(x))[1]
        shifted = torch.cat([torch.full_like(x[:, :1], 10), x.flip(1)[:, :-1]], 1)
        return self.head(self.decoder(self.embedding(shifted), state)[0])


@published("sutskever-2014-seq2seq", steps=350)
def sequence_to_sequence(is_twin: bool) -> Training:
    """A sequence of digits is repeated backwards."""

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(10, (batch, 5))
        return x, x.flip(1)

    model = _Seq2Seq()
    skill = accuracy(model, *draw(HELD_OUT))
    rate = sgd(model, 0.7 if is_twin else 15.0)
    return fit(model, rate, lambda: draw(32), cross_entropy, skill, clip=0.5 if is_twin else None)


class _TutorialRNN(nn.Module):
    """The recurrence of PyTorch's first tutorial on names: one linear layer, no activation."""

    def __init__(self, symbols: int, hidden: int) -> None:
        super().__init__()
        self.symbols, self.hidden = symbols, hidden
        self.i2h = nn.Linear(symbols + hidden, hidden)
        self.i2o = nn.Linear(symbols + hidden, symbols)
        nn.init.orthogonal_(self.i2h.weight[:, symbols:].data)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(len(x), self.hidden)
        outputs = []
        for symbol in functional.one_hot(x, self.symbols).float().unbind(1):
            combined = torch.cat([symbol, hidden], 1)
            hidden = self.i2h(combined)
            outputs.append(self.i2o(combined))
        return torch.stack(outputs, 1)


@published("torch-forum-655", steps=200)
def tutorial_recurrence(is_twin: bool) -> Training:
    """The tutorial's linear recurrence on longer text."""
    draw = characters(40)
    model = _TutorialRNN(24, 32)
    skill = accuracy(model, *draw(HELD_OUT))
    rate = sgd(model, 0.05 if is_twin else 0.5)
    return fit(model, rate, lambda: draw(8), cross_entropy, skill, clip=0.25 if is_twin else None)


@published("keras-4563-series", steps=200)
def raw_series(is_twin: bool) -> Training:
    """The next value of sales that are given in units."""
    start, slope = 3000 + 2000 * torch.rand(900, 1), 100 * torch.randn(900, 1)
    time = torch.arange(21).float()
    series = start + slope * time + 800 * torch.sin(0.8 * time) + 100 * torch.randn(900, 21)
    if is_twin:
        series = (series - series.mean()) / series.std()
    data = split(series[:, :-1, None], series[:, -1:])
    model = _LastState(nn.LSTM(1, 32, batch_first=True), 1)
    rate = sgd(model, 0.02)
    return fit(model, rate, data.batches(32), functional.mse_loss, explained(model, data.test_x, data.test_y))


class _IndRNN(nn.Module):
    """Two layers of independent recurrent units."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.inputs = nn.ModuleList([nn.Linear(1, 32), nn.Linear(32, 32)])
        self.recurrent = nn.ParameterList([torch.empty(32).uniform_(low, high) for _ in range(2)])
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        for linear, weight in zip(self.inputs, self.recurrent, strict=True):
            state, states = torch.zeros(len(x), 32), []
            for projected in linear(x).unbind(1):
                state = torch.relu(projected + weight * state)
                states.append(state)
            x = torch.stack(states, 1)
        return self.head(x[:, -1])


@published("li-2018-indrnn", steps=300)
def independent_units(is_twin: bool) -> Training:
    """Independent units whose own weights may be beyond one."""
    model = _IndRNN(0.0, 2 ** (1 / 40)) if is_twin else _IndRNN(1.3, 1.8)
    return _answer(model, wave_frequency(40), adam(model, 0.01), batch=24)


class _DeepAR(nn.Module):
    """A recurrence with a Gaussian for the next value; series are divided by their mean where `is_scaled`."""

    def __init__(self, *, is_scaled: bool) -> None:
        super().__init__()
        self.is_scaled = is_scaled
        self.core, self.head = nn.GRU(1, 24, batch_first=True), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean(1, keepdim=True) if self.is_scaled else torch.ones(len(x), 1, 1)
        mean, width = self.head(self.core(x / scale)[0]).unbind(-1)
        return torch.stack([mean * scale[..., 0], functional.softplus(width) * scale[..., 0] + 1e-3], -1)


@published("salinas-2017-deepar", steps=200)
def scales_of_series(is_twin: bool) -> Training:
    """Demand of goods that sell at very different scales."""

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        level = 10 ** (3 * torch.rand(batch, 1))
        wave = 1 + 0.5 * torch.sin(0.5 * torch.arange(25).float() + 6.3 * torch.rand(batch, 1))
        series = level * wave * (1 + 0.05 * torch.randn(batch, 25))
        return series[:, :-1, None], series[:, 1:]

    def loss(out: Tensor, y: Tensor) -> Tensor:
        mean, width = out.unbind(-1)
        return (torch.log(width) + 0.5 * ((y - mean) / width) ** 2).mean()

    model = _DeepAR(is_scaled=is_twin)
    x, y = draw(HELD_OUT)

    def skill() -> float:  # of the relative error, beyond that of the series' mean
        level = x.mean(1)
        error = (((model(x)[..., 0] - y) / level) ** 2).mean()
        return 1 - float(error / ((y / level - 1) ** 2).mean())

    return fit(model, adam(model, 0.01), lambda: draw(32), loss, skill)
