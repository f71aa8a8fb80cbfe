"""A chain of linear layers with the initial weights W = a * I: the smallest model that explodes or vanishes.

The gradient at layer k is a product of the layers above it, so that it grows or shrinks like a to the power of the
depth. `--factor 1.5` explodes, `--factor 0.5` vanishes, `--factor 1.0` is healthy.

    python linear_chain.py --factor 1.5 --steps 200
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import gradmedic


def build_model(depth: int, width: int, factor: float) -> nn.Sequential:
    """Return `depth` linear layers of `width` units, each `factor` times the identity."""
    layers = [nn.Linear(width, width, bias=False) for _ in range(depth)]
    for layer in layers:
        with torch.no_grad():
            layer.weight.copy_(factor * torch.eye(width))
    return nn.Sequential(*layers)


def main() -> None:
    """Train and report to gradmedic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factor", type=float, default=1.5, help="initial weights as a multiple of the identity")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate of SGD")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    target = torch.randn(arguments.width, arguments.width) / arguments.width**0.5
    model = build_model(arguments.depth, arguments.width, arguments.factor)
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr)

    run = gradmedic.init(project="examples", config=vars(arguments), trainable="linear-chain")
    run.watch(model, optimizer)
    for _ in range(arguments.steps):
        inputs = torch.randn(arguments.batch_size, arguments.width)
        loss = nn.functional.mse_loss(model(inputs), inputs @ target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        run.log(loss=loss)
    run.finish()


if __name__ == "__main__":
    main()
