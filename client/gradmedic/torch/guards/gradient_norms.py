"""The norm of all gradients of an optimizer, before its step.

Where the script clips, the norm from before the clipping counts: after it, a spike has the same norm as the others. If
torch has computed that norm for the clipping, it is not computed again.

On a device, nothing is waited for until the caller reads the parts of the norm, all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradmedic.torch.clipping import add_clipping_observer, remove_clipping_observer
from gradmedic.torch.statistics import flatten, local_part

_LOW_PRECISIONS = (torch.float16, torch.bfloat16)
_MOST_CLIPPINGS = 64
"""Clippings between two steps that are remembered at most. A script clips once, or once for each model."""


class _Clipped:
    """Gradients that were clipped since the last step."""

    __slots__ = ("gradient", "parameters", "parts", "version")

    def __init__(self, parameters: list[Tensor], parts: Tensor) -> None:
        self.parameters = frozenset(id(parameter) for parameter in parameters)
        """Ids of the parameters that had a gradient."""
        self.parts = parts
        """Numbers whose squares add up to that of the norm before the clipping, divided over the processes."""
        self.gradient = parameters[0].grad
        self.version = -1
        """Version counter of the first gradient after the clipping."""

    def is_valid(self, parameters: Mapping[int, Tensor]) -> bool:
        """Whether these are gradients of these parameters, and nothing has changed the first one since."""
        if not self.parameters <= parameters.keys() or self.gradient is None:
            return False
        return (
            any(parameters[key].grad is self.gradient for key in self.parameters)
            and self.gradient._version == self.version
        )


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

    def measure(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return numbers whose squares add up to that of the norm of some parameters' gradients.

        Args:
            parameters: parameters with a gradient, at least one. Of sharded ones, this process has a part.
        """
        if self._clipped and (parts := self._find_unclipped(parameters)) is not None:
            return parts
        return measure_parts(parameters, self._processes)

    def before_clipping(self, parameters: list[Tensor], total_norm: Tensor | None) -> None:
        """Keep the norm of gradients that are about to be clipped."""
        try:
            self._keep(parameters, total_norm)
        except Exception:  # must not reach the script; the norm is measured when the optimizer steps
            self._clipped.clear()

    def after_clipping(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:  # noqa: ARG002
        """Note that the gradients are as the clipping has left them."""
        if self._clipped and (gradient := self._clipped[-1].gradient) is not None:
            self._clipped[-1].version = gradient._version

    def _keep(self, parameters: list[Tensor], total_norm: Tensor | None) -> None:
        clipped = [parameter for parameter in parameters if parameter.grad is not None]
        if not clipped:
            return
        with torch.no_grad():
            if total_norm is None:
                parts = measure_parts(clipped, self._processes)
            else:
                parts = total_norm.detach().reshape(1) / math.sqrt(self._processes)
        new = _Clipped(clipped, parts)
        self._clipped = [each for each in self._clipped if each.parameters != new.parameters][-_MOST_CLIPPINGS:]
        self._clipped.append(new)

    def _find_unclipped(self, parameters: Sequence[Tensor]) -> Tensor | None:
        """Return the parts of the norm before the clipping, if exactly these gradients were clipped, and forget it."""
        by_id = {id(parameter): parameter for parameter in parameters}
        found: set[int] = set()
        parts: list[Tensor] = []
        kept: list[_Clipped] = []
        for clipped in self._clipped:
            if not clipped.is_valid(by_id) or clipped.parameters & found:
                kept.append(clipped)
                continue
            found |= clipped.parameters
            parts.append(clipped.parts)
        self._clipped = kept
        if len(found) < len(by_id):
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
    if len({norm.device for norm in norms}) > 1:
        norms = tuple(norm.to(norms[0].device) for norm in norms)
    parts = torch.stack(norms).detach()
    if processes == 1:
        return parts
    device = parts.device
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
    if type(gradient) is Tensor and gradient.layout == torch.strided:
        return gradient
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
