"""Trains in several processes with guards, and prints what each did as JSON.

python guarded_processes.py ddp|fsdp|clip|stop|alone|failing|failing-later PROCESSES FILE_TO_MEET_IN FOLDER
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
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

STEPS = 60
NONFINITE, SPIKE, CLIPPED = 35, 45, 50
KEPT: list[nn.Module] = []
"""The models, which must not be freed before the end: see `print_answers`."""


def whole(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return all of a tensor in float64."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().double().numpy().copy()


def make_model(kind: str) -> nn.Module:
    """Return a model of the kind."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    if kind != "fsdp":
        return nn.parallel.DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model[2], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def train(kind: str, rank: int, folder: str) -> dict[str, Any]:
    """Train; return which steps moved the weights, how far, the weights, and what was logged."""
    logged: list[str] = []
    logging.getLogger("gradmedic").addHandler(_Keeper(logged))
    model = make_model(kind)
    KEPT.append(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = gradmedic.init(
        "guarded", mode="offline", dir=Path(folder) / str(rank), silent=True, log_freq=3,
        on_unhealthy="clip" if kind == "clip" else "skip", on_nonfinite="stop" if kind == "stop" else "record",
    )  # fmt: skip
    if kind != "alone" or rank == 0:
        run.watch(model, optimizer)
    moved = []
    for step in range(STEPS):
        torch.manual_seed(100 * step + rank)
        inputs = torch.randn(4, 7)
        # Only one process has the bad batch.
        faults = {"clip": {}, "alone": {SPIKE: 1e2}}.get(kind, {NONFINITE: float("nan"), SPIKE: 1e4})
        factor = faults.get(step, 1.0) if rank == 1 else 1.0
        loss = (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean() * factor
        optimizer.zero_grad()
        loss.backward()
        if kind == "fsdp" and step >= 5:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        if kind == "clip" and step == CLIPPED and rank == 0:
            run._guards.clip(1e-3)  # as the answer of a service lets the first process do
        if kind.startswith("failing") and step == 40 and rank == 1:
            broken: Any = run._guards._guards[0]._reader if kind == "failing" else run._guards._guards[0]
            broken._norms = broken._rules = None  # an error of the guard in one process, before or after all have sent
        before = [whole(p) for p in model.parameters()]
        optimizer.step()
        after = [whole(p) for p in model.parameters()]
        moved.append(float(np.sqrt(sum(np.square(a - b).sum() for a, b in zip(after, before, strict=True)))))
        try:
            run.log(loss=loss)
        except gradmedic.UnhealthyRunError:
            break
    weights = [whole(p).tobytes().hex() for p in model.parameters()]
    run.finish()
    return {"moved": moved, "weights": weights, "log": logged}


class _Keeper(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


def main() -> None:
    """Train, and print the answers."""
    kind, processes, meeting, folder = sys.argv[1:]
    torch.set_num_threads(1)

    def train_here(rank: int) -> dict[str, Any]:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=int(processes))
        answer = train(kind, rank, folder)
        dist.destroy_process_group()
        return answer

    print_answers(int(processes), train_here)


if __name__ == "__main__":
    main()
