"""A classifier of digits in half precision with a fixed loss scale.

Without options, training fails: scaled gradients beyond 65504 are infinite in float16, and one of them makes
every weight NaN. `--scale 256` repairs it, and so does a dynamic scale.

    python half_precision.py --steps 150
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import gradmedic


def main() -> None:
    """Train and report to gradmedic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=2.0**20, help="factor of the loss")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate of SGD")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1
    labels = torch.tensor(digits.target)

    width = arguments.width
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr)

    run = gradmedic.init(project="examples", config=vars(arguments), trainable="half-precision")
    run.watch(model, optimizer)
    for _ in range(arguments.steps):
        batch = torch.randint(len(images), (arguments.batch_size,))
        with torch.autocast("cpu", dtype=torch.float16):
            logits = model(images[batch])
        loss = functional.cross_entropy(logits.float(), labels[batch])
        optimizer.zero_grad()
        (arguments.scale * loss).backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= arguments.scale
        optimizer.step()
        run.log(loss=loss)
    run.finish()


if __name__ == "__main__":
    main()
