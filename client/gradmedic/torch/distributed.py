"""Statistics of parameters that are sharded over processes (FSDP2, DTensor).

One idea: each process measures what it holds, as it would the whole; one all-reduce of a small table - layers by
statistics - makes whole numbers of the parts. Squares and counts add up; for the largest element every process has a
column of its own in the table, so that the same sum carries it.

All processes must sample the same steps, or the all-reduce would wait for ever: so the table also carries, from the
first process, how long the way to the next sample is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradmedic.exceptions import ConfigurationError
from gradmedic.torch.statistics import local_part

_NORMS = (0, 5, 6)
"""Columns that are norms: their squares add up."""
_ABS_MAX, _MEAN, _ZERO_FRACTION, _NONFINITE = 1, 2, 3, 4
_FIRST_OF_ACTIVATIONS = 7
_SHARES = (_MEAN, _ZERO_FRACTION)
"""Columns that are shares of the elements that a process holds."""


def process_rank() -> int:
    """Return the rank of this process in the default group, 0 if there is none."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def process_count() -> int:
    """Return how many processes train together, as far as torch knows."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@dataclass(frozen=True, slots=True)
class Reduced:
    """A table that is whole on every process."""

    table: Tensor
    """`[layer, statistic]`."""
    signals: Tensor
    """`[interval of the first process, processes in which the measurement failed]`."""


class Sharding:
    """How the parameters of a model lie on processes."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._rank = dist.get_rank(group)
        self._size = dist.get_world_size(group)

    @classmethod
    def of(cls, parameters: Sequence[Tensor]) -> Sharding | None:
        """Return how parameters are sharded, None if each process holds all of each.

        Raises:
            ConfigurationError: in a way that is not supported.
        """
        meshes = {mesh for parameter in parameters if (mesh := _sharding_mesh(parameter)) is not None}
        if not meshes:
            return None
        (mesh, *others) = meshes
        if others:
            raise ConfigurationError("watch() takes models whose parameters are sharded over one device mesh, not over "
                                     f"{len(meshes)}")  # fmt: skip
        if mesh.size() == dist.get_world_size():
            return cls(dist.group.WORLD)  # type: ignore[arg-type]
        if mesh.ndim == 1:
            return cls(mesh.get_group())
        raise ConfigurationError("watch() takes meshes of several dimensions only if they hold every process")

    @property
    def leads(self) -> bool:
        """Whether this process decides which steps are sampled."""
        return self._rank == 0

    def reduce(self, table: Tensor, parameters: Sequence[Tensor], *, interval: int, has_failed: bool) -> Reduced:
        """Return the statistics of whole layers from those of the parts; every process of the group calls this.

        Args:
            table: `[layer, statistic]` of what this process holds.
            parameters: of the layers.
            interval: steps to the next sample; that of the first process counts.
            has_failed: whether the table means nothing.
        """
        layers, statistics = table.shape
        wide = torch.float64 if table.device.type != "mps" else torch.float32
        parts = table.detach().to(wide, copy=True)
        held = parts.new_tensor([float(_numel(local_part(p))) for p in parameters])
        copies = parts.new_tensor([float(self._copies_of(p)) for p in parameters])
        total = parts.new_tensor([float(_numel(p)) for p in parameters]).clamp_min(1.0)
        abs_max = parts[:, _ABS_MAX].clone()
        parts[:, _NORMS] = parts[:, _NORMS].square()
        parts[:, _SHARES] *= held[:, None]
        parts[:, _FIRST_OF_ACTIVATIONS:] *= copies[:, None] / self._size  # the average: each process has its own batch
        parts = parts / copies[:, None]
        sent = parts.new_zeros((layers + 1, statistics + self._size))
        if not has_failed:
            sent[:layers, :statistics] = parts
            sent[:layers, statistics + self._rank] = abs_max
        sent[layers, 0] = float(interval) if self.leads else 0.0
        sent[layers, 1] = float(has_failed)
        dist.all_reduce(sent, group=self._group)
        whole = sent[:layers, :statistics].clone()
        whole[:, _NORMS] = whole[:, _NORMS].sqrt()
        whole[:, _SHARES] /= total[:, None]
        whole[:, _ABS_MAX] = sent[:layers, statistics:].amax(dim=1)
        whole[:, _NONFINITE] = whole[:, _NONFINITE].round()
        return Reduced(whole, sent[layers, :2])

    def _copies_of(self, parameter: Tensor) -> int:
        """Return how many processes hold the same part."""
        placements = getattr(parameter, "placements", None)
        if placements is None:
            return self._size
        mesh = parameter.device_mesh  # type: ignore[attr-defined]
        copies = 1
        for dimension, placement in enumerate(placements):
            if placement.is_replicate():
                copies *= mesh.size(dimension)
        return copies


def _sharding_mesh(parameter: Tensor) -> Any:
    placements = getattr(parameter, "placements", None)
    if placements is None or all(placement.is_replicate() for placement in placements):
        return None
    if not all(placement.is_replicate() or placement.is_shard() for placement in placements):
        raise ConfigurationError("watch() takes parameters that are sharded or replicated, not partial sums")
    return parameter.device_mesh  # type: ignore[attr-defined]


def _numel(tensor: Tensor) -> int:
    return tensor.numel() * (2 if tensor.is_complex() else 1)
