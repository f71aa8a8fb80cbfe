"""Trains in several processes that do not all watch, or not all the time, and prints what each sampled as JSON.

python unequal_processes.py fsdp|ddp|hybrid PROCESSES FILE_TO_MEET_IN 'SCENARIO, CLIPPING'...
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch._dynamo  # before the processes are forked: sharded models import it
import torch.distributed as dist
from tests.client.torch.recording import Recording
from tests.support.ranks import print_answers
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

STEPS = 40
LOG_FREQ = 7
CLIPPING: dict[str, Callable[[int], bool]] = {
    "clips now and then": lambda step: step % 2 == 1,
    "clips never": lambda _step: False,
    "clips always": lambda _step: True,
}
"""Whether a training clips its gradients before a step."""


class Training:
    """A model with its optimizer, and what a scenario does with them."""

    def __init__(self, kind: str, name: str) -> None:
        self.name = name
        self.rank = dist.get_rank()
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
        if kind == "ddp":
            self.model = nn.parallel.DistributedDataParallel(self.model)
        else:
            size = dist.get_world_size()
            if kind == "fsdp":
                mesh = init_device_mesh("cpu", (size,))
            else:
                mesh = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("copies", "shards"))
            fully_shard(self.model[2], mesh=mesh)
            fully_shard(self.model, mesh=mesh)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.recording: Recording | None = None
        self.logs = True
        self.sampled: list[int] = []

    def watch(self) -> None:
        """Watch the model, as `run.watch` does it for a process that is needed."""
        self.recording = Recording(self.model, self.optimizer, log_freq=LOG_FREQ, prefix=self.name)

    def close(self) -> None:
        """Stop watching."""
        if self.recording is not None:
            self.recording.watch.close()
        self.recording = None

    def run(self, act: Callable[[Training, int], None], clips: Callable[[int], bool]) -> None:
        """Train; `act(training, step)` is called before each step, which clips if `clips(step)` is true."""
        for step in range(STEPS):
            act(self, step)
            torch.manual_seed(100 * step + self.rank)
            self.optimizer.zero_grad()
            self.model(torch.randn(4, 7)).square().mean().backward()
            if clips(step):
                nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
            self.optimizer.step()
            if self.recording is not None and self.logs and self.recording.statistics():
                self.sampled.append(step)

    def weights(self) -> str:
        """Return the weights that this process holds."""
        parts = [p.to_local() if isinstance(p, DTensor) else p for p in self.model.parameters()]
        return b"".join(part.detach().numpy().tobytes() for part in parts).hex()


# --- what the processes do before a step ------------------------------------------------------------------------------


def no_process(_training: Training, _step: int) -> None:
    """No process watches."""


def every_process(training: Training, step: int) -> None:
    """All processes watch."""
    if step == 0:
        training.watch()


def only(rank: int) -> Callable[[Training, int], None]:
    """Only one process watches."""

    def act(training: Training, step: int) -> None:
        if step == 0 and training.rank == rank:
            training.watch()

    return act


def late_at(late_step: int) -> Callable[[Training, int], None]:
    """All processes but the first one watch later."""

    def act(training: Training, step: int) -> None:
        if step == (0 if training.rank == 0 else late_step):
            training.watch()

    return act


def log_in_the_first(training: Training, step: int) -> None:
    """All processes watch; only the first one calls `log()`."""
    every_process(training, step)
    training.logs = training.rank == 0


def close_in_one(training: Training, step: int) -> None:
    """One process stops watching."""
    every_process(training, step)
    if step == 5 and training.rank == 1:
        training.close()


def fail_in_one(training: Training, step: int) -> None:
    """The measurement fails in one process."""
    every_process(training, step)
    if step == 5 and training.rank == 1 and training.recording is not None:
        training.recording.watch._layers.list_touched = None  # type: ignore[assignment, method-assign]


def watch_again(training: Training, step: int) -> None:
    """All processes stop watching, and watch again later."""
    if step == 10:
        training.close()
    if step in (0, 15):
        training.watch()


def watch_again_in_the_first(training: Training, step: int) -> None:
    """All processes watch; the first one stops and watches again."""
    every_process(training, step)
    if step == 5 and training.rank == 0:
        training.close()
        training.watch()


def two_optimizers(training: Training, step: int) -> None:
    """All processes watch; two optimizers update a part of the model each."""
    if step == 0:
        parameters = list(training.model.parameters())
        first = torch.optim.SGD(parameters[:2], lr=0.01)
        rest = torch.optim.SGD(parameters[2:], lr=0.01)
        first.register_step_post_hook(lambda *_: rest.step())
        training.optimizer = first
        training.recording = Recording(training.model, [first, rest], log_freq=LOG_FREQ, prefix=training.name)


SCENARIOS: dict[str, Callable[[Training, int], None]] = {
    "no process": no_process,
    "every process": every_process,
    "only the first": only(0),
    "only the second": only(1),
    "late": late_at(3),
    "too late": late_at(25),
    "log in the first": log_in_the_first,
    "close in one": close_in_one,
    "fail in one": fail_in_one,
    "watch again": watch_again,
    "watch again in the first": watch_again_in_the_first,
    "two optimizers": two_optimizers,
}


@contextlib.contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Collect what the SDK warns of."""
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("gradmedic").addHandler(handler)
    try:
        yield warnings
    finally:
        logging.getLogger("gradmedic").removeHandler(handler)


def main() -> None:
    """Train once for each scenario with its clipping, and print what was sampled."""
    kind, processes, meeting, *names = sys.argv[1:]
    torch.set_num_threads(1)

    def train(rank: int) -> dict[str, dict[str, Any]]:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=int(processes))
        answers: dict[str, dict[str, Any]] = {}
        for name in names:
            scenario, clipping = name.split(", ")
            with collect_warnings() as warnings:
                training = Training(kind, name)
                training.run(SCENARIOS[scenario], CLIPPING[clipping])
                training.close()
            answers[name] = {
                "sampled": training.sampled, "weights": training.weights(), "warnings": warnings,
            }  # fmt: skip
        return answers

    print_answers(int(processes), train)


if __name__ == "__main__":
    main()
