"""Trains in several processes, with a run and without one, and prints what each measured as JSON.

python distributed_training.py ddp|fsdp|hybrid PROCESSES URL FILE_TO_MEET_IN
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
import torch._dynamo  # before the processes are forked: sharded models import it
import torch.distributed as dist
from tests.support.ranks import print_answers
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import gradmedic

STEPS = 30
KEPT: list[nn.Module] = []
"""The models, which must not be freed before the end: see `print_answers`."""


def whole(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return all of a tensor in float64."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().double().numpy().copy()


def train(kind: str, mode: str, url: str) -> dict[str, Any]:
    """Train with a run of a mode; return its id, the statistics of the whole gradients, and the weights at the end."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        size = dist.get_world_size()
        if kind == "fsdp":
            mesh = init_device_mesh("cpu", (size,))
        else:
            mesh = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("copies", "shards"))
        fully_shard(model[2], mesh=mesh)  # type: ignore[index]
        fully_shard(model, mesh=mesh)
    KEPT.append(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    run = gradmedic.init("distributed", base_url=url, silent=True, log_freq=3, mode=mode)
    run.watch(model, optimizer)
    truth: dict[str, list[list[float]]] = {"grad_norm": [], "grad_abs_max": [], "update_norm": [], "grad_mean": []}
    zeros: list[list[float]] = []
    nonfinite: list[list[float]] = []
    for step in range(STEPS):
        torch.manual_seed(100 * step + dist.get_rank())
        loss = model(torch.randn(4, 7)).square().mean() * (float("nan") if step == 25 else 1.0)
        optimizer.zero_grad()
        loss.backward()
        if step == 10:
            nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        gradients = [whole(p.grad) for p in model.parameters() if p.grad is not None]
        before = [whole(p) for p in model.parameters()]
        optimizer.step()
        after = [whole(p) for p in model.parameters()]
        truth["grad_norm"].append([float(np.linalg.norm(g)) for g in gradients])
        truth["grad_abs_max"].append([float(np.abs(g).max()) for g in gradients])
        truth["grad_mean"].append([float(g.mean()) for g in gradients])
        truth["update_norm"].append([float(np.linalg.norm(a - b)) for a, b in zip(after, before, strict=True)])
        zeros.append([float(np.mean(g == 0)) for g in gradients])
        nonfinite.append([float(np.sum(~np.isfinite(g))) for g in gradients])
        run.log(loss=loss)
    truth |= {"grad_zero_fraction": zeros, "nonfinite_count": nonfinite}
    is_delivered = run.finish()
    weights = [whole(p).tobytes().hex() for p in model.parameters()]
    return {
        "id": str(run.id), "delivered": is_delivered, "follows": run.is_follower, "truth": truth, "weights": weights,
    }  # fmt: skip


def main() -> None:
    """Train in both modes, and print the answers."""
    kind, processes, url, meeting = sys.argv[1:]
    torch.set_num_threads(1)

    def train_in_both_modes(rank: int) -> dict[str, dict[str, Any]]:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=int(processes))
        answers = {mode: train(kind, mode, url) for mode in ("online", "disabled")}
        dist.destroy_process_group()
        return answers

    print_answers(int(processes), train_in_both_modes)


if __name__ == "__main__":
    main()
