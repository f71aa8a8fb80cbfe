"""Convolutional networks: depth without normalization, images as they come, detection and segmentation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reruns.published.data import Table, digits, split, stripes
from benchmarks.reruns.published.program import Training, accuracy, explained, fit, published, sgd


def _plain(
    depth: int,
    width: int,
    classes: int,
    fill: Callable[[Tensor], object],
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
    normalization: Callable[[int], nn.Module] | None = None,
    stride: int = 1,
    padding_mode: str = "zeros",
) -> nn.Sequential:
    """Return 3x3 convolutions with activations between them, then the means of four quarters and a linear layer.

    The first convolution has the stride. Small images have many borders; in a very deep network, zeros behind them
    would shrink the signal.
    """
    layers: list[nn.Module] = []
    for index in range(depth):
        convolution = nn.Conv2d(
            width if index else 1, width, 3, padding=1, stride=1 if index else stride, padding_mode=padding_mode
        )
        fill(convolution.weight)
        nn.init.zeros_(convolution.bias)
        layers += [convolution, *([normalization(width)] if normalization else []), activation()]
    return nn.Sequential(*layers, nn.AvgPool2d(4 // stride), nn.Flatten(), nn.Linear(4 * width, classes))


def _he(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def _unchanged(weight: Tensor) -> None:
    del weight


def _classify(model: nn.Module, data: Table, lr: float, *, batch: int = 16, clip: float | None = None) -> Training:
    skill = accuracy(model, data.test_x, data.test_y)
    return fit(model, sgd(model, lr), data.batches(batch), functional.cross_entropy, skill, clip=clip)


@published("he-2015-xavier-30", steps=200)
def thirty_layers(is_twin: bool) -> Training:
    """Thirty convolutions with the variance for linear units."""
    fill = _he if is_twin else nn.init.xavier_normal_
    model = _plain(30, 14, 4, fill, stride=2, padding_mode="circular")
    return _classify(model, stripes(), 0.004)


@published("simonyan-2014-normal", steps=200)
def small_normal_weights(is_twin: bool) -> Training:
    """The eleven-layer network of VGG, which is too deep for fixed small weights."""
    model = _plain(11, 12, 10, _he if is_twin else lambda weight: nn.init.normal_(weight, std=0.01))
    return _classify(model, digits(as_images=True), 0.03)


class _ResidualBlock(nn.Module):
    """Two convolutions beside an identity path."""

    def __init__(self, width: int, scale: float | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        _he(self.first.weight)
        _he(self.second.weight)
        self.scale = None if scale is None else nn.Parameter(torch.tensor([scale]))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.second(torch.relu(self.first(torch.relu(x))))
        return x + branch if self.scale is None else x + self.scale * branch


def _residual(blocks: list[_ResidualBlock], width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        *blocks,
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


@published("zhang-2019-fixup", steps=120)
def fixup(is_twin: bool) -> Training:
    """Residual blocks without normalization, whose outputs double with each."""
    count = 24
    blocks = [_ResidualBlock(6) for _ in range(count)]
    if is_twin:
        for block in blocks:
            with torch.no_grad():
                block.first.weight.mul_(count**-0.5)
            nn.init.zeros_(block.second.weight)
    return _classify(_residual(blocks, 6, 10), digits(as_images=True), 0.05)


class _DenseBlock(nn.Module):
    """Two linear layers beside an identity path, with a scalar on the branch or not."""

    def __init__(self, width: int, *, is_skipped: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        _he(self.first.weight)
        _he(self.second.weight)
        self.alpha = nn.Parameter(torch.zeros(1)) if is_skipped else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * self.second(torch.relu(self.first(torch.relu(x))))


@published("de-2020-skipinit", steps=200)
def skip_init(is_twin: bool) -> Training:
    """Residual blocks without normalization or a small initial branch."""
    data = digits()
    blocks = [_DenseBlock(40, is_skipped=is_twin) for _ in range(20)]
    return _classify(nn.Sequential(nn.Linear(64, 40), *blocks, nn.ReLU(), nn.Linear(40, 10)), data, 0.02)


@published("bjorck-2018-rate", steps=150)
def rate_for_normalized(is_twin: bool) -> Training:
    """A rate that a network stands only with batch normalization."""
    model = _plain(6, 10, 4, _he, normalization=nn.BatchNorm2d if is_twin else None)
    return _classify(model, stripes(), 0.5)


@published("ioffe-2015-sigmoid", steps=200)
def normalized_sigmoids(is_twin: bool) -> Training:
    """Convolutions with sigmoids, which learn only with batch normalization."""
    normalization = partial(nn.BatchNorm2d, momentum=0.5) if is_twin else None
    model = _plain(5, 10, 4, nn.init.xavier_uniform_, activation=nn.Sigmoid, normalization=normalization)
    return _classify(model, stripes(), 0.05, batch=32)


@published("umlaut-2021-pixels", steps=150)
def byte_pixels(is_twin: bool) -> Training:
    """Images as bytes."""
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(192, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return _classify(model, digits(pixels="unit" if is_twin else "bytes", as_images=True), 0.05)


class _AdaptiveClip(torch.optim.SGD):
    """SGD that limits the gradient of each unit to a share of the norm of its weights."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    weights = parameter.detach().flatten(1 if parameter.dim() > 1 else 0).norm(dim=-1, keepdim=True)
                    gradients = parameter.grad.flatten(1 if parameter.dim() > 1 else 0).norm(dim=-1, keepdim=True)
                    factor = (0.02 * weights.clamp_min(1e-3) / gradients.clamp_min(1e-6)).clamp_max(1.0)
                    parameter.grad.mul_(factor.view(-1, *[1] * (parameter.dim() - 1)))
        super().step()


@published("brock-2021-agc", steps=120)
def normalizer_free(is_twin: bool) -> Training:
    """A normalizer-free network at the rate of a large batch."""
    data = digits(as_images=True)
    model = _residual([_ResidualBlock(8, 0.3) for _ in range(8)], 8, 10)
    rate = _AdaptiveClip(model.parameters(), lr=0.3, momentum=0.9) if is_twin else sgd(model, 0.3)
    skill = accuracy(model, data.test_x, data.test_y)
    return fit(model, rate, data.batches(32), functional.cross_entropy, skill)


class _UNet(nn.Module):
    """Two levels down and up again, with concatenated skips."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.bottom1, self.bottom2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.up1, self.up2 = nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(24, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 1, 1)
        for layer in self.children():
            nn.init.normal_(layer.weight, std=factor * (2 / layer.weight[0].numel()) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.down1(x))
        coarse = torch.relu(self.down2(functional.max_pool2d(fine, 2)))
        deep = torch.relu(self.bottom2(torch.relu(self.bottom1(functional.max_pool2d(coarse, 2)))))
        up = functional.interpolate(deep, scale_factor=2)
        up = torch.relu(self.up1(torch.cat([up, coarse], 1)))
        up = functional.interpolate(up, scale_factor=2)
        return self.head(torch.relu(self.up2(torch.cat([up, fine], 1))))


def _discs() -> Table:
    """Return noisy images `[batch, 1, 16, 16]` of a disc, and their masks."""
    grid = torch.arange(16).float()
    centre, radius = 4 + 8 * torch.rand(600, 2), 2 + 3 * torch.rand(600)
    away = (grid.view(1, -1, 1) - centre[:, 0, None, None]) ** 2 + (grid.view(1, 1, -1) - centre[:, 1, None, None]) ** 2
    mask = (away < radius[:, None, None] ** 2).float().unsqueeze(1)
    return split(mask + 0.5 * torch.randn_like(mask), mask)


@published("ronneberger-2015-unet", steps=120)
def segmentation(is_twin: bool) -> Training:
    """A segmentation whose weights are three times too large."""
    data, model = _discs(), _UNet(1.0 if is_twin else 3.0)

    def skill() -> float:
        return explained(lambda x: torch.sigmoid(model(x)), data.test_x, data.test_y)()

    return fit(model, sgd(model, 0.05), data.batches(8), functional.binary_cross_entropy_with_logits, skill)


def _boxes() -> Table:
    """Return images `[batch, 1, 16, 16]` of a bright box, and its centre and size in pixels `[batch, 4]`."""
    grid = torch.arange(16).float()
    centre, half = 5 + 6 * torch.rand(900, 2), 1 + 3 * torch.rand(900, 2)
    inside = ((grid.view(1, -1, 1) - centre[:, :1, None]).abs() < half[:, :1, None]) & (
        (grid.view(1, 1, -1) - centre[:, 1:, None]).abs() < half[:, 1:, None]
    )
    return split(inside.float().unsqueeze(1) + 0.1 * torch.randn(900, 1, 16, 16), torch.cat([centre, 2 * half], 1))


def _detector() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.LeakyReLU(0.1),
        nn.Linear(64, 4),
    )


class _Boxes(nn.Module):
    """Centres as they are, sizes as powers of e."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _detector()

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        return torch.cat([8 + 4 * out[:, :2], 4 * out[:, 2:].exp()], 1)


@published("redmon-2016-yolo", steps=250)
def detection_without_warmup(is_twin: bool) -> Training:
    """A detector that starts at its high rate."""
    data, model = _boxes(), _Boxes()
    skill = explained(model, data.test_x, data.test_y)
    nn.init.constant_(model.body[-1].bias, 1.5)  # the sizes start far too large
    rate = sgd(model, 0.01)
    return fit(model, rate, data.batches(16), functional.mse_loss, skill, warmup=200 if is_twin else 0)


@published("girshick-2015-l2", steps=250)
def outliers_in_boxes(is_twin: bool) -> Training:
    """Box regression in which one target in thirty is far off."""
    data, model = _boxes(), _detector()
    data.y = torch.where(torch.rand(len(data.y), 1) < 1 / 30, 40 * data.y, data.y)
    loss = functional.smooth_l1_loss if is_twin else functional.mse_loss
    return fit(model, sgd(model, 5e-3), data.batches(16), loss, explained(model, data.test_x, data.test_y))


@published("kim-2016-vdsr", steps=150)
def super_resolution(is_twin: bool) -> Training:
    """Ten convolutions that sharpen images, at a high rate."""
    sharp = stripes(12).x[:700]
    blurred = functional.avg_pool2d(sharp, 3, stride=1, padding=1)
    data = split(blurred, sharp - blurred)
    layers: list[nn.Module] = [nn.Conv2d(1, 10, 3, padding=1), nn.ReLU()]
    for _ in range(8):
        layers += [nn.Conv2d(10, 10, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(10, 1, 3, padding=1))
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            _he(layer.weight)
    skill = explained(model, data.test_x, data.test_y)
    clip = 0.02 if is_twin else None
    return fit(model, sgd(model, 1.0), data.batches(8), functional.mse_loss, skill, clip=clip)


def _delta_orthogonal(weight: Tensor) -> None:
    nn.init.zeros_(weight)
    with torch.no_grad():
        side = max(weight.shape[:2])
        weight[:, :, 1, 1] = 1.05 * nn.init.orthogonal_(torch.empty(side, side))[: weight.shape[0], : weight.shape[1]]


@published("xiao-2018-tanh", steps=120)
def deep_tanh(is_twin: bool) -> Training:
    """Plain tanh convolutions below the critical scale."""

    def small(weight: Tensor) -> None:
        nn.init.normal_(weight, std=0.6 / math.sqrt(weight[0].numel()))

    model = _plain(24, 12, 4, _delta_orthogonal if is_twin else small, activation=nn.Tanh, stride=2)
    return _classify(model, stripes(), 0.02)
