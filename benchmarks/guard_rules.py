"""What `benchmarks.guards` compares: gradmedic's guards, and published rules that clip the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import gradmedic
from benchmarks.guard_trainings import Treatment

PROJECT = "guards"


class Guard(Treatment):
    """gradmedic with `on_unhealthy`."""

    def __init__(self, url: str, on_unhealthy: str) -> None:
        self._url, self._on_unhealthy = url, on_unhealthy
        self._run: gradmedic.Run | None = None

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Watch the training."""
        self._run = gradmedic.init(PROJECT, base_url=self._url, silent=True, on_unhealthy=self._on_unhealthy)
        self._run.watch(model, optimizer)

    def log(self, loss: Tensor) -> None:
        """Log the step."""
        assert self._run is not None
        self._run.log(loss=loss)

    @property
    def is_at_start(self) -> bool:
        """Whether every step is sampled because the run has just begun."""
        return self._run is not None and self._run._sampler._is_at_start()

    def end_warm_up(self) -> None:
        """Reset the sampler: after a start, and after a spike, it owes steps without a sample."""
        assert self._run is not None
        self._run.flush()
        sampler = self._run._sampler
        sampler._alarm_steps_left = sampler._owed = sampler._start_accounts = 0

    def finish(self) -> tuple[bool, int]:
        """Finish the run, and read its guard actions from the service."""
        assert self._run is not None
        self._run.finish()
        with gradmedic.Client(self._url) as client:
            actions = [*client.runs.guard_actions(self._run.id)]
        skipped = sum(action.action == "skip" and not action.is_dropped for action in actions)
        rewound = sum(action.step - action.to_step for action in actions if action.to_step is not None)
        return bool(actions), skipped + rewound


class GlobalClip(Treatment):
    """`clip_grad_norm_(1.0)` in each step."""

    def __init__(self) -> None:
        self._is_touched = False

    def change_gradients(self, model: nn.Module) -> None:
        """Clip the norm of all gradients together."""
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self._is_touched = self._is_touched or not float(norm) <= 1.0

    def finish(self) -> tuple[bool, int]:
        """Return whether a gradient was clipped."""
        return self._is_touched, 0


class ZClip(Treatment):
    """The rule of ZClip (arXiv 2504.02507, algorithm 1), with its defaults.

    Averages of the norm and its variance begin after 25 steps. A norm whose z-score is above 2.5 is clipped to
    `mean + 2.5^2 / z * deviation`, and the averages read the clipped norm.
    """

    ALPHA, THRESHOLD, WARM_UP = 0.97, 2.5, 25

    def __init__(self) -> None:
        self._first: list[float] = []
        self._mean = self._variance = 0.0
        self._is_touched = False

    def change_gradients(self, model: nn.Module) -> None:
        """Clip the norm of all gradients together."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients))
        if len(self._first) < self.WARM_UP:
            self._first.append(norm)
            self._mean = sum(self._first) / len(self._first)
            self._variance = sum((each - self._mean) ** 2 for each in self._first) / len(self._first)
            return
        deviation = math.sqrt(self._variance) + 1e-6
        z = (norm - self._mean) / deviation
        if z > self.THRESHOLD:
            limit = self._mean + self.THRESHOLD**2 / z * deviation
            for gradient in gradients:
                gradient.mul_(limit / (norm + 1e-6))
            norm, self._is_touched = limit, True
        self._mean = self.ALPHA * self._mean + (1 - self.ALPHA) * norm
        self._variance = self.ALPHA * self._variance + (1 - self.ALPHA) * (norm - self._mean) ** 2

    def finish(self) -> tuple[bool, int]:
        """Return whether a gradient was clipped."""
        return self._is_touched, 0


class AdaGC(Treatment):
    """The rule of AdaGC (arXiv 2502.11034, algorithm 1), with its defaults.

    In the first 100 steps, all gradients together are clipped to norm 1, and the smallest clipped norm of each tensor
    is kept. Then each tensor is clipped to 1.05 times the average of its own clipped norms.
    """

    WARM_UP, ABSOLUTE, RELATIVE, BETA = 100, 1.0, 1.05, 0.98

    def __init__(self) -> None:
        self._norms: dict[nn.Parameter, float] = {}
        self._steps = 0
        self._is_touched = False

    def change_gradients(self, model: nn.Module) -> None:
        """Clip the gradients."""
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        self._steps += 1
        if self._steps <= self.WARM_UP:
            self._is_touched = self._is_touched or float(nn.utils.clip_grad_norm_(parameters, self.ABSOLUTE)) > 1.0
            for parameter in parameters:
                norm = float(parameter.grad.norm())  # type: ignore[union-attr]
                self._norms[parameter] = min(self._norms.get(parameter, math.inf), norm)
            return
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            norm, usual = float(gradient.norm()), self._norms.get(parameter, math.inf)
            if norm > self.RELATIVE * usual:
                gradient.mul_(self.RELATIVE * usual / norm)
                norm, self._is_touched = self.RELATIVE * usual, True
            self._norms[parameter] = norm if math.isinf(usual) else self.BETA * usual + (1 - self.BETA) * norm

    def finish(self) -> tuple[bool, int]:
        """Return whether a gradient was clipped."""
        return self._is_touched, 0


NOTHING = "nothing"
GUARDS = {"skip": "skip", "rewind": "rewind"}
"""Treatments by gradmedic, with their `on_unhealthy`."""
WATCH = "watch without a guard"
"""gradmedic with `on_unhealthy="warn"`, whose cost is compared."""
RULES: dict[str, Callable[[], Treatment]] = {
    NOTHING: Treatment,
    "clip_grad_norm_(1.0)": GlobalClip,
    "ZClip's rule": ZClip,
    "AdaGC's rule": AdaGC,
}
TREATMENTS = (NOTHING, *GUARDS, *(name for name in RULES if name != NOTHING))


def make_treatment(name: str, url: str) -> Treatment:
    """Return a treatment for one training."""
    if name == WATCH:
        return Guard(url, "warn")
    return Guard(url, GUARDS[name]) if name in GUARDS else RULES[name]()
