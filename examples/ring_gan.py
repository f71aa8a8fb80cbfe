"""A generative adversarial network that learns a ring of eight Gaussians.

What it logs as its loss is how far the generated points are from the ring (an energy distance, Székely and Rizzo
2013): the losses of the two players say little. As it stands it fails as such games do: both learn far too fast, and
drive each other away. `--lr 0.002` repairs it.

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


def ring(count: int) -> Tensor:
    """Return points of the ring."""
    angles = torch.randint(8, (count,)) * (2 * math.pi / 8)
    return torch.stack([angles.cos(), angles.sin()], 1) * 2 + 0.05 * torch.randn(count, 2)


def energy_distance(points: Tensor, others: Tensor) -> Tensor:
    """Return the distance of two distributions, estimated from samples; 0 where they are the same."""
    return (
        2 * torch.cdist(points, others).mean() - torch.cdist(points, points).mean() - torch.cdist(others, others).mean()
    )


def perceptron(inputs: int, width: int, outputs: int) -> nn.Sequential:
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
    generator = perceptron(NOISE, arguments.width, 2)
    discriminator = perceptron(2, arguments.width, 1)
    optimizers = {
        name: torch.optim.Adam(model.parameters(), lr=arguments.lr, betas=(0.5, 0.9))
        for name, model in (("generator", generator), ("discriminator", discriminator))
    }

    run = gradmedic.init(project="examples", config=vars(arguments), trainable="ring-gan")
    run.watch({"generator": generator, "discriminator": discriminator}, list(optimizers.values()))
    for _ in range(arguments.steps):
        points = ring(arguments.batch_size)
        made = generator(torch.randn(arguments.batch_size, NOISE))
        loss = (
            functional.softplus(-discriminator(points)).mean()
            + functional.softplus(discriminator(made.detach())).mean()
        )
        optimizers["discriminator"].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizers["discriminator"].step()
        loss = functional.softplus(-discriminator(made)).mean()
        optimizers["generator"].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers["generator"].step()
        run.log(loss=energy_distance(made.detach(), points), generator_loss=loss)
    run.finish()


if __name__ == "__main__":
    main()
