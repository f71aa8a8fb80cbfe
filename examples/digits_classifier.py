"""A deep multilayer perceptron on the handwritten digits that scikit-learn ships.

Without options, training fails: each sigmoid shrinks the gradient, until nothing is left of it at the first layers.
`--activation relu` repairs it.

    python digits_classifier.py --steps 300
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

import gradmedic

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}


def build_model(depth: int, width: int, activation: str) -> nn.Sequential:
    """Return `depth` hidden layers of `width` units between 64 pixels and 10 classes."""
    layers: list[nn.Module] = []
    size = 64
    for _ in range(depth):
        linear = nn.Linear(size, width)
        if activation in ("relu", "elu"):
            nn.init.kaiming_normal_(linear.weight)
        else:
            nn.init.xavier_uniform_(linear.weight)
        layers += [linear, ACTIVATIONS[activation]()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, 10))


def main() -> None:
    """Train and report to gradmedic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--activation", type=str.lower, choices=sorted(ACTIVATIONS), default="sigmoid")
    parser.add_argument("--depth", type=int, default=8, help="number of hidden layers")
    parser.add_argument("--width", type=int, default=64, help="units of a hidden layer")
    parser.add_argument("--lr", type=float, default=0.05, help="learning rate of SGD")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)

    model = build_model(arguments.depth, arguments.width, arguments.activation)
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr, momentum=0.9)

    run = gradmedic.init(project="examples", config=vars(arguments), trainable="digits-classifier")
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
