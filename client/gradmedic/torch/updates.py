"""The size of an optimizer's update, without a copy of the weights to compare with.

One idea: after its step, an optimizer's own state says what it just did. Adam subtracted
`lr * m / (sqrt(v) + epsilon)`, and `m` and `v` are still there. So the norm of the update is computed from the state in
chunks, and a copy of the weights is needed only for optimizers that are not known here.

What is computed is what the optimizer meant to do, in float32 arithmetic: where an update is below a ten-millionth of a
weight, rounding may have swallowed it. Parameters of fewer digits, in which that happens at any time, are compared with
a copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, optim

from gradmedic.torch.statistics import (
    CHUNK,
    LARGEST_SAFE,
    SHORT,
    SMALLEST_SAFE,
    HostArray,
    MeasuredArray,
    PendingArray,
    Vector,
    flatten,
    is_measured_on_host,
    join,
    local_part,
    measure_norms,
    norm_in_chunks,
    to_vector,
)
from gradmedic.torch.topology import number_at_hand

Group = Mapping[str, Any]

_COMPARED = 65_536
"""Elements of a layer that is compared with a copy at most, where there are such layers."""
_TOLERANCE = 1e-3
_ROUNDING = 2.0**-22
"""Of a weight: what float32 may round away in an update, twice over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What happened to one parameter: `scale * (numerator / (root * sqrt(variance - mean^2) + epsilon) + added)`."""

    numerator: Tensor
    scale: float
    variance: Tensor | None = None
    mean: Tensor | None = None
    root: float = 1.0
    epsilon: float = 0.0
    added: tuple[tuple[float, Tensor], ...] = ()
    """Terms of the sum: a factor and a tensor each."""


class UnknownUpdate(Exception):
    """The state of the optimizer is not what its class keeps."""


Rule = Callable[[Group, Mapping[str, Any], Tensor, Tensor], Update]
"""From group, state, parameter after the step, and gradient to the update."""


def rule_for(optimizer: optim.Optimizer, group: Group, parameter: Tensor, *, has_gradient: bool = True) -> Rule | None:
    """Return how the next update of a parameter can be read from the optimizer's state, None if it cannot.

    Only the classes of `torch.optim` themselves are known; one derived from them may do anything. `has_gradient` says
    whether the gradient is there already; a closure may compute it later.
    """
    rule = _RULES.get(type(optimizer))
    if rule is None or parameter.dtype not in (torch.float32, torch.float64) or group.get("differentiable"):
        return None
    gradient = parameter.grad
    if has_gradient and not (gradient is not None and _is_plain_gradient(gradient, parameter)):
        return None
    if number_at_hand(group["lr"]) is None:
        return None
    return rule if rule is _adam or _is_plain(optimizer, group) else None


def measure_updates(updates: Sequence[Update]) -> MeasuredArray:
    """Return the L2 norms of updates that are all on one device."""
    if is_measured_on_host(local_part(updates[0].numerator)):
        return HostArray(_norms_on_cpu(updates))
    return PendingArray(torch.stack([_norm_on_device(update) for update in updates]).float())


class UpdateMeasurement:
    """One step of an optimizer under way: weights as they were before it, and how to tell what it changed.

    Args:
        optimizer: that is about to step.
        groups: the group of each parameter.
        parameters: on one device.
        has_gradients: whether they are there already.
        trusts_state: whether updates may be read from the optimizer's state. One layer is compared with a copy anyhow.
        turn: a number that grows, which decides whose turn it is to be compared.
    """

    def __init__(
        self,
        optimizer: optim.Optimizer,
        groups: Sequence[Group],
        parameters: Sequence[Tensor],
        *,
        has_gradients: bool,
        trusts_state: bool,
        turn: int,
    ) -> None:
        self.weight_norms = measure_norms(parameters)
        self._optimizer, self._groups, self._parameters = optimizer, groups, parameters
        self._local = [local_part(parameter).detach() for parameter in parameters]
        self._rules = [
            rule_for(optimizer, group, parameter, has_gradient=has_gradients) if trusts_state else None
            for group, parameter in zip(groups, parameters, strict=True)
        ]
        self._compared = self._choose_compared(turn)
        self._copies = {
            row: local.clone()
            for row, local in enumerate(self._local)
            if self._rules[row] is None or row == self._compared
        }

    def finish(self, rows: Sequence[int]) -> list[tuple[list[int], MeasuredArray]]:
        """Return the norms of the updates of some of the parameters: which, and their norms.

        Raises:
            UnknownUpdate: the state does not tell, or what it tells is not what happened.
        """
        norms = []
        compared = [row for row in rows if row in self._copies]
        if compared:
            for row in compared:
                self._copies[row].sub_(self._local[row])
            copied = measure_norms([self._copies[row] for row in compared])
            norms.append((compared, copied))
        known = [row for row in rows if self._rules[row] is not None]
        if known:
            read = measure_updates([self._read(row) for row in known])
            if self._compared in known and read.is_ready:
                row = self._compared
                self._check(read.read()[known.index(row)], norms[0][1].read()[compared.index(row)], row)
            norms.insert(0, (known, read))
        return norms

    def _choose_compared(self, turn: int) -> int:
        known = [row for row, rule in enumerate(self._rules) if rule is not None]
        if not known:
            return -1
        short = [row for row in known if self._local[row].numel() <= _COMPARED]
        return short[turn % len(short)] if short else min(known, key=lambda row: self._local[row].numel())

    def _read(self, row: int) -> Update:
        parameter, rule = self._parameters[row], self._rules[row]
        if rule is None or parameter.grad is None:
            raise UnknownUpdate("a gradient disappeared in the step")
        if not _is_plain_gradient(parameter.grad, parameter):
            raise UnknownUpdate("a gradient is sparse, or of another precision than its parameter")
        return rule(self._groups[row], self._optimizer.state[parameter], parameter, parameter.grad)

    def _check(self, told: float, happened: float, row: int) -> None:
        if not (math.isfinite(told) and math.isfinite(happened)):
            return
        rounding = _ROUNDING * float(self.weight_norms.read()[row])
        if abs(told - happened) > _TOLERANCE * max(told, happened) + rounding:
            raise UnknownUpdate(f"its state tells of an update of {told:.3g} where {happened:.3g} happened")


# --- what each optimizer does -----------------------------------------------------------------------------------------


def _is_plain(optimizer: optim.Optimizer, group: Group) -> bool:
    """Whether the update follows from the gradient as it is after the step, where it takes part in it at all."""
    if isinstance(getattr(optimizer, "grad_scale", None), Tensor):
        return False  # a fused step unscales in passing
    if type(optimizer) is optim.SGD or group.get("momentum"):
        return True
    return not group.get("weight_decay")  # it was added before the division, to weights that are no longer there


def _is_plain_gradient(gradient: Tensor, parameter: Tensor) -> bool:
    return gradient.layout == torch.strided and gradient.dtype == parameter.dtype


def _sgd(group: Group, state: Mapping[str, Any], parameter: Tensor, gradient: Tensor) -> Update:
    rate, decay, momentum = _number(group["lr"]), _number(group["weight_decay"]), _number(group["momentum"])
    sign = -1.0 if group["maximize"] else 1.0
    if momentum and not group["nesterov"]:
        return Update(numerator=_tensor(state, "momentum_buffer"), scale=rate)
    # Weights before the step are p + update, which brings the decay into the denominator of the scale.
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


def _number(value: object) -> float:
    number = number_at_hand(value)
    if number is None:
        raise UnknownUpdate(f"{value!r} is no number at hand")
    return number


def _tensor(state: Mapping[str, Any], name: str) -> Tensor:
    value = state.get(name)
    if not isinstance(value, Tensor):
        raise UnknownUpdate(f"the optimizer keeps no {name}")
    return value


# --- its norm ---------------------------------------------------------------------------------------------------------


def _norms_on_cpu(updates: Sequence[Update]) -> NDArray[np.float64]:
    norms = np.zeros(len(updates))
    short: dict[tuple[bool, bool, int], list[int]] = {}
    scratch: NDArray[np.float64] | None = None
    for i, update in enumerate(updates):
        size = local_part(update.numerator).numel()
        if size > SHORT:
            if scratch is None:
                scratch = np.empty(2 * CHUNK, dtype=np.float64)
            norms[i] = _norm_on_cpu(update, scratch)
        elif size:
            alike = (update.variance is None, update.mean is None, len(update.added))
            short.setdefault(alike, []).append(i)
    for rows in short.values():
        norms[rows] = _short_norms([updates[row] for row in rows])
    return norms


def _short_norms(updates: list[Update]) -> NDArray[np.float64]:
    """Return the norms of updates of the same form, joined and in float64: short ones cost their calls."""
    every = range(len(updates))
    result, starts = join([to_vector(update.numerator) for update in updates], every)
    lengths = np.diff([*starts, len(result)])

    def repeat(numbers: list[float]) -> float | NDArray[np.float64]:
        return numbers[0] if min(numbers) == max(numbers) else np.repeat(numbers, lengths)

    def joined(tensors: Iterable[Tensor | None]) -> NDArray[np.float64]:
        return join([to_vector(tensor) for tensor in tensors if tensor is not None], every)[0]

    with np.errstate(all="ignore"):
        if updates[0].variance is not None:
            variance = joined(update.variance for update in updates)
            if updates[0].mean is not None:
                variance -= np.square(joined(update.mean for update in updates))
            root = np.sqrt(variance) * repeat([update.root for update in updates])
            result /= root + repeat([update.epsilon for update in updates])
        for k in range(len(updates[0].added)):
            factors = repeat([update.added[k][0] for update in updates])
            result += factors * joined(update.added[k][1] for update in updates)
        scales = np.abs([update.scale for update in updates])
        norms: NDArray[np.float64] = np.sqrt(np.add.reduceat(np.square(result), starts)) * scales
    return norms


def _norm_on_cpu(update: Update, scratch: NDArray[np.float64]) -> float:
    numerator = to_vector(update.numerator)
    variance = None if update.variance is None else to_vector(update.variance)
    mean = None if update.mean is None else to_vector(update.mean)
    added = [(numerator.dtype.type(factor), to_vector(tensor)) for factor, tensor in update.added]
    room = scratch.view(numerator.dtype)
    first, second = room[:CHUNK], room[CHUNK : 2 * CHUNK]
    root, epsilon = (numerator.dtype.type(number) for number in (update.root, update.epsilon))

    def chunk_of(at: slice) -> Vector:
        if variance is None and not added:
            return numerator[at]
        result, other = first[: at.stop - at.start], second[: at.stop - at.start]
        if variance is None:
            np.copyto(result, numerator[at])
        else:
            if mean is None:
                np.sqrt(variance[at], out=result)
            else:
                np.multiply(mean[at], mean[at], out=result)
                np.sqrt(np.subtract(variance[at], result, out=result), out=result)
            if root != 1:
                np.multiply(result, root, out=result)
            np.add(result, epsilon, out=result)
            np.divide(numerator[at], result, out=result)
        for factor, tensor in added:
            np.add(result, np.multiply(tensor[at], factor, out=other), out=result)
        return result

    with np.errstate(all="ignore"):
        norm = norm_in_chunks(numerator.size, chunk_of)
        if not SMALLEST_SAFE < norm < LARGEST_SAFE:  # squares may have left float32
            norm = _norm_in_float64(numerator.size, chunk_of)
    return abs(update.scale * norm)


def _norm_in_float64(size: int, chunk_of: Callable[[slice], Vector]) -> float:
    chunks = (chunk_of(slice(i, min(i + CHUNK, size))).astype(np.float64) for i in range(0, size, CHUNK))
    return math.hypot(*(float(np.linalg.norm(chunk)) for chunk in chunks))


def _norm_on_device(update: Update) -> Tensor:
    result = flatten(update.numerator)
    if update.variance is not None:
        variance = flatten(update.variance)
        if update.mean is not None:
            mean = flatten(update.mean)
            variance = torch.addcmul(variance, mean, mean, value=-1)
        result = result / variance.sqrt().mul_(update.root).add_(update.epsilon)
    for factor, tensor in update.added:
        result = torch.add(result, flatten(tensor), alpha=factor)
    norm: Tensor = torch.linalg.vector_norm(result) * abs(update.scale)
    return norm
