"""Measures the norms of an optimizer's updates, without copies of the weights where that is possible.

The norm of an update is computed from the optimizer's state in chunks. A copy of the weights is needed only for
optimizers without a rule in `update_rules`.

What is computed is the update before it is rounded, in float32 arithmetic: where an update is below a ten-millionth of
a weight, the weight may not have changed. Parameters of lower precision, where that happens often, are compared with a
copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

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
from gradmedic.torch.update_rules import Group, UnknownUpdate, Update, find_rule, is_plain_gradient

_LARGEST_COMPARED = 65_536
"""Elements of the layer that is compared with a copy; if all layers are larger, the smallest one is compared."""
_TOLERANCE = 1e-3
"""Relative difference that is allowed between the update in the state and the one in the weights."""
_ROUNDING = 2.0**-22
"""Fraction of a weight's norm that float32 may round away in an update, twice over."""


def measure_updates(updates: Sequence[Update]) -> MeasuredArray:
    """Return the L2 norms of updates that are all on one device."""
    if is_measured_on_host(local_part(updates[0].numerator)):
        return HostArray(_norms_on_cpu(updates))
    return PendingArray(torch.stack([_norm_on_device(update) for update in updates]).float())


class UpdateMeasurement:
    """The measurement of one optimizer step: the weights before it, and how to find out what it changed.

    Args:
        optimizer: optimizer that is about to step.
        groups: the group of each parameter.
        parameters: parameters on one device.
        has_gradients: whether the gradients are there already.
        trusts_state: whether updates may be read from the optimizer's state. One layer is compared with a copy always.
        number: number of the measurement. It decides which layer is compared.
    """

    def __init__(
        self,
        optimizer: optim.Optimizer,
        groups: Sequence[Group],
        parameters: Sequence[Tensor],
        *,
        has_gradients: bool,
        trusts_state: bool,
        number: int,
    ) -> None:
        self.weight_norms = measure_norms(parameters)
        self._optimizer, self._groups, self._parameters = optimizer, groups, parameters
        self._local = [local_part(parameter).detach() for parameter in parameters]
        self._rules = [
            find_rule(optimizer, group, parameter, has_gradient=has_gradients) if trusts_state else None
            for group, parameter in zip(groups, parameters, strict=True)
        ]
        self._compared = self._choose_compared(number)
        self._copies = {
            row: local.clone()
            for row, local in enumerate(self._local)
            if self._rules[row] is None or row == self._compared
        }

    def finish(self, rows: Sequence[int]) -> list[tuple[list[int], MeasuredArray]]:
        """Return the norms of the updates of some parameters: rows, and the norms of these.

        Raises:
            UnknownUpdate: the state does not show the update, or shows another one than the copy.
        """
        norms = []
        compared = [row for row in rows if row in self._copies]
        if compared:
            for row in compared:
                self._copies[row].sub_(self._local[row])
            copied = measure_norms([self._copies[row] for row in compared])
            norms.append((compared, copied))
        with_rule = [row for row in rows if self._rules[row] is not None]
        if with_rule:
            computed = measure_updates([self._read_update(row) for row in with_rule])
            if self._compared in with_rule and computed.is_ready:
                row = self._compared
                self._check(computed.read()[with_rule.index(row)], norms[0][1].read()[compared.index(row)], row)
            norms.insert(0, (with_rule, computed))
        return norms

    def _choose_compared(self, number: int) -> int:
        """Return the row of the layer that is compared with a copy, -1 if every layer is."""
        with_rule = [row for row, rule in enumerate(self._rules) if rule is not None]
        if not with_rule:
            return -1
        short = [row for row in with_rule if self._local[row].numel() <= _LARGEST_COMPARED]
        return short[number % len(short)] if short else min(with_rule, key=lambda row: self._local[row].numel())

    def _read_update(self, row: int) -> Update:
        parameter, rule = self._parameters[row], self._rules[row]
        if rule is None or parameter.grad is None:
            raise UnknownUpdate("a gradient disappeared in the step")
        if not is_plain_gradient(parameter.grad, parameter):
            raise UnknownUpdate("a gradient is sparse, or of another precision than its parameter")
        return rule(self._groups[row], self._optimizer.state[parameter], parameter, parameter.grad)

    def _check(self, computed: float, measured: float, row: int) -> None:
        if not (math.isfinite(computed) and math.isfinite(measured)):
            return
        rounding = _ROUNDING * float(self.weight_norms.read()[row])
        if abs(computed - measured) > _TOLERANCE * max(computed, measured) + rounding:
            raise UnknownUpdate(
                f"its state shows an update of {computed:.3g} where the weights moved by {measured:.3g}"
            )


# --- norms ---------------------------------------------------------------------------------------------------------


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
            form = (update.variance is None, update.mean is None, len(update.added))
            short.setdefault(form, []).append(i)
    for rows in short.values():
        norms[rows] = _short_norms([updates[row] for row in rows])
    return norms


def _short_norms(updates: list[Update]) -> NDArray[np.float64]:
    """Return the norms of short updates of the same form, joined and in float64: a call costs more than they do."""
    all_rows = range(len(updates))
    result, starts = join([to_vector(update.numerator) for update in updates], all_rows)
    lengths = np.diff([*starts, len(result)])

    def repeat(numbers: list[float]) -> float | NDArray[np.float64]:
        return numbers[0] if min(numbers) == max(numbers) else np.repeat(numbers, lengths)

    def joined(tensors: Iterable[Tensor | None]) -> NDArray[np.float64]:
        return join([to_vector(tensor) for tensor in tensors if tensor is not None], all_rows)[0]

    with np.errstate(all="ignore"):
        if updates[0].variance is not None:
            variance = joined(update.variance for update in updates)
            if updates[0].mean is not None:
                variance -= np.square(joined(update.mean for update in updates))
            root = np.sqrt(variance) * repeat([update.root for update in updates])
            result /= root + repeat([update.epsilon for update in updates])
        for term in range(len(updates[0].added)):
            factors = repeat([update.added[term][0] for update in updates])
            result += factors * joined(update.added[term][1] for update in updates)
        scales = np.abs([update.scale for update in updates])
        norms: NDArray[np.float64] = np.sqrt(np.add.reduceat(np.square(result), starts)) * scales
    return norms


def _norm_on_cpu(update: Update, scratch: NDArray[np.float64]) -> float:
    numerator = to_vector(update.numerator)
    variance = None if update.variance is None else to_vector(update.variance)
    mean = None if update.mean is None else to_vector(update.mean)
    added = [(numerator.dtype.type(factor), to_vector(tensor)) for factor, tensor in update.added]
    scratch = scratch.view(numerator.dtype)
    first, second = scratch[:CHUNK], scratch[CHUNK : 2 * CHUNK]
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
        if not SMALLEST_SAFE < norm < LARGEST_SAFE:  # squares may be out of float32's range
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
