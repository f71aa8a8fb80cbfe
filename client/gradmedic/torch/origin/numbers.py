"""Tells whether the elements of tensors are finite."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

_HALVES = (torch.float16, torch.bfloat16)


def is_checked(tensor: Tensor) -> bool:
    """Whether the tensor has elements that may be NaN or infinite."""
    return (
        (tensor.is_floating_point() or tensor.is_complex())
        and tensor.layout == torch.strided
        and tensor.numel() > 0
        and tensor.device.type != "meta"
    )


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite. A finite sum shows it, in a quarter of the time of a look at each element."""
    if not is_checked(tensor):
        return True
    try:
        total = tensor.sum(dtype=torch.float32) if tensor.dtype in _HALVES else tensor.sum()
        return math.isfinite(abs(total.item())) or bool(tensor.isfinite().all())
    except (NotImplementedError, RuntimeError):  # a dtype that has no sum, such as those of eight bits
        return True


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all elements of some tensors are finite. It waits once for each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if is_checked(tensor):
            by_device.setdefault(tensor.device, []).append(tensor)
    for group in by_device.values():
        largest = torch.stack([norm.float() for norm in torch._foreach_norm(group, math.inf)])
        if not math.isfinite(largest.sum().item()) and not all(is_finite(tensor) for tensor in group):
            return False
    return True


def dense_part(tensor: Tensor) -> Tensor:
    """Return the elements of a tensor that are stored: all, or those of a sparse one."""
    return tensor._values() if tensor.is_sparse else tensor


def has_nan(tensor: Tensor) -> bool:
    """Whether an element is NaN."""
    return is_checked(tensor) and bool(tensor.isnan().any())


def first_nonfinite(tensor: Tensor) -> float:
    """Return NaN if an element is NaN, else the infinity of the first infinite element."""
    if has_nan(tensor) or tensor.is_complex():
        return math.nan
    return float(tensor[tensor.isinf()][0])
