"""Looks for a non-finite gradient at the steps that are not sampled, before the update makes the weights non-finite.

A NaN of the backward pass spreads towards the inputs: on the input side of its birth, it reaches every layer and nearly
every output of it. There, the gradients of biases and of normalizations are sums over all examples and positions,
so that they contain it, and so do the first rows of a weight's gradient. These are short; they are joined and added up
in three calls. If the sum is not finite, the step is sampled in full. Of a small model, all gradients are added up.

On a device, such a look would mean to wait. There, the largest absolute gradient of each layer is computed by one fused
call, and copied to the host without waiting. The thread that completes the step reads it.

What is not seen before the next step: a NaN that is born in some elements of a large weight's gradient alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradmedic.torch.statistics import SHORT, PendingArray, flatten, is_measured_on_host, local_part
from gradmedic.torch.structure import OwnedParameter
from gradmedic.torch.watched_layers import WatchedParameter, group_by_device

if TYPE_CHECKING:
    from gradmedic.torch.step_measurement import StepMeasurement

_FEWEST_ELEMENTS = 32_768
"""Elements that are added up at least, if there are so many: about ten microseconds."""
_LARGEST_FRACTION = 1 / 256
"""Fraction of the gradients that is added up of a larger model. The optimizer reads all of them several times."""
_MAX_WEIGHTS = 64
"""Large weights of whose gradients some rows are added up, at two microseconds each. Those of modules without a short
parameter come first."""
_MAX_LISTS = 16
"""Lists of parameters whose selection is kept."""

_LOW_PRECISIONS = (torch.float16, torch.bfloat16)


class GradientCheck:
    """Finds non-finite gradients at little cost.

    Args:
        owned: the watched parameters in the order of the model, from the input on.
    """

    def __init__(self, owned: Sequence[OwnedParameter]) -> None:
        self._owned = owned
        self._selections: dict[tuple[int, int, int], _Selection] = {}

    def is_finite(self, parameters: Sequence[Tensor]) -> bool:
        """Whether no non-finite gradient is found among those of some parameters. Those on a device are left out.

        Args:
            parameters: the parameters. Their gradients are there.
        """
        if not parameters:
            return True
        key = (len(parameters), id(parameters[0]), id(parameters[-1]))
        selection = self._selections.get(key)
        if selection is None:
            if any(is_lazy(parameter) for parameter in parameters):
                return True
            if len(self._selections) >= _MAX_LISTS:
                self._selections.clear()  # the script builds its lists anew
            selection = self._selections[key] = self._select(parameters)
        return selection.is_finite()

    def _select(self, parameters: Sequence[Tensor]) -> _Selection:
        chosen = {id(parameter) for parameter in parameters}
        candidates = [each for each in self._owned if id(each.parameter) in chosen and _is_eligible(each.parameter)]
        total = sum(each.parameter.numel() for each in candidates)
        if total <= _FEWEST_ELEMENTS:
            return _Selection([each.parameter for each in candidates])
        left = max(_FEWEST_ELEMENTS, int(total * _LARGEST_FRACTION))
        whole, modules = [], set()
        for each in candidates:
            size = each.parameter.numel()
            if size <= min(SHORT, left):
                whole.append(each.parameter)
                modules.add(id(each.module))
                left -= size
        rows: list[tuple[Tensor, int]] = []
        columns: list[tuple[Tensor, int]] = []
        large = [each for each in candidates if each.parameter.ndim > 1 and each.parameter.numel() > SHORT]
        for each in sorted(large, key=lambda each: id(each.module) in modules)[:_MAX_WEIGHTS]:
            parameter = each.parameter
            count, width = parameter.shape[0], parameter.numel() // parameter.shape[0]
            if isinstance(each.module, nn.Embedding | nn.EmbeddingBag):
                stride = -(-count // SHORT)
                columns.append((parameter, stride))
                left -= count // stride
                continue
            needed = 1 if id(each.module) in modules else min(count, -(-SHORT // width))
            if needed * width <= left:
                rows.append((parameter, needed))
                left -= needed * width
        return _Selection(whole, rows, columns)


class _Selection:
    """The gradients that are added up.

    Args:
        whole: parameters whose whole gradients count.
        rows: parameters of whose gradients this many rows count. One row shows a gradient that is NaN as a whole.
        columns: parameters of whose gradients one element of each n-th row counts, and n: a batch reaches some of the
            rows of an embedding only.
    """

    def __init__(
        self,
        whole: Iterable[Tensor],
        rows: Sequence[tuple[Tensor, int]] = (),
        columns: Sequence[tuple[Tensor, int]] = (),
    ) -> None:
        whole = list(whole)
        self._vectors = [parameter for parameter in whole if parameter.ndim == 1]
        self._shaped = [parameter for parameter in whole if parameter.ndim != 1]
        self._single_rows = [parameter for parameter, count in rows if count == 1]
        self._rows = [(parameter, count) for parameter, count in rows if count > 1]
        self._columns = columns
        self._are_plain = True

    def is_finite(self) -> bool:
        """Whether the sum is finite. Without `torch.no_grad`, because entering that costs as much as the sum."""
        if self._are_plain:
            try:
                return _is_sum_finite(self._list_plain())
            except (RuntimeError, IndexError):  # sparse, or of a class of its own
                self._are_plain = False
        parameters = [*self._vectors, *self._shaped, *(parameter for parameter, _ in (*self._rows, *self._columns))]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return all(math.isfinite(float(flatten(gradient).sum())) for gradient in gradients)

    def _list_plain(self) -> list[Tensor]:
        parts = [gradient for parameter in self._vectors if (gradient := parameter.grad) is not None]
        parts += [gradient.reshape(-1) for parameter in self._shaped if (gradient := parameter.grad) is not None]
        for parameter in self._single_rows:
            if (gradient := parameter.grad) is not None:
                row = gradient.select(0, 0)
                parts.append(row if row.ndim == 1 else row.reshape(-1))
        for parameter, count in self._rows:
            if (gradient := parameter.grad) is not None:
                parts.append(gradient.narrow(0, 0, count).reshape(-1))
        for parameter, stride in self._columns:
            if (gradient := parameter.grad) is not None:
                parts.append(gradient[::stride, 0])
        return parts


def _is_sum_finite(parts: list[Tensor]) -> bool:
    if not parts:
        return True
    joined = torch.cat(parts)
    total = joined.sum(dtype=torch.float32) if joined.dtype in _LOW_PRECISIONS else joined.sum()
    return math.isfinite(total.item())


def _is_eligible(parameter: Tensor) -> bool:
    local = local_part(parameter)
    return is_measured_on_host(local) and local is parameter and parameter.is_floating_point()


def add_flags(measurement: StepMeasurement, watched: Sequence[WatchedParameter]) -> None:
    """Measure on their device which gradients are non-finite. Those in the memory of the host are left out."""
    measured = [
        each
        for each in watched
        if (gradient := each.parameter.grad) is not None
        and not is_measured_on_host(local_part(gradient))
        and gradient.numel()
    ]
    with torch.no_grad():
        for group in group_by_device(measured):
            measurement.add_flags(group, measure_flags([each.parameter for each in group]))


def measure_flags(parameters: Sequence[Tensor]) -> PendingArray:
    """Return `[parameter, number]` of parameters on one device: largest absolute gradient, and norm of the weights.

    Nothing waits for the device. If an element is not finite, the largest absolute value is NaN or infinite.
    """
    gradients = [flatten(parameter.grad) for parameter in parameters if parameter.grad is not None]
    largest = torch.stack(torch._foreach_norm(gradients, math.inf)).float()
    weights = torch.stack(torch._foreach_norm([flatten(parameter) for parameter in parameters])).float()
    return PendingArray(torch.stack([largest, weights], dim=1))
