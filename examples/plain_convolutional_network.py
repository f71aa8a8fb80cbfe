"""A deep convolutional network without normalization or shortcuts, on the digits that scikit-learn ships.

Without options, training fails, as for such networks before batch normalization: each convolution with torch's default
weights and a rectifier behind it shrinks the signal to less than half, until almost nothing is left. `--norm batch`
repairs it.

    python plain_convolutional_network.py --steps 150
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import gradmedic


class Network(nn.Module):
    """Convolutions with the same number of channels, then a linear classifier."""

    def __init__(self, depth: int, channels: int, norm: str) -> None:
        super().__init__()
        sizes = [1, *[channels] * depth]
        self.convolutions = nn.ModuleList(nn.Conv2d(size, channels, 3, padding=1) for size in sizes[:-1])
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity() for _ in range(depth))
        self.classifier = nn.Linear(channels, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits for images `[batch, 1, 8, 8]`."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            images = functional.relu(norm(convolution(images)))
        logits: torch.Tensor = self.classifier(images.mean((2, 3)))
        return logits


def main() -> None:
    """Train and report to gradmedic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norm", choices=("none", "batch"), default="none")
    parser.add_argument("--depth", type=int, default=12, help="number of convolutions")
    parser.add_argument("--channels", type=int, default=12, help="channels of a convolution")
    parser.add_argument("--lr", type=float, default=0.05, help="learning rate of SGD")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)

    model = Network(arguments.depth, arguments.channels, arguments.norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr, momentum=0.9)

    run = gradmedic.init(project="examples", config=vars(arguments), trainable="plain-convolutional-network")
    run.watch(model, optimizer)
    for _ in range(arguments.steps):
        batch = torch.randint(len(images), (arguments.batch_size,))
        loss = functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        run.log(loss=loss)
    run.finish()


if __name__ == "__main__":
    main()
