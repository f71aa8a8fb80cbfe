"""Diffusion, adversaries, variational models, flows and densities (foreign-aside)."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.corpus.foreign.cases import Programs, blow_up, irreducible, lookalike, other, signal
from benchmarks.corpus.foreign.session import Session
from benchmarks.corpus.foreign.tasks import digits, r2

PROGRAMS: Final = Programs()


def ring(count: int, modes: int = 6) -> Tensor:
    """Draw points around the corners of a polygon."""
    angle = 2 * math.pi * torch.randint(modes, (count,)) / modes
    return torch.stack([angle.cos(), angle.sin()], 1) * 1.5 + 0.12 * torch.randn(count, 2)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Return the energy distance of two samples (Szekely and Rizzo 2013)."""
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def sample_skill(samples: Tensor, truth: Tensor) -> float:
    """Return the skill of samples: 1 if they are distributed as the truth, 0 for a point at its mean."""
    if not bool(torch.isfinite(samples).all()):
        return -math.inf
    point = truth.mean(0, keepdim=True).expand(len(samples), -1)
    return 1 - energy_distance(samples, truth) / energy_distance(point, truth)


def mlp(inputs: int, width: int, depth: int, outputs: int, activation: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    """Return a plain network."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(width if index else inputs, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def _noise_levels(count: int) -> tuple[Tensor, Tensor]:
    time = torch.rand(count, 1)
    return time, torch.cos(0.5 * math.pi * time).square()


def _denoise(s: Session, data: Tensor, held: Tensor, model: nn.Module) -> None:
    optimizer = s.optimizer(model.parameters())

    def noised(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        time, kept = _noise_levels(len(x))
        noise = torch.randn_like(x)
        return torch.cat([kept.sqrt() * x + (1 - kept).sqrt() * noise, time], 1), noise, kept

    def skill() -> float:
        inputs, noise, _ = noised(held)
        return r2(model(inputs), noise)

    s.skill(skill)

    def loss_at(step: int) -> Tensor:
        x = data[torch.randint(len(data), (s.batch,))]
        inputs, noise, kept = noised(s.corrupt(x, step))
        error = (model(inputs) - noise).pow(2)
        if s.is_at("divide_at", step):
            kept[0] = 0.0
            error = error / kept
        if s.get("shuffled"):
            error = (model(inputs) - noise[torch.randperm(len(noise))]).pow(2)
        loss: Tensor = error.mean()
        return loss

    s.fit(model, optimizer, loss_at)


DIFFUSION_FAULTS: Final = (
    blow_up("rate-too-high", optimizer="sgd", lr=60.0, momentum=0.9),
    blow_up("division-by-zero", divide_at=115),
    blow_up("missing-value", nan_at=140),
    irreducible("wrong-noise", shuffled=True),
    other("no-rate", lr=1e-9),
    lookalike("zero-output", zero_output=True),
    lookalike("warm-up", warmup=60),
    lookalike("bad-batch", bad_batch=(130, 30.0), clip=1.0),
)


@PROGRAMS.add(
    "diffusion",
    blow_up("root-inside", trap=("1", "root", 125)),
    *DIFFUSION_FAULTS,
    signal("deep-sigmoid", depth=9, activation="sigmoid", optimizer="sgd", lr=0.05),
    min_skill=0.25,
    variants=({"width": 64, "depth": 2, "lr": 4e-3}, {"width": 48, "depth": 3, "lr": 3e-3, "optimizer": "adamw"}),
    steps=300,
    batch=128,
    activation="silu",
)
def noise_of_a_ring(s: Session) -> None:
    """Predict the noise in points of the plane (Ho et al. 2020)."""
    activation = nn.Sigmoid if s["activation"] == "sigmoid" else nn.SiLU
    model = s.make(mlp(3, s["width"], s["depth"], 2, activation))
    if s.get("zero_output"):
        for parameter in list(model.parameters())[-2:]:
            nn.init.zeros_(parameter)
    _denoise(s, ring(4000), ring(1000), model)


@PROGRAMS.add(
    "diffusion",
    blow_up("mild-jump", jump=(140, 60.0)),
    blow_up("branch-not-taken", trap=("1", "where", 100)),
    *DIFFUSION_FAULTS,
    signal("tiny-weights", gain=0.02, optimizer="sgd", lr=0.02),
    min_skill=0.25,
    variants=({"width": 96, "depth": 2, "lr": 3e-3}, {"width": 128, "depth": 2, "lr": 2e-3, "cosine": True}),
    steps=260,
    batch=64,
)
def noise_of_images(s: Session) -> None:
    """Predict the noise in small images."""
    data = digits()
    model = s.make(mlp(65, s["width"], s["depth"], 64))
    if s.get("zero_output"):
        for parameter in list(model.parameters())[-2:]:
            nn.init.zeros_(parameter)
    _denoise(s, 2 * data.x - 1, 2 * data.test_x - 1, model)


def _adversaries(s: Session, *, wasserstein: bool) -> None:
    """Train a generator and its critic by turns."""
    generator = s.make(mlp(4, s["width"], 2, 2, nn.ReLU))
    critic = mlp(2, s["width"], 2, 1, nn.LeakyReLU)
    first = s.optimizer(generator.parameters(), rate=s.get("generator_rate", 1.0))
    second = s.optimizer(critic.parameters(), rate=s.get("critic_rate", 1.0))
    truth, noise = ring(600), torch.randn(600, 4)
    s.skill(lambda: sample_skill(generator(noise), truth))
    s.run.watch({"generator": generator, "critic": critic}, [first, second])
    for step in range(s.steps):
        s.set_rate(first, step)
        s.set_rate(second, step)
        for _ in range(s.get("critic_steps", 1)):
            real = s.corrupt(ring(s.batch), step)
            fake = generator(torch.randn(s.batch, 4)).detach()
            second.zero_grad()
            if wasserstein:
                mixed = (torch.rand(s.batch, 1) * (real - fake) + fake).requires_grad_()
                slope = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)[0]
                size = (
                    slope.norm(dim=1) if not s.get("root_at") else (slope * (step != s["root_at"])).pow(2).sum(1).sqrt()
                )
                penalty = s.get("penalty", 3.0) * (size - 1).pow(2).mean()
                loss_c = critic(fake).mean() - critic(real).mean() + penalty
            elif s.get("naive"):
                loss_c = -(critic(real).sigmoid().log() + (1 - critic(fake).sigmoid()).log()).mean()
            else:
                loss_c = F.softplus(-critic(real)).mean() + F.softplus(critic(fake)).mean()
            loss_c.backward()
            second.step()
        fake = generator(torch.randn(s.batch, 4))
        score = critic(s.between(fake))
        loss_g = -score.mean() if wasserstein else F.softplus(-score).mean()
        first.zero_grad()
        loss_g.backward()
        first.step()
        s.run.log(loss_g, critic_loss=float(loss_c.detach()))


@PROGRAMS.add(
    "adversaries",
    blow_up("root-inside", trap=("1", "root", 140)),
    blow_up("missing-value", nan_at=130),
    blow_up("log-of-zero", naive=True, critic_rate=300.0, optimizer="sgd"),
    blow_up("rate-jump", jump=(150, 1e6), optimizer="sgd", lr=0.1),
    other("no-rate", lr=1e-9),
    other("detached-fakes", detached=True),
    lookalike("faster-critic", critic_rate=3.0),
    lookalike("declared", objective="none"),
    min_skill=0.6,
    surrogate=True,
    variants=({"width": 64, "lr": 1e-3}, {"width": 48, "lr": 1.2e-3, "batch": 96}),
    steps=400,
    batch=64,
    critic_rate=2.0,
    beta1=0.5,
    beta2=0.9,
)
def ring_by_adversaries(s: Session) -> None:
    """Generate points with a classifier as adversary (Goodfellow et al. 2014)."""
    _adversaries(s, wasserstein=False)


@PROGRAMS.add(
    "adversaries",
    blow_up("branch-not-taken", trap=("3", "where", 90)),
    blow_up("root-at-zero", root_at=110),
    blow_up("heavy-penalty", penalty=1e5, optimizer="sgd", lr=0.05),
    blow_up("missing-value", nan_at=120),
    other("no-rate", lr=1e-9),
    other("detached-fakes", detached=True),
    lookalike("critic-first", critic_steps=3, steps=250),
    lookalike("critic-faster", critic_rate=1.5),
    min_skill=0.6,
    surrogate=True,
    variants=({"width": 48, "lr": 2e-3}, {"width": 40, "lr": 3e-3}),
    steps=300,
    batch=64,
    beta1=0.5,
    beta2=0.9,
    critic_steps=2,
)
def ring_by_a_critic(s: Session) -> None:
    """Generate points with a critic of bounded slope (Gulrajani et al. 2017)."""
    _adversaries(s, wasserstein=True)


def _variational(s: Session, *, bernoulli: bool) -> None:
    """Train a variational autoencoder on small images."""
    data, width, code = digits(), s["width"], s["code"]
    encoder, decoder = mlp(64, width, 1, 2 * code, nn.ReLU), mlp(code, width, 1, 64, nn.ReLU)
    model = s.make(nn.ModuleDict({"encoder": encoder, "decoder": decoder}))
    optimizer = s.optimizer(model.parameters())

    def skill() -> float:
        output = decoder(encoder(data.test_x).chunk(2, 1)[0])
        return r2(output.sigmoid() if bernoulli else output, data.test_x)

    s.skill(skill)

    def loss_at(step: int) -> Tensor:
        x = s.corrupt(data.draw(64)[0], step)
        mean, log_variance = encoder(x).chunk(2, 1)
        log_variance = log_variance * s.get("variance_factor", 1.0)
        if not s.get("unbounded"):
            log_variance = log_variance.clamp(-8, 8)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        output = decoder(s.between(z))
        if bernoulli and s.get("naive"):
            chance = (s["naive"] * output).sigmoid()
            fit = -(x * chance.log() + (1 - x) * (1 - chance).log()).sum(1).mean()
        elif bernoulli:
            fit = F.binary_cross_entropy_with_logits(output, x.clamp(0, 1), reduction="none").sum(1).mean()
        else:
            fit = (output - x).pow(2).sum(1).mean()
        divergence = 0.5 * (mean.pow(2) + log_variance.exp() - 1 - log_variance).sum(1).mean()
        loss: Tensor = fit + s.get("beta", 0.1) * divergence
        return loss

    s.fit(model, optimizer, loss_at)


@PROGRAMS.add(
    "variational",
    blow_up("root-inside", trap=("encoder", "root", 120)),
    blow_up("unbounded-variance", unbounded=True, variance_factor=400.0, born_in=r"encoder\..*"),
    blow_up("rate-jump", jump=(130, 1e4), optimizer="sgd", lr=0.005),
    blow_up("missing-pixel", nan_at=115),
    other("collapsed", beta=60.0),
    other("no-rate", lr=1e-9),
    other("detached-code", detached=True, beta=5.0),
    lookalike("annealed", beta=0.02, warmup=80),
    lookalike("mean-of-pixels", loss_factor=1 / 64),
    min_skill=0.25,
    variants=({"width": 64, "code": 8, "lr": 4e-3}, {"width": 96, "code": 12, "lr": 3e-3, "optimizer": "adamw"}),
    steps=260,
)
def variational_images(s: Session) -> None:
    """A variational autoencoder with Gaussian outputs (Kingma and Welling 2013)."""
    _variational(s, bernoulli=False)


@PROGRAMS.add(
    "variational",
    blow_up("branch-not-taken", trap=("encoder", "where", 90)),
    blow_up("log-of-zero", naive=60.0, inputs_factor=1.0),
    blow_up("unbounded-variance", unbounded=True, variance_factor=400.0, born_in=r"encoder\..*"),
    blow_up("rate-too-high", optimizer="sgd", lr=1e3),
    signal("zero-weights", gain=0.0, bias=0.0),
    other("collapsed", beta=80.0),
    other("no-rate", lr=1e-9),
    lookalike("restarts", restarts=60),
    lookalike("clipped", clip=0.5),
    min_skill=0.2,
    variants=({"width": 64, "code": 6, "lr": 5e-3}, {"width": 80, "code": 10, "lr": 3e-3, "optimizer": "nadam"}),
    steps=260,
)
def bernoulli_images(s: Session) -> None:
    """A variational autoencoder with Bernoulli outputs."""
    _variational(s, bernoulli=True)


class Coupling(nn.Module):
    """An affine coupling layer (Dinh et al. 2016)."""

    def __init__(self, width: int, flipped: bool, bound: float | None) -> None:
        super().__init__()
        self.net, self.flipped, self.bound = mlp(1, width, 1, 2, nn.Tanh), flipped, bound

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformed points and the logarithm of the change of volume."""
        kept, moved = x.flip(1).unbind(1) if self.flipped else x.unbind(1)
        scale, shift = self.net(kept[:, None]).unbind(1)
        scale = self.bound * torch.tanh(scale) if self.bound is not None else scale
        moved = moved * scale.exp() + shift
        return torch.stack([moved, kept] if self.flipped else [kept, moved], 1), scale


@PROGRAMS.add(
    "flows",
    blow_up("exponential-overflow", bound=None, gain=25.0, inputs_factor=4.0),
    blow_up("rate-jump", jump=(140, 2e3), bound=None, optimizer="sgd", lr=0.02),
    blow_up("missing-value", nan_at=120),
    other("no-rate", lr=1e-9),
    lookalike("below-zero", offset=-4.0),
    lookalike("warm-up", warmup=80),
    lookalike("clipped", clip=1.0, bound=3.0),
    min_skill=0.2,
    variants=(
        {"width": 24, "layers": 4, "lr": 8e-3},
        {"width": 32, "layers": 6, "lr": 5e-3, "optimizer": "adamw"},
        {"width": 16, "layers": 5, "lr": 6e-3},
    ),
    steps=260,
    batch=128,
    bound=2.0,
)
def flow_of_moons(s: Session) -> None:
    """Fit a density in the plane by a normalizing flow."""
    layers = [Coupling(s["width"], bool(i % 2), s["bound"]) for i in range(s["layers"])]
    model = s.make(nn.Sequential(*layers))
    optimizer = s.optimizer(model.parameters())

    def moons(count: int) -> Tensor:
        angle, upper = math.pi * torch.rand(count), torch.rand(count) < 0.5
        x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
        y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
        return 1.5 * torch.stack([x, y], 1) + 0.1 * torch.randn(count, 2)

    def surprise(x: Tensor) -> Tensor:
        volume = torch.zeros(len(x))
        for layer in layers:
            x, change = layer(x)
            volume = volume + change
        return (0.5 * x.pow(2).sum(1) + math.log(2 * math.pi) - volume).mean()

    held = moons(1000)
    gaussian = -0.5 * float(torch.logdet(held.T.cov())) - math.log(2 * math.pi * math.e)
    s.skill(lambda: -float(surprise(held)) - gaussian)
    s.fit(model, optimizer, lambda step: surprise(s.corrupt(moons(s.batch), step)) + s.get("offset", 0.0))


@PROGRAMS.add(
    "densities",
    blow_up("root-inside", trap=("1", "root", 160)),
    blow_up("collapsed-width", naive=True, outlier_at=140),
    blow_up("rate-too-high", optimizer="sgd", lr=30.0, naive=True),
    blow_up("missing-value", nan_at=150),
    signal("tiny-weights", gain=0.01, depth=5, optimizer="sgd", lr=0.01),
    other("no-rate", lr=1e-9),
    irreducible("shuffled-targets", shuffled=True),
    lookalike("outliers", outlier_at=140),
    lookalike("negative-loss", target_factor=0.02, lr=4e-3),
    min_skill=0.4,
    variants=(
        {"width": 32, "depth": 2, "lr": 5e-3},
        {"width": 48, "depth": 2, "lr": 4e-3, "optimizer": "radam"},
        {"width": 64, "depth": 3, "lr": 2e-3},
    ),
    steps=300,
    batch=96,
)
def mixture_of_widths(s: Session) -> None:
    """Predict a mixture of Gaussians (Bishop 1994)."""
    factor = s.get("target_factor", 1.0)
    x = 2 * torch.rand(3000, 1) - 1
    y = factor * (torch.sin(4 * x) + torch.where(torch.rand(3000, 1) < 0.5, 0.3, -0.3) + 0.05 * torch.randn(3000, 1))
    targets = s.labels(y)
    model = s.make(mlp(1, s["width"], s["depth"], 9, nn.Tanh))
    optimizer = s.optimizer(model.parameters())

    def skill() -> float:
        pi, mu, _ = model(x[:800]).chunk(3, 1)
        return r2((pi.softmax(1) * mu * factor).sum(1, keepdim=True) / factor, torch.sin(4 * x[:800]))

    s.skill(skill)

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(x), (s.batch,))
        inputs, target = s.corrupt(x[index], step), targets[index]
        if s.is_at("outlier_at", step):
            target = target.clone()
            target[:3] += 60 * factor
        pi, mu, width = model(inputs).chunk(3, 1)
        mu = mu * factor
        if s.get("naive"):
            sigma = torch.exp(width) * factor
            density = (pi.softmax(1) * torch.exp(-0.5 * ((target - mu) / sigma) ** 2) / sigma).sum(1)
            return -torch.log(density).mean()
        sigma = factor * (F.softplus(width) + 0.05)
        inside = pi.log_softmax(1) - sigma.log() - 0.5 * ((target - mu) / sigma) ** 2
        return -torch.logsumexp(inside, 1).mean()

    s.fit(model, optimizer, loss_at)
