"""Trainings whose sampled steps must not depend on the clock, for `test_busy_machine`. They print what was sampled.

Each one is trained twice: on the machine as it is, and beside loops that keep every core busy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import gradmedic

STEPS = 190
FAULT = 133
PROGRAMS = ("healthy", "nan", "jump")


def train(program: str) -> dict[str, Any]:
    """Train a perceptron; with `nan`, a gradient is NaN at one step, with `jump`, the learning rate is far too high."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    run = gradmedic.init(project="test-busy")
    run.watch(model, optimizer)
    sampler = run._sampler
    sampled: list[int] = []
    losses: list[str] = []
    weight = torch.randn(128, 1)
    for step in range(STEPS):
        inputs = torch.randn(64, 128)
        optimizer.zero_grad()
        output: Tensor = model(inputs)
        if program == "nan" and step == FAULT:
            output = output + torch.sqrt((output * 0).square()) * 0
        if program == "jump" and step == FAULT:
            for group in optimizer.param_groups:
                group["lr"] = 1e6
        loss = nn.functional.mse_loss(output, (inputs @ weight).tanh())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if sampler.is_sampling:
            sampled.append(step)
        losses.append(str(loss.item()))
        run.log(loss)
        sampler._start_accounts = 0  # else all steps of a training as short as this one are sampled
    interval = sampler.interval
    run.finish(timeout=60.0)
    return {"run": str(run.id), "sampled": sampled, "losses": losses, "interval": interval, "fault": FAULT}


@contextmanager
def busy_loops() -> Iterator[None]:
    """Keep every core busy with a loop."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main() -> None:
    """Train all programs twice, and print the answers."""
    quiet = {program: train(program) for program in PROGRAMS}
    with busy_loops():
        busy = {program: train(program) for program in PROGRAMS}
    sys.stdout.write(json.dumps({"quiet": quiet, "busy": busy}) + "\n")


if __name__ == "__main__":
    main()
