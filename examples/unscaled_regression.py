"""Linear regression with a hidden layer on the diabetes table, as it comes: features and target in their own units.

Without options, training fails: features of very different sizes and targets in the hundreds make gradients that are
too large for any usual learning rate. `--standardize true` repairs it.

    python unscaled_regression.py --steps 200
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_diabetes
from torch import nn

import gradmedic


def main() -> None:
    """Train and report to gradmedic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate of SGD")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--standardize", choices=("true", "false"), default="false")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    table = load_diabetes(scaled=False)
    features = torch.tensor(table.data, dtype=torch.float32)
    targets = torch.tensor(table.target, dtype=torch.float32)[:, None]
    if arguments.standardize == "true":
        features = (features - features.mean(0)) / features.std(0)
        targets = (targets - targets.mean()) / targets.std()

    model = nn.Sequential(nn.Linear(features.shape[1], arguments.width), nn.ReLU(), nn.Linear(arguments.width, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr)

    config = {**vars(arguments), "standardize": arguments.standardize == "true"}
    run = gradmedic.init(project="examples", config=config, trainable="unscaled-regression")
    run.watch(model, optimizer)
    for _ in range(arguments.steps):
        batch = torch.randint(len(features), (arguments.batch_size,))
        loss = nn.functional.mse_loss(model(features[batch]), targets[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        run.log(loss=loss)
    run.finish()


if __name__ == "__main__":
    main()
