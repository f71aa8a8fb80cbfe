"""Trains with remedies in two processes, and prints the final weights of each as JSON.

python data_parallel_training.py FILE_TO_MEET_IN
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from tests.support.ranks import print_answers
from torch import nn
from torch.nn import functional

from gradmedic.protocol.remedies import Remedy
from gradmedic.torch.remedies import AppliedRemedies

REMEDIES = [
    Remedy(id="replace_activation", parameters={"activation": "ELU"}),
    Remedy(id="insert_normalization", parameters={"kind": "LayerNorm"}),
    Remedy(id="add_residual"),
    Remedy(id="reinitialize", parameters={"scheme": "orthogonal"}),
    Remedy(id="standardize_inputs"),
    Remedy(id="standardize_targets"),
]
ROWS = 12
_kept: list[nn.Module] = []
"""Torch may hang where it frees a distributed model; docs/client.md, "Several processes"."""


def train(rank: int, size: int) -> list[list[float]]:
    """Train on this process' rows of each batch; return the weights."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    bare = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 1))
    model: nn.Module = nn.parallel.DistributedDataParallel(bare) if size > 1 else bare
    _kept.append(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    applied = AppliedRemedies(model, optimizer, REMEDIES, seed=5)
    applied.attach_before_measurement()
    applied.attach_after_measurement()
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        x = 4 + 3 * torch.randn(ROWS, 6, generator=generator)
        y = 100 + 30 * x.sum(1, keepdim=True)
        own = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
        optimizer.zero_grad()
        functional.mse_loss(model(x[own]), y[own]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if (reason := applied.reason_to_end()) is not None:
            raise RuntimeError(reason)
    applied.close()
    return [parameter.flatten().tolist() for parameter in bare.parameters()]


def main() -> None:
    """Train in the processes."""

    def train_with_half(rank: int) -> list[list[float]]:
        dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
        weights = train(rank, 2)
        dist.destroy_process_group()
        return weights

    print_answers(2, train_with_half)


if __name__ == "__main__":
    main()
