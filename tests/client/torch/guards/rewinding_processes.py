"""Trains in several processes with rewinds, and prints what each did as JSON.

python rewinding_processes.py ddp|fsdp|verdict|refused PROCESSES FILE_TO_MEET_IN FOLDER
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # before the processes are forked: sharded models import it
import torch.distributed as dist
from tests.client.torch.guards.guarded_processes import KEPT, make_model, whole
from tests.support.ranks import print_answers
from torch.distributed.tensor import DTensor

import gradmedic
from gradmedic.recording.events import VerdictEvent
from gradmedic.torch.guards import snapshots_ring
from gradmedic.torch.guards.snapshots import CannotRestore

STEPS = 80
TROUBLE, SINCE = 50, 30
"""The step before which something goes wrong, and the first step of a verdict."""
REFUSED: list[int] = []
"""The step of the state that this process does not restore."""


def train(kind: str, rank: int, folder: str) -> dict[str, Any]:
    """Train; return the rewinds, the weights, the last step, and what was logged."""
    logged: list[str] = []
    logging.getLogger("gradmedic").addHandler(_Keeper(logged))
    snapshots_ring.TIME_SHARE, snapshots_ring.SHORTEST_INTERVAL = 1e9, 1  # a state after each step
    model = make_model("fsdp" if kind == "fsdp" else "ddp")
    KEPT.append(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    run = gradmedic.init("rewound", mode="offline", dir=Path(folder) / str(rank), silent=True, on_unhealthy="rewind")
    run.watch(model, optimizer)
    rewinds: list[int] = []
    run.on_rewind(rewinds.append)
    losses = []
    counts: list[list[float]] = []
    for step in range(STEPS):
        torch.manual_seed(100 * step + rank)
        inputs = torch.randn(4, 7)
        if step == TROUBLE:
            _make_trouble(kind, run, rank, next(model.parameters()))
        optimizer.zero_grad()
        loss = (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        counts.append([float(state["step"]) for state in optimizer.state.values()][:1])
        if rank == 0 or kind != "ddp":  # many scripts log in one process only
            run.log(loss=loss)
    weights = [whole(parameter).tobytes().hex() for parameter in model.parameters()]
    last_step = run._last_step
    run.finish()
    return {
        "rewinds": rewinds, "weights": weights, "last_step": last_step, "log": logged, "losses": losses,
        "adam_steps": counts, "refused": REFUSED,
    }  # fmt: skip


def _make_trouble(kind: str, run: gradmedic.Run, rank: int, weight: torch.Tensor) -> None:
    if kind == "verdict":
        if rank == 0:  # which hears from the service
            run._reactions.events.append(
                VerdictEvent(run_id=run.id, verdict="exploding", since_step=SINCE, summary="It explodes.")
            )
        return
    if kind == "refused" and rank == 1:
        ring: Any = run._guards._rewinder._ring  # type: ignore[union-attr]
        load, newest = ring.load, ring.steps[-1]

        REFUSED.append(newest)

        def refuse(kept: Any) -> Any:
            if kept.step == newest:
                raise CannotRestore("no")
            return load(kept)

        ring.load = refuse
    local = weight._local_tensor if isinstance(weight, DTensor) else weight
    if kind != "fsdp" or rank == 1:  # of a sharded model, one process has the bad number
        with torch.no_grad():
            local.view(-1)[0] = float("nan")


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
