"""The norm of all gradients of an optimizer, before its step.

Where the script clips, the norm from before the clipping counts: after it, a spike has the same norm as the others. If
torch has computed that norm for the clipping, it is not computed again.

On a device, nothing is waited for until the caller reads the parts of the norm, all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradmedic.torch.clipping import add_clipping_observer, remove_clipping_observer
from gradmedic.torch.statistics import flatten, local_part

_LOW_PRECISIONS = (torch.float16, torch.bfloat16)
_MOST_CLIPPINGS = 64
"""Clippings between two steps that are remembered at most. A script clips once, or once for each model."""


class _Clipped(NamedTuple):
    """Gradients that were clipped since the last step."""

    parameters: frozenset[int]
    """Ids of the parameters that had a gradient."""
    parts: Tensor
    """Numbers whose squares add up to that of the norm before the clipping, divided over the processes."""


class GradientNorms:
    """Measures the norms of gradients. A `ClippingObserver`.

    Args:
        processes: number of processes that add up their parts of each norm.
    """

    def __init__(self, processes: int = 1) -> None:
        self._processes = processes
        self._clipped: list[_Clipped] = []
        add_clipping_observer(self)

    def close(self) -> None:
        """Observe clipping no more."""
        remove_clipping_observer(self)
        self._clipped.clear()

    def forget(self) -> None:
        """Forget the clippings of a step that is over."""
        self._clipped.clear()

    def measure(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return numbers whose squares add up to that of the norm of some parameters' gradients.

        Args:
            parameters: parameters with a gradient, at least one. Of sharded ones, this process has a part.
        """
        if self._clipped and (parts := self._find_unclipped({id(parameter) for parameter in parameters})) is not None:
            return parts
        return measure_parts(parameters, self._processes)

    def before_clipping(self, parameters: list[Tensor], total_norm: Tensor | None) -> None:
        """Keep the norm of gradients that are about to be clipped."""
        try:
            self._keep(parameters, total_norm)
        except Exception:  # must not reach the script; the norm is measured when the optimizer steps
            self._clipped.clear()

    def after_clipping(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:
        """Do nothing: the norm from before is kept."""

    def _keep(self, parameters: list[Tensor], total_norm: Tensor | None) -> None:
        clipped = [parameter for parameter in parameters if parameter.grad is not None]
        ids = frozenset(id(parameter) for parameter in clipped)
        self._clipped = [each for each in self._clipped if each.parameters != ids][-_MOST_CLIPPINGS:]
        if not clipped:
            return
        with torch.no_grad():
            if total_norm is None:
                parts = measure_parts(clipped, self._processes)
            else:
                parts = total_norm.detach().reshape(1) / math.sqrt(self._processes)
        self._clipped.append(_Clipped(ids, parts))

    def _find_unclipped(self, ids: set[int]) -> Tensor | None:
        """Return the parts of the norm before the clipping, if exactly these gradients were clipped."""
        found: set[int] = set()
        parts = []
        for clipped in self._clipped:
            if clipped.parameters <= ids and not clipped.parameters & found:
                found |= clipped.parameters
                parts.append(clipped.parts)
        if len(found) < len(ids):
            return None
        return parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].device) for part in parts])


def measure_parts(parameters: Sequence[Tensor], processes: int = 1) -> Tensor:
    """Return the norm of each gradient, on the device of the first one.

    Args:
        parameters: parameters with a gradient, at least one.
        processes: number of processes whose parts add up. Each divides by the number of processes with the same part.
    """
    gradients = [_stored_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
    is_low = any(gradient.dtype in _LOW_PRECISIONS for gradient in gradients)
    norms = torch._foreach_norm(gradients, dtype=torch.float32) if is_low else torch._foreach_norm(gradients)
    device = norms[0].device
    parts = torch.stack([norm if norm.device == device else norm.to(device) for norm in norms])
    if processes == 1:
        return parts
    copies = [math.sqrt(_count_copies(parameter, processes)) for parameter in parameters if parameter.grad is not None]
    if len(set(copies)) == 1:
        return parts / copies[0]
    return parts / torch.tensor(copies, dtype=parts.dtype).to(device, non_blocking=True)


def find_nonfinite(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the parameters whose gradient has an element that is not finite, as far as this process holds it."""
    parts = [(parameter, _stored_part(parameter.grad)) for parameter in parameters if parameter.grad is not None]
    parts = [(parameter, part) for parameter, part in parts if part.numel()]
    largest = torch._foreach_norm([part for _, part in parts], math.inf) if parts else []
    return [parameter for (parameter, _), norm in zip(parts, largest, strict=True) if not math.isfinite(norm.item())]


def _stored_part(gradient: Tensor | None) -> Tensor:
    """Return the elements of a gradient that this process holds: all, or those of a shard or a sparse gradient."""
    if gradient is None:
        raise RuntimeError("a gradient disappeared while it was measured")
    local = local_part(gradient)
    return local if local.layout == torch.strided else flatten(local)


def _count_copies(parameter: Tensor, processes: int) -> int:
    """Return the number of processes that hold the same part of a parameter."""
    placements = getattr(parameter, "placements", None)
    if placements is None:
        return processes
    copies = processes // parameter.device_mesh.size()  # type: ignore[attr-defined]
    for dimension, placement in enumerate(placements):
        if placement.is_replicate():
            copies *= parameter.device_mesh.size(dimension)  # type: ignore[attr-defined]
    return int(copies)
