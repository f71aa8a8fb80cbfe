"""Mean and standard deviation of a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

STANDARD_MEAN, STANDARD_FACTOR = 0.5, 2.0
"""A mean of at most 0.5 and a deviation within a factor of 2 of 1 count as standardized, measured on one batch."""
SMALLEST_DEVIATION = 1e-8
"""Smallest deviation of a feature, relative to its mean or, if that is smaller, to 1. A feature that deviates less is
constant, and is only centred."""


class Moments(NamedTuple):
    """Mean and standard deviation of each feature, in a shape that broadcasts to a batch."""

    mean: Tensor
    deviation: Tensor

    @property
    def are_standard(self) -> bool:
        """Whether all means are about 0 and all deviations about 1. The deviation of a constant feature is 1."""
        is_near = (self.deviation <= STANDARD_FACTOR) & (self.deviation >= 1 / STANDARD_FACTOR)
        return bool((self.mean.abs() <= STANDARD_MEAN).all()) and bool(is_near.all())


def compute_moments(batch: Tensor, channel: int | None = None) -> Moments:
    """Return the moments of each feature, over all processes together.

    Args:
        batch: tensor with the features in its last dimension, or in the second one if it has four dimensions or more.
        channel: dimension of the features, if it is another one.

    >>> compute_moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).deviation
    tensor([[1., 1.]])
    """
    kept = channel
    if channel is None and batch.ndim >= 2:
        kept = 1 if batch.ndim >= 4 else batch.ndim - 1
    reduced = tuple(dimension for dimension in range(batch.ndim) if dimension != kept)
    wide = batch.detach().double()
    mean, square = wide.mean(reduced, keepdim=True), wide.square().mean(reduced, keepdim=True)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        sums = torch.stack([mean, square])
        torch.distributed.all_reduce(sums)
        mean, square = sums / torch.distributed.get_world_size()
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    scale = mean.abs().clamp_min(1.0)
    deviation = torch.where(deviation > SMALLEST_DEVIATION * scale, deviation, torch.ones_like(deviation))
    return Moments(mean.to(batch.dtype), deviation.to(batch.dtype))
