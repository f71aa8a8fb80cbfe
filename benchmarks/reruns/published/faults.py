"""Faults of programs from studies of bugs: dead units, zero or huge weights, numerical mistakes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reruns.published.data import blobs, digits
from benchmarks.reruns.published.feedforward import dense, on_digits
from benchmarks.reruns.published.program import Training, accuracy, fit, published, sgd


@published("autotrainer-2021-dying", steps=250)
def dying_units(is_twin: bool) -> Training:
    """Units with negative biases that die under a large rate."""

    def fill(linear: nn.Linear) -> None:
        if not is_twin:
            nn.init.constant_(linear.bias, -2.0)

    data = blobs()
    model = dense([12, *[32] * 4, 6], nn.LeakyReLU if is_twin else nn.ReLU, fill)
    return fit(
        model,
        sgd(model, 0.02),
        data.batches(32),
        functional.cross_entropy,
        accuracy(model, data.test_x, data.test_y),
    )


@published("humbatova-2020-zeros", steps=250)
def zero_weights(is_twin: bool) -> Training:
    """All weights start at zero."""

    def fill(linear: nn.Linear) -> None:
        if not is_twin:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    model = dense([64, 48, 48, 48, 10], nn.ReLU, fill)
    return on_digits(model, sgd(model, 0.05))


@published("braiek-2022-unit-normal", steps=200)
def unit_normal(is_twin: bool) -> Training:
    """Weights from a normal distribution of unit variance."""

    def fill(linear: nn.Linear) -> None:
        if is_twin:
            nn.init.xavier_normal_(linear.weight)
        else:
            nn.init.normal_(linear.weight)

    model = dense([64, *[64] * 5, 10], nn.ReLU, fill)
    return on_digits(model, sgd(model, 0.02))


@published("zhang-2018-log-zero", steps=200)
def log_of_zero(is_twin: bool) -> Training:
    """The cross entropy is written by hand, as the TensorFlow tutorial did."""
    data = digits(pixels="bytes")
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def by_hand(logits: Tensor, y: Tensor) -> Tensor:
        chances = torch.softmax(logits, 1)
        return -(functional.one_hot(y, 10) * torch.log(chances)).sum(1).mean()

    loss = functional.cross_entropy if is_twin else by_hand
    return fit(model, sgd(model, 1e-4), data.batches(32), loss, accuracy(model, data.test_x, data.test_y))


@published("grist-2021-exp", steps=200)
def overflowing_exp(is_twin: bool) -> Training:
    """The softmax is written by hand, without subtracting the largest logit."""
    data = blobs(features=20, spread=100.0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 6))

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        if is_twin:
            logits = logits - logits.max(1, keepdim=True).values
        powers = logits.exp()
        chances = powers / powers.sum(1, keepdim=True)
        return -torch.log(chances.gather(1, y[:, None]) + 1e-8).mean()

    return fit(model, sgd(model, 1e-3), data.batches(32), loss, accuracy(model, data.test_x, data.test_y))
