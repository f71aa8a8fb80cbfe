"""How the update of each optimizer of torch follows from its state.

After its step, an optimizer still has in its state what it did. Adam subtracted `lr * m / (sqrt(v) + epsilon)`, and `m`
and `v` are still there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, optim

from gradmedic.torch.optimizers import read_number

Group = Mapping[str, Any]
"""A parameter group of an optimizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The update of one parameter: `scale * (numerator / (root * sqrt(variance - mean^2) + epsilon) + added)`."""

    numerator: Tensor
    scale: float
    variance: Tensor | None = None
    mean: Tensor | None = None
    root: float = 1.0
    epsilon: float = 0.0
    added: tuple[tuple[float, Tensor], ...] = ()
    """Terms that are added, each a factor and a tensor."""


class UnknownUpdate(Exception):
    """The update cannot be read from the optimizer's state."""


Rule = Callable[[Group, Mapping[str, Any], Tensor, Tensor], Update]
"""Returns the update, given group, state, parameter after the step, and gradient."""


def find_rule(optimizer: optim.Optimizer, group: Group, parameter: Tensor, *, has_gradient: bool = True) -> Rule | None:
    """Return the rule by which the next update of a parameter follows from the optimizer's state; None without a rule.

    Only classes of `torch.optim` have rules: a class that is derived from one may do something else.

    Args:
        optimizer: optimizer that is about to step.
        group: parameter group of the parameter.
        parameter: parameter before the step.
        has_gradient: whether the gradient is there already; a closure may compute it later.
    """
    rule = _RULES.get(type(optimizer))
    if rule is None or parameter.dtype not in (torch.float32, torch.float64) or group.get("differentiable"):
        return None
    gradient = parameter.grad
    if has_gradient and not (gradient is not None and is_plain_gradient(gradient, parameter)):
        return None
    if read_number(group["lr"]) is None:
        return None
    return rule if rule is _adam or _follows_from_gradient(optimizer, group) else None


def _follows_from_gradient(optimizer: optim.Optimizer, group: Group) -> bool:
    """Whether the update follows from the gradient as it is after the step, or not from the gradient at all."""
    if isinstance(getattr(optimizer, "grad_scale", None), Tensor):
        return False  # the step itself divides by the scale
    if type(optimizer) is optim.SGD or group.get("momentum"):
        return True
    return not group.get("weight_decay")  # of the weights before the step, added before a division


def is_plain_gradient(gradient: Tensor, parameter: Tensor) -> bool:
    """Whether a gradient is dense and has the dtype of its parameter."""
    return gradient.layout == torch.strided and gradient.dtype == parameter.dtype


def _sgd(group: Group, state: Mapping[str, Any], parameter: Tensor, gradient: Tensor) -> Update:
    rate, decay, momentum = _number(group["lr"]), _number(group["weight_decay"]), _number(group["momentum"])
    sign = -1.0 if group["maximize"] else 1.0
    if momentum and not group["nesterov"]:
        return Update(numerator=_tensor(state, "momentum_buffer"), scale=rate)
    # The decay is of the weights before the step, which are p + update; so it is in the denominator of the scale.
    scale = rate / (1.0 - rate * decay)
    decayed = ((sign * decay, parameter),) if decay else ()
    if momentum:
        decayed = (*decayed, (sign * momentum, _tensor(state, "momentum_buffer")))
    return Update(numerator=gradient, scale=scale, added=decayed)


def _adam(group: Group, state: Mapping[str, Any], parameter: Tensor, _gradient: Tensor) -> Update:
    rate, decay, step = _number(group["lr"]), _number(group["weight_decay"]), _number(state.get("step"))
    first, second = (1.0 - _number(beta) ** step for beta in group["betas"])
    scale, decayed = rate / first, ()
    if decay and group.get("decoupled_weight_decay", False):
        scale /= 1.0 - rate * decay
        decayed = ((decay * first, parameter),)  # type: ignore[assignment]
    return Update(
        numerator=_tensor(state, "exp_avg"),
        scale=scale,
        variance=_tensor(state, "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"),
        root=1.0 / math.sqrt(second),
        epsilon=_number(group["eps"]),
        added=decayed,
    )


def _rmsprop(group: Group, state: Mapping[str, Any], _parameter: Tensor, gradient: Tensor) -> Update:
    rate = _number(group["lr"])
    if group["momentum"]:
        return Update(numerator=_tensor(state, "momentum_buffer"), scale=rate)
    return Update(
        numerator=gradient,
        scale=rate,
        variance=_tensor(state, "square_avg"),
        mean=_tensor(state, "grad_avg") if group["centered"] else None,
        epsilon=_number(group["eps"]),
    )


def _adagrad(group: Group, state: Mapping[str, Any], _parameter: Tensor, gradient: Tensor) -> Update:
    step = _number(state.get("step"))
    return Update(
        numerator=gradient,
        scale=_number(group["lr"]) / (1.0 + (step - 1.0) * _number(group["lr_decay"])),
        variance=_tensor(state, "sum"),
        epsilon=_number(group["eps"]),
    )


_RULES: dict[type[optim.Optimizer], Rule] = {
    optim.SGD: _sgd,
    optim.Adam: _adam,
    optim.AdamW: _adam,
    optim.RMSprop: _rmsprop,
    optim.Adagrad: _adagrad,
}


def _number(setting: object) -> float:
    number = read_number(setting)
    if number is None:
        raise UnknownUpdate(f"{setting!r} is no number on the host")
    return number


def _tensor(state: Mapping[str, Any], name: str) -> Tensor:
    value = state.get(name)
    if not isinstance(value, Tensor):
        raise UnknownUpdate(f"the optimizer keeps no {name}")
    return value
