"""A deep multilayer perceptron of hyperbolic tangents on the handwritten digits that scikit-learn ships.

Without options, training fails, as for such networks before Glorot and Bengio 2010: initial weights that are too small
shrink the signal, and with it the gradient, layer by layer. `--initialization xavier` repairs it.

    python deep_tanh_network.py --steps 200
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

import gradmedic


def build_model(depth: int, width: int, initialization: str) -> nn.Sequential:
    """Return `depth` hidden layers of `width` units between 64 pixels and 10 classes."""
    layers: list[nn.Module] = []
    size = 64
    for _ in range(depth):
        linear = nn.Linear(size, width)
        if initialization == "xavier":
            nn.init.xavier_uniform_(linear.weight)
        else:
            nn.init.normal_(linear.weight, std=0.05)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, 10))


def main() -> None:
    """Train and report to gradmedic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--initialization", choices=("small", "xavier"), default="small")
    parser.add_argument("--depth", type=int, default=16, help="number of hidden layers")
    parser.add_argument("--width", type=int, default=48, help="units of a hidden layer")
    parser.add_argument("--lr", type=float, default=0.02, help="learning rate of SGD")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1
    labels = torch.tensor(digits.target)

    model = build_model(arguments.depth, arguments.width, arguments.initialization)
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr, momentum=0.9)

    run = gradmedic.init(project="examples", config=vars(arguments), trainable="deep-tanh-network")
    run.watch(model, optimizer)
    for _ in range(arguments.steps):
        batch = torch.randint(len(images), (arguments.batch_size,))
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        run.log(loss=loss)
    run.finish()


if __name__ == "__main__":
    main()
