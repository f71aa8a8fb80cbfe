"""Chooses the elements of large tensors that probes look at."""

from __future__ import annotations

from torch import Tensor

from gradmedic.torch.statistics import local_part

SAMPLE = 4_096
"""Most elements of one tensor that are looked at. A root mean square of so many is right to 1 % for normal numbers."""


def sample_elements(tensor: Tensor, limit: int = SAMPLE) -> Tensor:
    """Return at most `limit` elements of the part of a tensor that this process holds, evenly apart; a view mostly.

    Tensors of the same shape give the same elements, however they lie in memory.
    """
    flat = local_part(tensor).detach().reshape(-1)
    return flat[:: -(-flat.numel() // limit)] if flat.numel() > limit else flat
