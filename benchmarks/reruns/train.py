"""The script that is rerun: trains one configuration and reports to gradmedic. It contains no code for trials.

python benchmarks/reruns/train.py sigmoid-mlp-0 [--twin]
"""

from __future__ import annotations

import argparse
import atexit
import time

import torch

import gradmedic
from benchmarks.reruns.configurations import by_name
from benchmarks.reruns.networks import NETWORKS
from benchmarks.reruns.tasks import make_task

OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}


def main() -> None:
    """Train the configuration of the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configuration", type=by_name)
    parser.add_argument("--twin", action="store_true", help="leave the fault out")
    arguments = parser.parse_args()
    atexit.register(lambda: print(f"CPU seconds: {time.process_time():.2f}"))
    configuration = arguments.configuration
    setting = configuration.twin if arguments.twin else configuration.faulty

    run = gradmedic.init(project="reruns", name=configuration.name, config={"twin": arguments.twin})
    task = make_task(setting.task)
    model = NETWORKS[setting.network](task.inputs, task.outputs, **setting.options)
    options = {"momentum": setting.momentum} if setting.optimizer == "sgd" else {}
    optimizer = OPTIMIZERS[setting.optimizer](
        model.parameters(), lr=setting.lr, weight_decay=setting.weight_decay, **options
    )
    run.watch(model, optimizer)
    for _ in range(setting.steps):
        x, y = task.draw(setting.batch)
        loss = task.loss(model(x), y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        if setting.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
        optimizer.step()
        run.log(loss=loss)
    run.finish()


if __name__ == "__main__":
    main()
