"""Numbers of gradients, weights and updates, at the least cost to the training.

One idea: every function returns a `HostArray` of many numbers at once. On a CPU it is there already; on an accelerator
it is one stacked copy that was only started, and is read a step later. Which operation is fast on which device was
measured; it is not the same one.

float32 has its limits: a plain sum of squares drifts by 4e-4 over ten million elements, overflows from 1e19 and is zero
below 1e-23 - just where gradients explode and vanish. So long tensors are summed in pieces, and what lies outside the
safe range is computed again in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GRADIENT_STATISTICS = ("grad_norm", "grad_abs_max", "grad_mean", "grad_zero_fraction", "nonfinite_count")
"""What `measure_gradients` returns, in order."""

_PIECE = 4096
"""Elements whose squares are summed in float32: keeps norms right to 1e-7."""
_LONG = 8 * _PIECE
"""Below this, one plain sum is as accurate as pieces are."""
_SMALLEST_SAFE = 1e-15
_LARGEST_SAFE = 1e15
"""Between these, float32 holds the squares and a hundred million of them together."""


class HostArray(Protocol):
    """An array of float64 that may still be on its way to the host."""

    @property
    def is_ready(self) -> bool:
        """Whether `read` returns without waiting for a device."""

    def read(self) -> NDArray[np.float64]:
        """Return the array, waiting for it if need be."""


class Here:
    """An array that is on the host."""

    is_ready = True

    def __init__(self, array: NDArray[np.float64]) -> None:
        self._array = array

    def read(self) -> NDArray[np.float64]:
        """Return the array."""
        return self._array


class UnderWay:
    """A small tensor being copied from a device, without waiting: pinned memory and an event on CUDA."""

    is_ready = False

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            self._host = tensor.to("cpu")

    def read(self) -> NDArray[np.float64]:
        """Return the array; on CUDA, wait for this copy alone."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.numpy().astype(np.float64)


def measure_gradients(gradients: Sequence[Tensor], scale: Tensor | None = None) -> HostArray:
    """Return GRADIENT_STATISTICS `[gradient, statistic]` of gradients that are all on one device.

    A complex gradient counts as pairs of real numbers. Of a sparse one, the elements that are not stored are zeros.

    Args:
        gradients: of any shape and floating-point dtype.
        scale: what a loss scaler multiplied them by.
    """
    sizes = np.array([g.numel() * (2 if g.is_complex() else 1) for g in gradients], dtype=np.float64)
    flat = [_flatten(g) for g in gradients]
    if gradients[0].device.type == "cpu":
        values = _measure_on_cpu(flat, sizes)
        if scale is not None:
            values[:, :3] /= float(scale)
        return Here(values)
    return UnderWay(_measure_on_device(flat, sizes, scale))


def measure_norms(tensors: Sequence[Tensor]) -> HostArray:
    """Return the L2 norms `[tensor]` of tensors that are all on one device."""
    flat = [_flatten(t) for t in tensors]
    if tensors[0].device.type == "cpu":
        return Here(_norms_on_cpu(flat))
    return UnderWay(torch.stack(torch._foreach_norm(flat)).float())


def _flatten(tensor: Tensor) -> Tensor:
    """Return the stored elements as a vector of real float32 or float64; a view where that is possible."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    return tensor.reshape(-1)


def _measure_on_cpu(flat: list[Tensor], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.zeros((len(flat), 5))
    stored = [i for i, tensor in enumerate(flat) if tensor.numel() > 0]
    if stored:
        norms: list[Tensor] = []
        extremes: list[Tensor] = []
        sums: list[Tensor] = []
        counts: list[Tensor] = []
        for i in stored:
            tensor = flat[i]
            norms.append(_norm_in_pieces(tensor))
            extremes.extend(torch.aminmax(tensor))
            sums.append(tensor.sum())
            counts.append(torch.count_nonzero(tensor))
        values[stored, 0] = torch.stack(norms).numpy()
        values[stored, 1] = torch.stack(extremes).abs_().view(-1, 2).amax(dim=1).numpy()
        values[stored, 2] = torch.stack(sums).numpy()
        values[stored, 3] = torch.stack(counts).numpy()
    divisors = np.maximum(sizes, 1.0)
    values[:, 2] /= divisors
    values[:, 3] = (sizes - values[:, 3]) / divisors
    abs_max = values[:, 1]
    with np.errstate(invalid="ignore"):
        unsafe = ~((abs_max > _SMALLEST_SAFE) & (abs_max < _LARGEST_SAFE)) & (abs_max != 0)
    for i in map(int, np.flatnonzero(unsafe)):
        largest = float(abs_max[i])
        if math.isfinite(largest):
            scaled = flat[i].double() / largest
            values[i, 0] = float(torch.linalg.vector_norm(scaled)) * largest
            values[i, 2] = float(scaled.sum()) / float(sizes[i]) * largest
        else:
            values[i, 4] = len(flat[i]) - int(torch.isfinite(flat[i]).sum())
    return values


def _measure_on_device(flat: list[Tensor], sizes: NDArray[np.float64], scale: Tensor | None) -> Tensor:
    columns = [
        torch.stack(torch._foreach_norm(flat)).float(),
        torch.stack([_abs_max(t) for t in flat]).float(),
        torch.stack([t.sum() / max(1.0, n) for t, n in zip(flat, sizes, strict=True)]).float(),
    ]
    if scale is not None:
        columns = [column / scale for column in columns]
    nonzero = torch.stack([torch.count_nonzero(t) for t in flat])
    nonfinite = torch.stack([t.numel() - torch.isfinite(t).sum() for t in flat])
    size = torch.from_numpy(sizes.astype(np.float32)).to(nonzero.device, non_blocking=True)
    return torch.stack([*columns, (size - nonzero) / size.clamp_min(1.0), nonfinite.float()], dim=1)


def _norms_on_cpu(flat: list[Tensor]) -> NDArray[np.float64]:
    norms = torch.stack([_norm_in_pieces(tensor) for tensor in flat]).numpy().astype(np.float64)
    with np.errstate(invalid="ignore"):
        unsafe = ~((norms > _SMALLEST_SAFE) & (norms < _LARGEST_SAFE))
    for i in map(int, np.flatnonzero(unsafe)):
        if len(flat[i]) == 0:
            continue
        abs_max = float(_abs_max(flat[i]))
        if abs_max != 0 and math.isfinite(abs_max):
            norms[i] = float(torch.linalg.vector_norm(flat[i].double() / abs_max)) * abs_max
    return norms


def _abs_max(flat: Tensor) -> Tensor:
    return torch.stack(torch.aminmax(flat)).abs().amax() if len(flat) else flat.new_zeros(())


def _norm_in_pieces(flat: Tensor) -> Tensor:
    """Return the L2 norm of a vector: that of the norms of its pieces."""
    norms = flat
    if len(flat) >= _LONG and flat.dtype == torch.float32:
        whole = len(flat) - len(flat) % _PIECE
        norms = torch.linalg.vector_norm(flat[:whole].view(-1, _PIECE), dim=1)
        if whole < len(flat):
            norms = torch.cat([norms, torch.linalg.vector_norm(flat[whole:]).view(1)])
    norm: Tensor = torch.linalg.vector_norm(norms)
    return norm
