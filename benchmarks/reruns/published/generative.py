"""Generative models: adversarial networks, autoencoders, flows, scores and predicted variances."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reruns.published.data import HELD_OUT, digits, ring, split, two_moons
from benchmarks.reruns.published.feedforward import dense
from benchmarks.reruns.published.program import Training, adam, explained, fit, published, sgd


def _perceptron(sizes: list[int], activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    return dense(sizes, activation)


def _likeness(generator: nn.Module, noise: int, real: Callable[[int], Tensor]) -> Callable[[], float]:
    """Return a skill: how far the energy distance to real points is below that of all mass at the origin."""
    points, inputs = real(HELD_OUT), torch.randn(HELD_OUT, noise)

    def distance(points_a: Tensor, points_b: Tensor) -> float:
        return float(torch.cdist(points_a, points_b).mean())

    def energy(made: Tensor) -> float:
        return 2 * distance(made, points) - distance(made, made) - distance(points, points)

    def skill() -> float:
        return 1 - energy(generator(inputs)) / energy(torch.zeros(1, 2))

    return skill


def _adversaries(
    generator: nn.Module,
    critic: nn.Module,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    real: Callable[[int], Tensor],
    critic_loss: Callable[[Tensor, Tensor], Tensor],
    generator_loss: Callable[[Tensor], Tensor],
    *,
    noise: int = 4,
    critic_steps: int = 1,
    after_critic: Callable[[], None] = lambda: None,
) -> Training:
    """Return the loop of adversaries; the critic's loss gets real and made points, the generator's the made ones."""
    skill = _likeness(generator, noise, real)

    def step() -> Tensor:
        for _ in range(critic_steps):
            loss = critic_loss(real(64), generator(torch.randn(64, noise)).detach())
            optimizers[1].zero_grad()
            torch.autograd.backward(loss)
            optimizers[1].step()
            after_critic()
        loss = generator_loss(generator(torch.randn(64, noise)))
        optimizers[0].zero_grad()
        torch.autograd.backward(loss)
        optimizers[0].step()
        return loss

    models = {"generator": generator, "critic": critic}
    return Training(models=models, optimizers=list(optimizers), step=step, skill=skill)


@published("goodfellow-2014-saturating", steps=400)
def saturating(is_twin: bool) -> Training:
    """The generator minimizes log(1 - D), which saturates against a good discriminator."""
    generator, critic = _perceptron([4, 48, 48, 2]), _perceptron([2, 64, 64, 1])

    def discriminate(real: Tensor, made: Tensor) -> Tensor:
        return functional.softplus(-critic(real)).mean() + functional.softplus(critic(made)).mean()

    def deceive(made: Tensor) -> Tensor:
        logits = critic(made)
        return functional.softplus(-logits).mean() if is_twin else -functional.softplus(logits).mean()

    def real(count: int) -> Tensor:  # far from where the generator starts: the discriminator wins at once
        return ring(count) + 12

    optimizers = (adam(generator, 2e-3), adam(critic, 5e-3))
    return _adversaries(generator, critic, optimizers, real, discriminate, deceive, critic_steps=2)


@published("gulrajani-2017-clipping", steps=250)
def clipped_critic(is_twin: bool) -> Training:
    """A deep critic with its weights clipped passes no gradient on."""
    generator, critic = _perceptron([4, 48, 48, 2]), _perceptron([2, *[32] * 11, 1])

    def criticize(real: Tensor, made: Tensor) -> Tensor:
        loss = critic(made).mean() - critic(real).mean()
        if is_twin:
            between = (made + torch.rand(len(made), 1) * (real - made)).requires_grad_()
            (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
            loss = loss + 10 * ((slope.norm(dim=1) - 1) ** 2).mean()
        return loss

    def clip() -> None:
        for parameter in critic.parameters():
            parameter.data.clamp_(-0.01, 0.01)

    optimizers = tuple(torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.5, 0.9)) for net in (generator, critic))
    return _adversaries(
        generator,
        critic,
        optimizers,
        lambda count: ring(count) + 3,
        criticize,
        lambda made: -critic(made).mean(),
        critic_steps=2,
        after_critic=(lambda: None) if is_twin else clip,
    )


@published("lsgan-3-sigmoid", steps=400)
def squared_sigmoid(is_twin: bool) -> Training:
    """Least squares of a sigmoid, which saturates."""

    def real(count: int) -> Tensor:
        return torch.tensor([[14.0, 3.0], [14.0, -3.0]])[torch.randint(2, (count,))] + 0.3 * torch.randn(count, 2)

    generator, critic = _perceptron([4, 48, 48, 2]), _perceptron([2, 48, 48, 1])
    output = nn.Identity() if is_twin else nn.Sigmoid()

    def criticize(points: Tensor, made: Tensor) -> Tensor:
        return ((output(critic(points)) - 1) ** 2).mean() + (output(critic(made)) ** 2).mean()

    def deceive(made: Tensor) -> Tensor:
        return ((output(critic(made)) - 1) ** 2).mean()

    optimizers = (adam(generator, 2e-3), adam(critic, 2e-3))
    return _adversaries(generator, critic, optimizers, real, criticize, deceive)


class _VariationalAutoencoder(nn.Module):
    """Returns reconstruction, mean and log-variance, side by side."""

    def __init__(self, features: int, *, is_clamped: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = _perceptron([features, 48, 48, 12]), _perceptron([6, 48, 48, features])
        self.is_clamped = is_clamped

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        if self.is_clamped:
            log_variance = log_variance.clamp(-10, 5)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        return torch.cat([self.decoder(mean + (0.5 * log_variance).exp() * noise), mean, log_variance], 1)


@published("synthcity-331-vae", steps=250)
def unbounded_variance(is_twin: bool) -> Training:
    """A table in its own units, and the exp of an unbounded log-variance."""
    factors = torch.randn(1500, 3)
    x = 5000 * torch.tanh(factors @ torch.randn(3, 16)) + 250 * torch.randn(1500, 16)
    if is_twin:
        x = (x - x.mean(0)) / x.std(0)
    data = split(x, x)
    model = _VariationalAutoencoder(16, is_clamped=is_twin)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        made, mean, log_variance = out.split([16, 6, 6], 1)
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
        return ((made - y) ** 2).sum(1).mean() + divergence.mean()

    skill = explained(lambda inputs: model(inputs)[:, :16], data.test_x, data.test_y)
    return fit(model, adam(model, 5e-3), data.batches(32), loss, skill)


def _sparse(linear: nn.Linear) -> None:
    nn.init.sparse_(linear.weight, sparsity=max(0.0, 1 - 15 / linear.in_features), std=0.35)
    nn.init.zeros_(linear.bias)


@published("hinton-2006-autoencoder", steps=300)
def deep_autoencoder(is_twin: bool) -> Training:
    """A deep autoencoder that is not pretrained."""
    sizes = [64, 96, 48, 16, 48, 96, 64]

    def small(linear: nn.Linear) -> None:
        nn.init.normal_(linear.weight, std=0.1)
        nn.init.zeros_(linear.bias)

    data = digits(pixels="unit")
    model = dense(sizes, nn.Tanh, _sparse) if is_twin else dense(sizes, nn.Sigmoid, small)
    data.y, data.test_y = data.x, data.test_x
    return fit(
        model, sgd(model, 0.2), data.batches(32), functional.mse_loss, explained(model, data.test_x, data.test_y)
    )


class _Coupling(nn.Module):
    """Affine coupling layers on points in the plane; returns the code and the logarithm of the determinant."""

    def __init__(self, depth: int, *, is_bounded: bool) -> None:
        super().__init__()
        self.nets = nn.ModuleList([_perceptron([1, 32, 32, 2]) for _ in range(depth)])
        self.is_bounded = is_bounded

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x[:, :1], x[:, 1:]
        volume = torch.zeros(len(x), 1)
        for net in self.nets:
            scale, shift = net(kept).chunk(2, 1)
            if self.is_bounded:
                scale = torch.tanh(scale)
            changed = changed * scale.exp() + shift
            volume = volume + scale
            kept, changed = changed, kept
        return torch.cat([kept, changed, volume], 1)


@published("dinh-2017-coupling", steps=250)
def unbounded_scales(is_twin: bool) -> Training:
    """A flow whose scales are not bounded."""
    model = _Coupling(8, is_bounded=is_twin)
    held = 8 * two_moons(HELD_OUT)  # in the units of the table

    def loss(out: Tensor, y: Tensor) -> Tensor:
        del y
        return (0.5 * (out[:, :2] ** 2).sum(1) - out[:, 2]).mean() + math.log(2 * math.pi)

    def skill() -> float:  # beyond a Gaussian; the moons' likelihood is about a unit better
        gaussian = math.log(2 * math.pi) + 1 + float(held.var(0).log().sum()) / 2
        return gaussian - float(loss(model(held), held))

    def draw() -> tuple[Tensor, Tensor]:
        x = 8 * two_moons(64)
        return x, x

    return fit(model, adam(model, 0.01), draw, loss, skill)


@published("song-2019-score", steps=300)
def unweighted_scores(is_twin: bool) -> Training:
    """Scores of many noise levels, whose squares differ by four orders of magnitude."""
    net = _perceptron([3, 64, 64, 2], nn.Softplus)

    def noisy(count: int) -> tuple[Tensor, Tensor, Tensor]:
        sigma = torch.logspace(0.3, -1.5, 8)[torch.randint(8, (count, 1))]
        noise = torch.randn(count, 2)
        return torch.cat([two_moons(count) + sigma * noise, sigma.log()], 1), noise, sigma

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return net(x) / sigma if is_twin else net(x)

    optimizer = adam(net, 5e-3)
    x, noise, sigma = noisy(4 * HELD_OUT)

    def skill() -> float:
        return 1 - float(((sigma * score(x, sigma) + noise) ** 2).mean())

    def step() -> Tensor:
        x, noise, sigma = noisy(64)
        weight = sigma**2 if is_twin else 1.0
        loss = (weight * (score(x, sigma) + noise / sigma) ** 2).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss

    return Training(models=net, optimizers=optimizer, step=step, skill=skill)


@published("kendall-2017-variance", steps=300)
def predicted_variance(is_twin: bool) -> Training:
    """A network predicts a mean and a variance, or its logarithm."""
    x = 6 * torch.rand(1500, 1) - 3
    y = torch.sin(2 * x) + 0.02 * (1 + x.abs()) * torch.randn_like(x)
    data = split(x, y)
    model = _perceptron([1, 48, 48, 2], nn.Tanh)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        mean, spread = out.chunk(2, 1)
        if is_twin:
            return (0.5 * (-spread).exp() * (y - mean) ** 2 + 0.5 * spread).mean()
        variance = torch.relu(spread) + 1e-6
        return (0.5 * (y - mean) ** 2 / variance + 0.5 * torch.log(variance)).mean()

    skill = explained(lambda inputs: model(inputs)[:, :1], data.test_x, data.test_y)
    return fit(model, adam(model, 5e-3), data.batches(64), loss, skill)
