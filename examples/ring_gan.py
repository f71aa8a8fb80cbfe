"""A generative adversarial network that learns a ring of eight Gaussians.

The logged loss is the distance of the generated points from the ring (an energy distance, Székely and Rizzo 2013),
because the losses of generator and discriminator do not measure progress. Without options, training fails: the learning
rate is far too high for both networks. `--lr 0.002` repairs it.

    python ring_gan.py --steps 200
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

import gradmedic

NOISE = 8


def sample_ring(count: int) -> Tensor:
    """Return random points of the ring `[point, coordinate]`."""
    angles = torch.randint(8, (count,)) * (2 * math.pi / 8)
    return torch.stack([angles.cos(), angles.sin()], 1) * 2 + 0.05 * torch.randn(count, 2)


def compute_energy_distance(points: Tensor, others: Tensor) -> Tensor:
    """Return the distance of two distributions, estimated from samples; 0 where they are the same."""
    return (
        2 * torch.cdist(points, others).mean() - torch.cdist(points, points).mean() - torch.cdist(others, others).mean()
    )


def build_perceptron(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Return a network of three hidden layers."""
    layers: list[nn.Module] = []
    for size in (inputs, width, width):
        layers += [nn.Linear(size, width), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def main() -> None:
    """Train and report to gradmedic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, default=1.0, help="learning rate of generator and discriminator")
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    generator = build_perceptron(NOISE, arguments.width, 2)
    discriminator = build_perceptron(2, arguments.width, 1)
    optimizers = {
        name: torch.optim.Adam(model.parameters(), lr=arguments.lr, betas=(0.5, 0.9))
        for name, model in (("generator", generator), ("discriminator", discriminator))
    }

    run = gradmedic.init(project="examples", config=vars(arguments), trainable="ring-gan")
    run.watch({"generator": generator, "discriminator": discriminator}, list(optimizers.values()))
    for _ in range(arguments.steps):
        points = sample_ring(arguments.batch_size)
        generated = generator(torch.randn(arguments.batch_size, NOISE))
        loss = (
            functional.softplus(-discriminator(points)).mean()
            + functional.softplus(discriminator(generated.detach())).mean()
        )
        optimizers["discriminator"].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizers["discriminator"].step()
        loss = functional.softplus(-discriminator(generated)).mean()
        optimizers["generator"].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers["generator"].step()
        run.log(loss=compute_energy_distance(generated.detach(), points), generator_loss=loss)
    run.finish()


if __name__ == "__main__":
    main()
