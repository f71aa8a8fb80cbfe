"""Measures gradients, weights and updates, at the least cost to the training.

Every function returns a `MeasuredArray` of many numbers at once. On a CPU the numbers are there already. From an
accelerator, one copy of all of them is started, which is read a step later. On a CPU, a long tensor is read in chunks
that stay in the cache while every statistic is computed. Short tensors are joined first, because a call costs more time
than they do.

In float32, a plain sum of squares drifts by 4e-4 over ten million elements, overflows from 1e19 and is zero below
1e-23, just where gradients explode and vanish. So squares are summed in short pieces, and norms outside the safe range
are computed again in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradmedic.torch.columns import GRADIENT_COLUMNS, SCALED_COLUMNS

CHUNK = 131_072
"""Elements of a chunk: half a megabyte, which stays in a core's cache. Half or twice as many cost a tenth more time."""
_PIECE = 8_192
"""Elements whose squares are summed in float32. Norms are right to 4e-7, and numpy does not use a second core."""
SHORT = 2_048
"""Elements of a short tensor: for one, a call costs more time than the work that it does."""
SMALLEST_SAFE = 1e-15
LARGEST_SAFE = 1e15
"""Between these numbers, float32 holds the square of each and the sum of a hundred million squares."""

_PLAIN = (Tensor, torch.nn.Parameter)
_NATIVE = (torch.float32, torch.float64)

Vector = NDArray[np.floating[Any]]


class MeasuredArray(Protocol):
    """An array of float64 that is on the host, or is being copied to it."""

    @property
    def is_ready(self) -> bool:
        """Whether `read` returns without waiting for a device."""

    def read(self) -> NDArray[np.float64]:
        """Return the array, waiting for it if need be."""

    def tensor(self) -> Tensor:
        """Return the tensor, on the device where it was computed."""


class HostArray:
    """An array that is on the host."""

    is_ready = True

    def __init__(self, array: NDArray[np.float64]) -> None:
        self._array = array

    def read(self) -> NDArray[np.float64]:
        """Return the array."""
        return self._array

    def tensor(self) -> Tensor:
        """Return a tensor over the same memory."""
        return torch.from_numpy(self._array)


class PendingArray:
    """A small tensor that is being copied to the host. On CUDA, pinned memory and an event make waiting unnecessary."""

    is_ready = False

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
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

    def tensor(self) -> Tensor:
        """Return the tensor that is being copied."""
        return self._tensor


class PendingScalar:
    """A number that is being copied to the host."""

    def __init__(self, array: MeasuredArray) -> None:
        self._array = array

    def read(self) -> float:
        """Return the number, waiting for it if need be."""
        return float(self._array.read()[0])


def start_copy(tensor: Tensor) -> MeasuredArray:
    """Return the numbers of a small tensor; from a device, they are only being copied then."""
    return HostArray(tensor.numpy().astype(np.float64)) if tensor.device.type == "cpu" else PendingArray(tensor)


def copy_first_element(tensor: Tensor) -> MeasuredArray:
    """Return the first number of a tensor, as `start_copy` does."""
    return start_copy(local_part(tensor.detach()).reshape(-1)[:1])


def start_reading(number: Any) -> PendingScalar | float | None:
    """Return a tensor with one element as a number, or start to copy it to the host; None if it is no such tensor.

    An integer on the host is no such tensor either.
    """
    if type(number) is Tensor and number.is_cpu and number.ndim == 0:
        value: object = number.item()  # faster here than tolist(): optimizers call item() too
        return value if isinstance(value, float) else None
    if not isinstance(number, Tensor) or number.is_cpu or number.numel() != 1:
        return None
    return PendingScalar(PendingArray(number.detach().reshape(1)))


def is_nonfinite_on_host(number: Any) -> bool:
    """Whether this is a NaN or infinite number, or a tensor with one in the memory of the host."""
    if isinstance(number, Tensor):
        number = local_part(number)
        if number.device.type != "cpu" or number.numel() != 1 or not number.is_floating_point():
            return False
        return not math.isfinite(number.item())
    return isinstance(number, float) and not math.isfinite(number)


def is_measured_on_host(tensor: Tensor) -> bool:
    """Whether the CPU computes the statistics of a tensor."""
    return tensor.device.type == "cpu"


def measure_gradients(gradients: Sequence[Tensor], scale: Tensor | None = None) -> MeasuredArray:
    """Return GRADIENT_STATISTICS `[gradient, statistic]` of gradients that are all on one device.

    A complex gradient counts as pairs of real numbers. Of a sparse one, the elements that are not stored are zeros.

    Args:
        gradients: gradients of any shape and floating-point dtype.
        scale: factor by which a loss scaler multiplied the gradients.
    """
    gradients = [local_part(g) for g in gradients]
    sizes = np.array([g.numel() * (2 if g.is_complex() else 1) for g in gradients], dtype=np.float64)
    if is_measured_on_host(gradients[0]):
        values = _measure_on_cpu([to_vector(gradient) for gradient in gradients], sizes)
        if scale is not None:
            values[:, SCALED_COLUMNS] /= float(scale)
        return HostArray(values)
    return PendingArray(_measure_on_device([flatten(gradient) for gradient in gradients], sizes, scale))


def measure_norms(tensors: Sequence[Tensor]) -> MeasuredArray:
    """Return the L2 norms `[tensor]` of tensors that are all on one device."""
    if is_measured_on_host(local_part(tensors[0])):
        return HostArray(_norms_on_cpu([to_vector(tensor) for tensor in tensors]))
    return PendingArray(torch.stack(torch._foreach_norm([flatten(tensor) for tensor in tensors])).float())


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds: the whole tensor, unless it is sharded."""
    if type(tensor) in _PLAIN:
        return tensor
    local = getattr(tensor, "_local_tensor", None)
    return local if isinstance(local, Tensor) else tensor


def flatten(tensor: Tensor) -> Tensor:
    """Return the stored elements as a vector of real float32 or float64; a view where that is possible."""
    tensor = local_part(tensor).detach()
    if tensor.layout != torch.strided:
        tensor = tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    if tensor.dtype not in _NATIVE:
        tensor = tensor.float()
    return tensor.reshape(-1)


def to_vector(tensor: Tensor) -> Vector:
    """Return the stored elements of a tensor in host memory as a vector; a view where that is possible."""
    if type(tensor) in _PLAIN and tensor.layout == torch.strided and tensor.dtype in _NATIVE:
        plain: Vector = tensor.numpy(force=True).reshape(-1)  # one call, where `flatten` makes three
        return plain
    return flatten(tensor).numpy()


def sum_of_squares(vector: Vector) -> float:
    """Return the sum of the squares of a vector, summed in pieces."""
    if vector.size <= _PIECE:
        return float(np.dot(vector, vector))
    whole = vector.size - vector.size % _PIECE
    total = sum([float(np.dot(piece, piece)) for piece in vector[:whole].reshape(-1, _PIECE)])
    return total + float(np.dot(vector[whole:], vector[whole:]))


def norm_in_chunks(size: int, chunk_of: Callable[[slice], Vector]) -> float:
    """Return the norm of a vector, given a function that returns a chunk of it."""
    return math.sqrt(sum([sum_of_squares(chunk_of(slice(i, min(i + CHUNK, size)))) for i in range(0, size, CHUNK)]))


def join(vectors: Sequence[Vector], chosen: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the chosen vectors one after another in float64, and where each begins."""
    parts = [vectors[i] for i in chosen]
    ends = np.cumsum([part.size for part in parts])
    return np.concatenate(parts, dtype=np.float64), np.concatenate([[0], ends[:-1]]).astype(np.intp)


# --- on a CPU ---------------------------------------------------------------------------------------------------------


def _measure_on_cpu(vectors: list[Vector], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.zeros((len(vectors), GRADIENT_COLUMNS.stop))  # norm, largest, sum, nonzero, non-finite
    short = [i for i, vector in enumerate(vectors) if 0 < vector.size <= SHORT]
    long = [i for i, vector in enumerate(vectors) if vector.size > SHORT]
    with np.errstate(over="ignore", invalid="ignore"):
        if short:
            joined, starts = join(vectors, short)
            values[short, 0] = np.sqrt(np.add.reduceat(np.square(joined), starts))
            values[short, 1] = np.maximum.reduceat(np.abs(joined), starts)
            values[short, 2] = np.add.reduceat(joined, starts)
            values[short, 3] = np.add.reduceat(joined != 0, starts, dtype=np.int64)
        scratch = np.empty(CHUNK if long else 0, dtype=np.bool_)
        for i in long:
            values[i, :4] = _measure_long(vectors[i], scratch)
        divisors = np.maximum(sizes, 1.0)
        values[:, 2] /= divisors
        values[:, 3] = (sizes - values[:, 3]) / divisors
        abs_max = values[:, 1]
        unsafe = ~((abs_max > SMALLEST_SAFE) & (abs_max < LARGEST_SAFE)) & (abs_max != 0)
        for i in map(int, np.flatnonzero(unsafe)):
            if math.isfinite(abs_max[i]):
                quotient = _divide(vectors[i], float(abs_max[i]))
                values[i, 0] = np.linalg.norm(quotient) * abs_max[i]
                values[i, 2] = quotient.sum() / sizes[i] * abs_max[i]
            else:
                values[i, 4] = vectors[i].size - np.count_nonzero(np.isfinite(vectors[i]))
    return values


def _measure_long(vector: Vector, scratch: NDArray[np.bool_]) -> tuple[float, float, float, int]:
    """Return norm, largest absolute value, sum and number of elements that are not zero."""
    squares, largest, total, nonzero = 0.0, 0.0, 0.0, 0
    for start in range(0, vector.size, CHUNK):
        chunk = vector[start : start + CHUNK]
        squares += sum_of_squares(chunk)
        largest = float(np.maximum(largest, np.maximum(chunk.max(), -chunk.min())))  # max() would ignore NaN
        total += float(chunk.sum())
        nonzero += chunk.size - int(np.count_nonzero(np.equal(chunk, 0, out=scratch[: chunk.size])))
    return math.sqrt(squares), largest, total, nonzero


def _norms_on_cpu(vectors: list[Vector]) -> NDArray[np.float64]:
    norms = np.zeros(len(vectors))
    short = [i for i, vector in enumerate(vectors) if 0 < vector.size <= SHORT]
    with np.errstate(over="ignore", invalid="ignore"):
        if short:
            joined, starts = join(vectors, short)
            norms[short] = np.sqrt(np.add.reduceat(np.square(joined), starts))
        for i, vector in enumerate(vectors):
            if vector.size > SHORT:
                norms[i] = norm_in_chunks(vector.size, vector.__getitem__)
        unsafe = ~((norms > SMALLEST_SAFE) & (norms < LARGEST_SAFE))
        for i in map(int, np.flatnonzero(unsafe)):
            vector = vectors[i]
            abs_max = float(np.maximum(vector.max(), -vector.min())) if vector.size else 0.0
            if abs_max != 0 and math.isfinite(abs_max):
                norms[i] = np.linalg.norm(_divide(vector, abs_max)) * abs_max
    return norms


def _divide(vector: Vector, divisor: float) -> NDArray[np.float64]:
    quotient: NDArray[np.float64] = vector.astype(np.float64) / divisor
    return quotient


# --- on an accelerator ------------------------------------------------------------------------------------------------


def _measure_on_device(flat: list[Tensor], sizes: NDArray[np.float64], scale: Tensor | None) -> Tensor:
    # Non-finite elements are counted always: to look at the norms first would mean to wait for them.
    nonzero = torch.stack([torch.count_nonzero(t) for t in flat])
    nonfinite = torch.stack([t.numel() - torch.isfinite(t).sum() for t in flat])
    size = torch.from_numpy(sizes.astype(np.float32)).to(nonzero.device, non_blocking=True)
    columns = [
        torch.stack(torch._foreach_norm(flat)).float(),
        torch.stack([_abs_max(t) for t in flat]).float(),
        torch.stack([t.sum() / max(1.0, n) for t, n in zip(flat, sizes, strict=True)]).float(),
        (size - nonzero) / size.clamp_min(1.0),
        nonfinite.float(),
    ]
    if scale is not None:
        columns = [column / scale if i in SCALED_COLUMNS else column for i, column in enumerate(columns)]
    return torch.stack(columns, dim=1)


def _abs_max(flat: Tensor) -> Tensor:
    return torch.stack(torch.aminmax(flat)).abs().amax() if len(flat) else flat.new_zeros(())
