"""Statistics of parameters that are sharded over processes (FSDP2, DTensor).

Each process measures the parts that it holds, as it would measure the whole. One all-reduce of a small table, layers by
statistics, makes the numbers of whole layers from those of the parts. Squares and counts add up. For each largest
number each process has a column of its own in the table, so that the same sum carries it.

All processes must sample the same steps, or the all-reduce would wait for ever. So the table also carries the number of
steps to the next sampled one, as the first process decides it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from gradmedic.exceptions import ConfigurationError
from gradmedic.torch.columns import ACTIVATION_COLUMNS, MAXIMUM_COLUMNS, MEAN_COLUMNS, NORM_COLUMNS, SUM_COLUMNS
from gradmedic.torch.statistics import local_part, start_copy


def get_group_rank() -> int:
    """Return the rank of this process in the default group, 0 if there is none."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def get_group_size() -> int:
    """Return the number of processes in the default group, 1 if there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class ReducedTable:
    """The statistics of whole layers, `[layer, statistic]`; empty if the measurement failed on any process.

    Args:
        table: `[layer, statistic]`.
        signals: `[sampling interval of the first process, number of processes on which the measurement failed]`.
    """

    def __init__(self, table: Tensor, signals: Tensor) -> None:
        self._table = start_copy(table)
        self._signals = start_copy(signals)
        self.is_ready = self._table.is_ready

    def read(self) -> NDArray[np.float64]:
        """Return the table, waiting for it if need be."""
        table = self._table.read()
        return table if self._signals.read()[1] == 0 else np.empty((0, table.shape[1]))

    def tensor(self) -> Tensor:
        """Return the table on the device where it was computed."""
        return self._table.tensor()

    def read_interval(self) -> int:
        """Return the number of steps to the next sampled one, as the first process decided it."""
        return round(float(self._signals.read()[0]))


class Sharding:
    """How the parameters of a model are distributed over processes.

    Args:
        group: group of the processes.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._rank = dist.get_rank(group)
        self._size = dist.get_world_size(group)

    @classmethod
    def from_parameters(cls, parameters: Sequence[Tensor]) -> Sharding | None:
        """Return how parameters are sharded, None if each process holds all of them.

        Raises:
            ConfigurationError: the way in which they are sharded is not supported.
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
    def is_first(self) -> bool:
        """Whether this process decides which steps are sampled."""
        return self._rank == 0

    def reduce(self, table: Tensor, parameters: Sequence[Tensor], *, interval: int, has_failed: bool) -> ReducedTable:
        """Compute the statistics of whole layers from those of their parts. Every process of the group must call it.

        Args:
            table: `[layer, statistic]` of the parts that this process holds.
            parameters: parameters of the layers.
            interval: steps to the next sampled one; that of the first process counts.
            has_failed: whether the table must not be used.
        """
        layers, statistics = table.shape
        dtype = torch.float64 if table.device.type != "mps" else torch.float32
        parts = table.detach().to(dtype, copy=True)
        held_elements = parts.new_tensor([float(_count_elements(local_part(parameter))) for parameter in parameters])
        copies = parts.new_tensor([float(self._count_copies(parameter)) for parameter in parameters])
        all_elements = parts.new_tensor([float(_count_elements(parameter)) for parameter in parameters]).clamp_min(1.0)
        maxima = parts[:, MAXIMUM_COLUMNS].clone()
        parts[:, NORM_COLUMNS] = parts[:, NORM_COLUMNS].square()
        parts[:, MEAN_COLUMNS] *= held_elements[:, None]
        parts[:, ACTIVATION_COLUMNS] *= copies[:, None] / self._size  # the average: each process has its own batch
        parts = parts / copies[:, None]
        sent = parts.new_zeros((layers + 1, statistics + self._size * len(MAXIMUM_COLUMNS)))
        if not has_failed:
            sent[:layers, :statistics] = parts
            sent[:layers, statistics:].view(layers, self._size, len(MAXIMUM_COLUMNS))[:, self._rank] = maxima
        sent[layers, 0] = float(interval) if self.is_first else 0.0
        sent[layers, 1] = float(has_failed)
        dist.all_reduce(sent, group=self._group)
        whole = sent[:layers, :statistics].clone()
        whole[:, NORM_COLUMNS] = whole[:, NORM_COLUMNS].sqrt()
        whole[:, MEAN_COLUMNS] /= all_elements[:, None]
        whole[:, MAXIMUM_COLUMNS] = (
            sent[:layers, statistics:].view(layers, self._size, len(MAXIMUM_COLUMNS)).amax(dim=1)
        )
        whole[:, SUM_COLUMNS] = whole[:, SUM_COLUMNS].round()
        return ReducedTable(whole, sent[layers, :2])

    def _count_copies(self, parameter: Tensor) -> int:
        """Return the number of processes that hold the same part of a parameter."""
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


def _count_elements(tensor: Tensor) -> int:
    return tensor.numel() * (2 if tensor.is_complex() else 1)
