"""The script that is rerun for a published program: it trains, and reports to gradmedic.

python benchmarks/reruns/published/train.py glorot-2010-sigmoid [--twin]
"""

from __future__ import annotations

import argparse
import atexit
import time

import gradmedic
from benchmarks.reruns.published.catalogue import by_id
from benchmarks.reruns.published.program import Program


def train(program: Program, *, is_twin: bool) -> float:
    """Train a program for its steps, and return its skill. The last step logs the skill too."""
    run = gradmedic.init(project="reruns", name=program.id, config={"twin": is_twin})
    training = program.build(is_twin)
    run.watch(training.models, training.optimizers, scaler=training.scaler)
    for _ in range(program.steps - 1):
        run.log(loss=training.step())
    loss = training.step()
    skill = training.final_skill()
    run.log(loss=loss, skill=skill)
    run.finish()
    return skill


def main() -> None:
    """Train the program of the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=by_id)
    parser.add_argument("--twin", action="store_true", help="with the published repair")
    arguments = parser.parse_args()
    atexit.register(lambda: print(f"CPU seconds: {time.process_time():.2f}"))
    train(arguments.program, is_twin=arguments.twin)


if __name__ == "__main__":
    main()
