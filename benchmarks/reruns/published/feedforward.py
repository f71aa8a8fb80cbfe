"""Deep perceptrons: initial weights, activations and normalization of the papers on signal propagation."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reruns.published.data import digits, regression, split
from benchmarks.reruns.published.program import Training, accuracy, adam, explained, fit, published, sgd


def dense(
    sizes: list[int], activation: Callable[[], nn.Module], fill: Callable[[nn.Linear], object] | None = None
) -> nn.Sequential:
    """Return linear layers of these sizes with activations between them; `fill` may set the weights of each."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        if fill is not None:
            fill(linear)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


def normal(factor: float) -> Callable[[nn.Linear], object]:
    """Return a filler: normal weights with standard deviation `factor / sqrt(fan-in)`, zero biases."""

    def fill(linear: nn.Linear) -> None:
        nn.init.normal_(linear.weight, std=factor / linear.in_features**0.5)
        nn.init.zeros_(linear.bias)

    return fill


HE = normal(math.sqrt(2))


def on_digits(model: nn.Module, optimizer: torch.optim.Optimizer, *, batch: int = 32) -> Training:
    """Return a training that classifies digits."""
    data = digits()
    skill = accuracy(model, data.test_x, data.test_y)
    return fit(model, optimizer, data.batches(batch), functional.cross_entropy, skill)


@published("glorot-2010-sigmoid", steps=300)
def sigmoid_layers(is_twin: bool) -> Training:
    """Five hidden layers whose last sigmoids saturate."""
    sizes = [64, *[48] * 5, 10]

    def standard(linear: nn.Linear) -> None:
        nn.init.uniform_(linear.weight, -(linear.in_features**-0.5), linear.in_features**-0.5)
        nn.init.zeros_(linear.bias)

    if is_twin:
        model = dense(sizes, nn.Tanh, lambda linear: nn.init.xavier_uniform_(linear.weight))
    else:
        model = dense(sizes, nn.Sigmoid, standard)
    return on_digits(model, sgd(model, 0.05, momentum=0.0 if not is_twin else 0.9))


@published("saxe-2013-deep-linear", steps=250)
def deep_linear(is_twin: bool) -> Training:
    """Linear layers alone; their product shrinks."""

    def fill(linear: nn.Linear) -> None:
        if is_twin:
            nn.init.orthogonal_(linear.weight)
        else:
            nn.init.normal_(linear.weight, std=0.6 / linear.in_features**0.5)

    data = regression(16, targets=4)
    model = dense([16] * 24 + [4], nn.Identity, fill)
    return fit(
        model,
        sgd(model, 0.002),
        data.batches(32),
        functional.mse_loss,
        explained(model, data.test_x, data.test_y),
        clip=None,
    )


class _Highway(nn.Module):
    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.plain, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * torch.relu(self.plain(x)) + (1 - gate) * x


@published("srivastava-2015-plain", steps=250)
def plain_or_highway(is_twin: bool) -> Training:
    """Thirty layers, plain or with gates that carry the signal."""
    body: list[nn.Module] = []
    for _ in range(30):
        body += [_Highway(32, -3.0)] if is_twin else [nn.Linear(32, 32), nn.ReLU()]
    model = nn.Sequential(nn.Linear(64, 32), *body, nn.Linear(32, 10))
    return on_digits(model, sgd(model, 0.05))


@published("kumar-2017-sigmoid", steps=300)
def scaled_sigmoids(is_twin: bool) -> Training:
    """Sigmoids with the variance for tanh, or with Kumar's."""

    def fill(linear: nn.Linear) -> None:
        if is_twin:
            nn.init.normal_(linear.weight, std=3.6 / linear.in_features**0.5)
            nn.init.zeros_(linear.bias)
            with torch.no_grad():
                linear.bias.sub_(0.5 * linear.weight.sum(1))
        else:
            nn.init.xavier_normal_(linear.weight)

    model = dense([64, *[48] * 8, 10], nn.Sigmoid, fill)
    return on_digits(model, sgd(model, 0.02))


class _ConcatenatedReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.relu(x), torch.relu(-x)], -1)


@published("balduzzi-2017-shattered", steps=200)
def shattered(is_twin: bool) -> Training:
    """Forty plain layers whose gradients are like white noise."""
    body: list[nn.Module] = [nn.Linear(64, 24)]
    for _ in range(40):
        if is_twin:
            half = nn.Linear(48, 24)
            with torch.no_grad():
                same = nn.init.orthogonal_(torch.empty(24, 24))
                half.weight.copy_(torch.cat([same, -same], 1))
                half.bias.zero_()
            body += [_ConcatenatedReLU(), half]
        else:
            layer = nn.Linear(24, 24)
            HE(layer)
            body += [nn.ReLU(), layer]
    model = nn.Sequential(*body, nn.Linear(24, 10))
    return on_digits(model, sgd(model, 0.005))


class _Residual(nn.Module):
    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@published("yang-2019-batchnorm", steps=150)
def deep_batch_normalization(is_twin: bool) -> Training:
    """Forty normalized layers, each of which enlarges the gradient."""
    body: list[nn.Module] = []
    for _ in range(40):
        layer = [nn.Linear(24, 24), nn.BatchNorm1d(24), nn.ReLU()]
        body += [_Residual(layer[1], layer[2], layer[0])] if is_twin else layer
    model = nn.Sequential(nn.Linear(64, 24), *body, nn.Linear(24, 10))
    return on_digits(model, sgd(model, 0.02), batch=24)


@published("hanin-2018-variance", steps=200)
def large_variance(is_twin: bool) -> Training:
    """Twenty layers whose outputs double with each."""
    model = dense([64, *[40] * 20, 10], nn.ReLU, HE if is_twin else normal(2 * math.sqrt(2)))
    return on_digits(model, sgd(model, 0.002))


@published("lu-2019-born-dead", steps=400)
def born_dead(is_twin: bool) -> Training:
    """A deep, narrow network that is born dead, for the absolute value."""

    def fill(linear: nn.Linear) -> None:
        HE(linear)
        if is_twin:  # one weight or bias of each unit is positive
            whole = torch.cat([linear.weight.data, linear.bias.data[:, None]], 1)
            place = torch.randint(whole.shape[1], (len(whole),))
            whole[torch.arange(len(whole)), place] = torch.distributions.Beta(2.0, 1.0).sample((len(whole),))
            linear.weight.data, linear.bias.data = whole[:, :-1].clone(), whole[:, -1].clone()

    model = dense([1, *[3] * 20, 1], nn.ReLU, fill)
    x = 2 * math.sqrt(3) * (torch.rand(1500, 1) - 0.5)
    data = split(x, x.abs())
    return fit(
        model, adam(model, 3e-3), data.batches(64), functional.mse_loss, explained(model, data.test_x, data.test_y)
    )


@published("schoenholz-2017-chaotic", steps=200)
def chaotic_phase(is_twin: bool) -> Training:
    """Tanh layers in the chaotic phase."""
    model = dense([64, *[40] * 24, 10], nn.Tanh, normal(1.05 if is_twin else 4.0))
    return on_digits(model, sgd(model, 0.005))


@published("schoenholz-2017-ordered", steps=200)
def ordered_phase(is_twin: bool) -> Training:
    """Tanh layers in the ordered phase."""
    model = dense([64, *[40] * 24, 10], nn.Tanh, normal(1.05 if is_twin else 0.4))
    return on_digits(model, sgd(model, 0.005))


@published("klambauer-2017-relu", steps=250)
def self_normalizing(is_twin: bool) -> Training:
    """Twenty-eight plain layers, or self-normalizing ones."""
    sizes = [40, *[32] * 28, 2]
    x = torch.randn(1500, 40)
    data = split(x, (x[:, :5].sum(1) + x[:, 5] * x[:, 6] > 0).long())
    model = dense(sizes, nn.SELU, normal(1.0)) if is_twin else dense(sizes, nn.ReLU)
    return fit(
        model,
        sgd(model, 0.01),
        data.batches(32),
        functional.cross_entropy,
        accuracy(model, data.test_x, data.test_y),
    )


@published("brownlee-2019-targets", steps=250)
def raw_targets(is_twin: bool) -> Training:
    """A regression whose targets have a standard deviation of 150."""
    data = regression(20)
    factor = 1.0 if is_twin else 150.0
    data.y, data.test_y = factor * data.y, factor * data.test_y
    model = nn.Sequential(nn.Linear(20, 25), nn.ReLU(), nn.Linear(25, 1))
    return fit(
        model, sgd(model, 0.01), data.batches(32), functional.mse_loss, explained(model, data.test_x, data.test_y)
    )


@published("stats-284189-linear", steps=200)
def raw_feature(is_twin: bool) -> Training:
    """One linear unit on a raw feature, with the default rate."""
    x = 20 + 60 * torch.rand(800, 1)
    y = 4.0 * x + 30 + 15 * torch.randn(800, 1)
    if is_twin:
        x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    data = split(x, y)
    model = nn.Linear(1, 1)
    return fit(
        model, sgd(model, 0.01, 0.0), data.batches(8), functional.mse_loss, explained(model, data.test_x, data.test_y)
    )


@published("so-52800582-quartic", steps=400)
def quartic(is_twin: bool) -> Training:
    """The fourth power of raw numbers."""
    x = 200 * torch.rand(1500, 1) - 100
    y = x**4
    if is_twin:
        x, y = x / 100, y / 1e8
    data = split(x, y)
    model = nn.Sequential(
        nn.Linear(1, 48), nn.Sigmoid(), nn.Linear(48, 48), nn.ELU(), nn.Linear(48, 48), nn.ELU(), nn.Linear(48, 1)
    )
    return fit(
        model, adam(model, 5e-3), data.batches(32), functional.mse_loss, explained(model, data.test_x, data.test_y)
    )


@published("bengio-2012-rate", steps=200)
def too_high_rate(is_twin: bool) -> Training:
    """A learning rate beyond the largest that converges."""
    model = dense([64, 64, 64, 64, 10], nn.ReLU, HE)
    return on_digits(model, sgd(model, 0.02 if is_twin else 2.0))
