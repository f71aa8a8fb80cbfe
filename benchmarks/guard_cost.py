"""What the guards cost a training, for `benchmarks.guards`.

The same training runs without gradmedic, with a watch alone, and with each guard. They take turns of some steps, in an
order that is drawn for each round, so that the account of what states may take sees steps as in a training of its own.
The cost is the CPU time of the training thread in all rounds together, compared with that of the training without
gradmedic; so a step in which a state is copied counts in full. An interval holds 95 % of the costs of resampled rounds.

A run begins with steps that are all sampled, for about a second, and the states of a guard need memory at first. These
are seconds that a run has once, however long it is, so they are given as seconds. What a step costs is measured after
them: the watch's start is over, and nothing is owed for it, which would make the steps behind it cheaper than others.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.guard_rules import GUARDS, NOTHING, WATCH, make_treatment
from benchmarks.training_loop import make_job

JOBS = {"gpt": "transformer, 10 M parameters, AdamW", "mlp": "perceptron, 50 layers, 3.2 M, Adam"}
TARGETS = {"gpt": 0.03, "mlp": 0.06}
"""Largest share of a step that a guard may take, the watch included: twice of what a watch alone may."""
TURN = {"gpt": 4, "mlp": 20}
"""Number of steps in a turn, by job."""
FEWEST_START_ROUNDS = {"gpt": 10, "mlp": 3}
"""Rounds before a step's cost is measured, if the watch's start is not longer. They have the first states, for which
memory is allocated."""
ROUNDS = {"gpt": 20, "mlp": 20}
"""Rounds that are measured, by job."""
RESAMPLINGS = 400


@dataclass(frozen=True, slots=True)
class Cost:
    """What a watch, or a guard with it, costs a training."""

    name: str
    start_seconds: float
    """Seconds that the start takes beyond the steps of the training."""
    share: float
    """Share of a step after the start."""
    low: float
    high: float
    """Ends of the interval of the share."""

    def describe(self) -> str:
        """Return the cost as the benchmark prints it."""
        interval = f"[{self.low:.1%}, {self.high:.1%}]"
        return f"{self.share:.1%} {interval} of a step, after {self.start_seconds:.1f} s at the start"


def measure_costs(job: str, url: str) -> list[Cost]:
    """Return what a watch costs, and each guard with it.

    Args:
        job: one of `JOBS`.
        url: address of the service.
    """
    torch.set_num_threads(1)
    names = (NOTHING, WATCH, *GUARDS)
    trainings = {name: _Training(job, name, url) for name in names}
    draw = random.Random(0)

    def run_round() -> dict[str, float]:
        return {name: trainings[name].run_steps(TURN[job]) for name in draw.sample(names, len(names))}

    start: list[dict[str, float]] = []
    while len(start) < FEWEST_START_ROUNDS[job] or any(each.treatment.is_at_start for each in trainings.values()):
        start.append(run_round())
    for training in trainings.values():
        training.treatment.end_warm_up()
    rounds = [run_round() for _ in range(ROUNDS[job])]
    for training in trainings.values():
        training.treatment.finish()
    costs = []
    for name in names[1:]:
        start_seconds = sum(each[name] - each[NOTHING] for each in start)
        drawn = sorted(_compute_share(draw.choices(rounds, k=len(rounds)), name) for _ in range(RESAMPLINGS))
        low, high = drawn[RESAMPLINGS // 40], drawn[-RESAMPLINGS // 40]
        costs.append(Cost(name, start_seconds, _compute_share(rounds, name), low, high))
    return costs


def run_costs(url: str) -> tuple[str, bool]:
    """Print what the guards cost; return that in short, and whether the targets are met.

    Args:
        url: address of the service.
    """
    are_good, parts = [], []
    for job, description in JOBS.items():
        watch, *guards = measure_costs(job, url)
        print(f"{description}; a watch alone: {watch.describe()}")
        for cost in guards:
            is_good = math.isfinite(cost.share) and cost.share <= TARGETS[job]
            are_good.append(is_good)
            parts.append(f"{cost.name} costs {cost.share:.1%} ({job}, target <= {TARGETS[job]:.0%})")
            print(
                f"bench-guards, cost of {cost.name} with the watch, {job}: {cost.describe()}; beyond the watch "
                f"{cost.share - watch.share:+.1%} (target <= {TARGETS[job]:.0%}) {'PASS' if is_good else 'FAIL'}",
                flush=True,
            )
    return ", ".join(parts), all(are_good)


class _Training:
    """A training with a treatment."""

    def __init__(self, job: str, treatment: str, url: str) -> None:
        torch.manual_seed(0)
        self._model, self._optimizer, self._compute_loss = make_job(job)
        self.treatment = make_treatment(treatment, url)
        self.treatment.begin(self._model, self._optimizer)

    def run_steps(self, steps: int) -> float:
        """Train for some steps; return the seconds of CPU time of this thread."""
        begun = time.thread_time()
        for _ in range(steps):
            self._optimizer.zero_grad()
            loss = self._compute_loss()
            loss.backward()  # type: ignore[no-untyped-call]
            self.treatment.change_gradients(self._model)
            self._optimizer.step()
            self.treatment.log(loss)
        return time.thread_time() - begun


def _compute_share(rounds: Sequence[dict[str, float]], name: str) -> float:
    return sum(each[name] for each in rounds) / sum(each[NOTHING] for each in rounds) - 1
