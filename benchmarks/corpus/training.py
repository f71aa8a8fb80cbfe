"""The training loop: runs a program by a recipe, and returns its record and its outcome.

The loop has schedules, clipping, accumulation and loss scaling, as training scripts do. It stops 20 steps after a run
has become non-finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.corpus.ledger import Ledger
from benchmarks.corpus.program import Program
from benchmarks.corpus.recorder import Recorder
from gradmedic.protocol.numbers import CLIP_EPSILON, to_float32

STEPS_AFTER_NONFINITE: Final = 20
HALF_LARGEST: Final = 65504.0
HALF_SMALLEST: Final = 2.0**-25
"""Half of the smallest subnormal half-precision number. Smaller numbers round to zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The settings of a training."""

    steps: int = 400
    batch: int = 64
    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "const"
    """`const`, `warmup:N`, `cosine`, `cosine-restarts:PERIOD`, `step:AT:FACTOR`, `onecycle`, `ramp:FACTOR` (geometric,
    over the run), `late:AT:FACTOR:OVER` (constant, then geometric over OVER steps), `zero:AT`,
    `burst:AT:FOR:FACTOR`, `triangle:PERIOD:FACTOR`, `doubling:EVERY`, `rising-restarts:PERIOD:FACTOR` (each cosine
    cycle starts at FACTOR times the rate of the one before)."""
    clip_norm: float | None = None
    clip_value: float | None = None
    accumulate: int = 1
    average: bool = True
    """Whether accumulated gradients are averaged, not summed; the loss that is reported is the average."""
    group_rates: tuple[float, ...] = ()
    """Factor of the learning rate of each optimizer; 1 for optimizers beyond its end."""
    loss_scale: float | None = None
    """Loss scale under which half-precision gradients are simulated; None for full precision."""
    dynamic_scale: bool = False
    scale_growth_interval: int = 100
    record_skipped: bool = True
    """Whether steps that the scaler skips have statistics."""
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float | None = None


@dataclass(slots=True, kw_only=True)
class Run:
    """The record and the outcome of a training run."""

    loss: NDArray[np.float32]
    learning_rate: NDArray[np.float32]
    skipped: NDArray[np.bool_]
    statistics: dict[str, NDArray[np.float32]]
    clip_coefficient: NDArray[np.float32] | None
    loss_scale: NDArray[np.float32] | None
    skill: float
    died: bool
    """Whether the loss or a weight became non-finite."""
    training: dict[str, object] = field(default_factory=dict)

    @property
    def first_nonfinite(self) -> int | None:
        """First step with a non-finite loss, gradient or weight; steps that a loss scaler skipped do not count."""
        bad = ~np.isfinite(self.loss)
        present = ~np.isnan(self.statistics["nonfinite_count"])
        for name in ("grad_norm", "nonfinite_count", "weight_norm", "update_norm"):
            values = self.statistics[name]
            broken = ~np.isfinite(values) | (values > 0) if name == "nonfinite_count" else ~np.isfinite(values)
            bad |= (broken & present).any(axis=1)
        bad &= ~self.skipped
        return int(np.argmax(bad)) if bad.any() else None


def schedule_factor(schedule: str, step: int, steps: int) -> float:
    """Return the factor of the learning rate at `step`.

    >>> schedule_factor("warmup:10", 4, 100)
    0.5
    >>> schedule_factor("late:50:100:20", 60, 100)
    10.0
    """
    name, *arguments = schedule.split(":")
    numbers = [float(argument) for argument in arguments]
    match name:
        case "const":
            return 1.0
        case "warmup":
            return min(1.0, (step + 1) / numbers[0])
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / steps))
        case "cosine-restarts":
            return 0.5 * (1 + math.cos(math.pi * (step % numbers[0]) / numbers[0]))
        case "step":
            return float(numbers[1]) if step >= numbers[0] else 1.0
        case "onecycle":
            rise = 0.3 * steps
            if step < rise:
                return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * step / rise))
            return 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) + 1e-5
        case "ramp":
            return float(numbers[0] ** (step / steps))
        case "late":
            start, factor, over = numbers
            return float(factor ** min(1.0, max(0.0, (step - start) / over)))
        case "zero":
            return max(0.0, 1.0 - step / numbers[0])
        case "doubling":
            return float(2.0 ** (step // numbers[0]))
        case "rising-restarts":
            period, factor = numbers
            return float(factor ** (step // period)) * 0.5 * (1 + math.cos(math.pi * (step % period) / period))
        case "triangle":
            period, factor = numbers
            return 1.0 + (factor - 1.0) * (1.0 - abs(2.0 * (step % period) / period - 1.0))
        case "burst":
            start, duration, factor = numbers
            return factor if start <= step < start + duration else 1.0
        case _:
            raise ValueError(f"unknown schedule {schedule!r}")


class Lion(torch.optim.Optimizer):
    """The Lion optimizer: steps of equal size in every weight, along the sign of a running mean (Chen et al. 2023)."""

    def __init__(self, parameters: list[torch.nn.Parameter], *, lr: float, momentum: float, weight_decay: float):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override] # noqa: ARG002
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                direction = torch.lerp(parameter.grad, mean, group["momentum"]).sign()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * direction)
                mean.lerp_(parameter.grad, 0.01)


def make_optimizer(recipe: Recipe, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimizer that the recipe names."""
    lr, decay = recipe.lr, recipe.weight_decay
    betas = (recipe.beta1, recipe.beta2)
    match recipe.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, lr=lr, momentum=recipe.momentum, weight_decay=decay)
        case "nesterov":
            return torch.optim.SGD(parameters, lr=lr, momentum=recipe.momentum, weight_decay=decay, nesterov=True)
        case "adam":
            return torch.optim.Adam(parameters, lr=lr, weight_decay=decay, betas=betas, eps=recipe.epsilon or 1e-8)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, betas=betas, eps=recipe.epsilon or 1e-8)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr=lr, momentum=recipe.momentum, weight_decay=decay)
        case "adagrad":
            return torch.optim.Adagrad(parameters, lr=lr, weight_decay=decay)
        case "sparse_adam":
            return torch.optim.SparseAdam(parameters, lr=lr)
        case "adadelta":
            return torch.optim.Adadelta(parameters, lr=lr, weight_decay=decay)
        case "adamax":
            return torch.optim.Adamax(parameters, lr=lr, weight_decay=decay, betas=betas)
        case "nadam":
            return torch.optim.NAdam(parameters, lr=lr, weight_decay=decay, betas=betas)
        case "rprop":
            return torch.optim.Rprop(parameters, lr=lr)
        case "lion":
            return Lion(parameters, lr=lr, momentum=recipe.beta1, weight_decay=decay)
        case "lbfgs":
            return torch.optim.LBFGS(parameters, lr=lr, max_iter=4, history_size=10)
        case name:
            raise ValueError(f"unknown optimizer {name!r}")


def round_to_half(gradients: list[Tensor], scale: float) -> None:
    """Multiply gradients by a loss scale, and round those that overflow or underflow in half precision, in place."""
    for gradient in gradients:
        gradient.mul_(scale)
        gradient.masked_fill_(gradient.abs() > HALF_LARGEST, math.inf)
        gradient.masked_fill_(gradient.abs() < HALF_SMALLEST, 0.0)


def clip(gradients: list[Tensor], recipe: Recipe) -> float:
    """Clip gradients in place as the recipe sets; return the factor by which the norm of the whole gradient changed."""
    if not gradients:
        return 1.0
    before = torch.stack([gradient.norm() for gradient in gradients]).norm()
    if recipe.clip_norm is not None:
        coefficient = torch.clamp(recipe.clip_norm / (before + CLIP_EPSILON), max=1.0)
        for gradient in gradients:
            gradient.mul_(coefficient)
        return float(coefficient)
    assert recipe.clip_value is not None
    for gradient in gradients:
        gradient.clamp_(-recipe.clip_value, recipe.clip_value)
    after = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return float(after / before) if float(before) > 0 else 1.0


def describe(recipe: Recipe, program: Program) -> dict[str, object]:
    """Return the training facts, with the fields of `training` in the API."""

    def rms(tensor: Tensor | None) -> float | None:
        if tensor is None or not tensor.is_floating_point():
            return None
        return float(tensor.double().square().mean().sqrt())

    names = {
        "sgd": "SGD",
        "nesterov": "SGD",
        "adam": "Adam",
        "adamw": "AdamW",
        "rmsprop": "RMSprop",
        "adagrad": "Adagrad",
        "sparse_adam": "SparseAdam",
        "lbfgs": "LBFGS",
        "adadelta": "Adadelta",
        "adamax": "Adamax",
        "nadam": "NAdam",
        "rprop": "Rprop",
        "lion": "Lion",
    }
    is_float = program.inputs is not None and program.inputs.is_floating_point()
    return {
        "optimizers": [
            {
                "name": names[recipe.optimizer],
                "learning_rate": recipe.lr * schedule_factor(recipe.schedule, 0, recipe.steps),
                "momentum": recipe.momentum if recipe.optimizer in ("sgd", "nesterov", "rmsprop") else None,
                "weight_decay": recipe.weight_decay,
            }
        ],
        "precision": "float16" if recipe.loss_scale is not None else "float32",
        "input_rms": rms(program.inputs),
        "input_abs_max": float(program.inputs.abs().max()) if is_float and program.inputs is not None else None,
        "target_rms": rms(program.targets),
        "batch_size": recipe.batch,
        "clips_gradients": recipe.clip_norm is not None or recipe.clip_value is not None,
    }


def train(program: Program, ledger: Ledger, recipe: Recipe) -> Run:
    """Run the program to its end, or until 20 steps after it became non-finite."""
    ledger.measure_initial_weights()
    recorder = Recorder(ledger.entries)
    groups = sorted({entry.group for entry in ledger.entries if entry.group >= 0})
    optimizers = {group: make_optimizer(recipe, ledger.parameters(group)) for group in groups}
    trained = ledger.parameters()
    losses, rates, coefficients, scales = [], [], [], []
    skipped: list[bool] = []
    scale, good_steps = recipe.loss_scale or 1.0, 0
    died_at: int | None = None
    for step in range(recipe.steps):
        rate = recipe.lr * schedule_factor(recipe.schedule, step, recipe.steps)
        turn = program.turn(step)
        stepping = [turn] if turn is not None else groups
        for group_index, optimizer in optimizers.items():
            own = recipe.group_rates[group_index] if group_index < len(recipe.group_rates) else 1.0
            for group in optimizer.param_groups:
                group["lr"] = rate * own
        for parameter in trained:
            parameter.grad = None
        loss_value = 0.0
        if recipe.optimizer == "lbfgs":
            loss_value, finite = _step_lbfgs(program, optimizers[0], recorder, step)
        else:
            for _ in range(recipe.accumulate):
                loss = program.loss(step) / recipe.accumulate
                torch.autograd.backward(loss if recipe.average else loss * recipe.accumulate)
                loss_value += float(loss.detach())
            for parameter in trained:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.coalesce()
            gradients = [p.grad for g in stepping for p in ledger.parameters(g) if p.grad is not None]
            if recipe.loss_scale is not None:
                round_to_half(gradients, scale)
            gradients_finite = recorder.before_update(turn)
            skip = recipe.dynamic_scale and not gradients_finite
            scales.append(scale)
            if recipe.loss_scale is not None and not skip:
                for gradient in gradients:
                    gradient.div_(scale)
            if recipe.clip_norm is not None or recipe.clip_value is not None:
                coefficients.append(1.0 if skip else clip(gradients, recipe))
            if not skip:
                for group_index in stepping:
                    optimizers[group_index].step()
            finite = recorder.after_update()
            skipped.append(skip)
            good_steps = 0 if skip else good_steps + 1
            if recipe.dynamic_scale and skip:
                scale /= 2
                if not recipe.record_skipped:
                    recorder.forget_last()
            elif recipe.dynamic_scale and good_steps == recipe.scale_growth_interval:
                scale, good_steps = scale * 2, 0
            program.after_step(step)
        losses.append(loss_value)
        rates.append(rate)
        if died_at is None and not (math.isfinite(loss_value) and finite):
            died_at = step
        if died_at is not None and step >= died_at + STEPS_AFTER_NONFINITE:
            break
    with torch.no_grad():
        skill = -math.inf if died_at is not None else program.skill()
    return Run(
        loss=to_float32(np.array(losses)),
        learning_rate=to_float32(np.array(rates)),
        skipped=np.array(skipped or [False] * len(losses), dtype=bool),
        statistics=recorder.arrays(),
        clip_coefficient=to_float32(np.array(coefficients)) if coefficients else None,
        loss_scale=to_float32(np.array(scales)) if recipe.loss_scale is not None else None,
        skill=skill,
        died=died_at is not None,
        training=describe(recipe, program),
    )


def _step_lbfgs(
    program: Program, optimizer: torch.optim.Optimizer, recorder: Recorder, step: int
) -> tuple[float, bool]:
    """Update by LBFGS, which evaluates the loss several times; record the first gradient and the whole update."""
    first: list[float] = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = program.loss(step)
        torch.autograd.backward(loss)
        if not first:
            recorder.before_update(None)
            first.append(float(loss.detach()))
        return float(loss.detach())

    optimizer.step(closure)
    return first[0], recorder.after_update()
