"""A training for `test_same_trials`, which runs as a trial and prints which steps were sampled.

With the argument `erratic`, the clock of the SDK jumps, and the recorder has much time between two calls of `log()`.
"""

from __future__ import annotations

import itertools
import json
import sys
import time

import torch
from torch import nn

import gradmedic
from gradmedic.recording import recorder, sampler

STEPS = 60


def make_erratic() -> None:
    """Let the clock jump, and let the recorder hold no step for a time."""
    jumps = itertools.cycle([1e-6, 3.0, 1e-3, 50.0, 1e-5])
    jumping = itertools.accumulate(jumps)
    sampler.choose_clock = lambda: lambda: next(jumping)  # type: ignore[attr-defined]
    recorder._HOLD = -1.0


def train(*, is_erratic: bool) -> None:
    """Train a recurrent network with a learning rate that makes it explode, and log each step in two calls."""
    torch.set_num_threads(1)
    run = gradmedic.init(config={"lr": 2.0}, log_freq="auto")
    model = nn.ModuleList([nn.RNN(8, 32, num_layers=2, batch_first=True), nn.Linear(32, 1)])
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    run.watch(model, optimizer)
    sampled: list[int] = []
    run.on_verdict(lambda event: sampled.append(event.since_step or -1))
    for step in range(STEPS):
        inputs = torch.randn(16, 12, 8)
        optimizer.zero_grad()
        output = model[1](model[0](inputs)[0][:, -1])
        loss = nn.functional.mse_loss(output, inputs.sum((1, 2))[:, None]) * 1.5 ** max(0, step - 30)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if run._sampler.is_sampling:
            sampled.append(step)
        run.log(loss, step=step)
        while is_erratic and run._recorder._drafts:
            time.sleep(0.001)
        run.log(step=step, double=2 * step)
        if step % 20 == 0:
            run.flush()
    run.finish()
    sys.stdout.write(json.dumps({"sampled": sampled, "verdict": run.verdict}) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["erratic"]:
        make_erratic()
    train(is_erratic=sys.argv[1:] == ["erratic"])
