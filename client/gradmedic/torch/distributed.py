"""Statistics of parameters that are sharded over processes (FSDP2, DTensor).

Each process measures the parts that it holds, as it would measure the whole. One all-reduce of a small table, layers by
statistics, makes the numbers of whole layers from those of the parts. Squares and counts add up. For each largest
number each process has a column of its own in the table, so that the same sum carries it.

All processes must sample the same steps, or the all-reduce would wait for ever (`gradmedic.torch.lockstep`). So the
table also carries the number of steps to the next sampled one, as the first process decides it, and whether a process
leaves.
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
from gradmedic.torch.columns import (
    ACTIVATION_COLUMNS,
    ACTIVATION_STATISTICS,
    MAXIMUM_COLUMNS,
    MEAN_COLUMNS,
    NORM_COLUMNS,
    SUM_COLUMNS,
    WATCHED_STATISTICS,
)
from gradmedic.torch.statistics import local_part, start_copy

_STATISTICS = len(WATCHED_STATISTICS) + len(ACTIVATION_STATISTICS)
"""Columns of what is sent, also where activations are not measured."""


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
        signals: `[sampling interval of the first process, number of processes on which the measurement failed, number
            of processes that no longer watch]`.
    """

    def __init__(self, table: Tensor, signals: Tensor) -> None:
        self._table = start_copy(table)
        self._signals = start_copy(signals)
        self.is_ready = self._table.is_ready

    def read(self) -> NDArray[np.float64]:
        """Return the table, waiting for it if need be."""
        table = self._table.read()
        return table if not self._signals.read()[1:].any() else np.empty((0, table.shape[1]))

    def tensor(self) -> Tensor:
        """Return the table on the device where it was computed."""
        return self._table.tensor()

    def read_interval(self) -> int:
        """Return the number of steps to the next sampled one, as the first process decided it."""
        return round(float(self._signals.read()[0]))

    def has_left(self) -> bool:
        """Whether a process no longer watches."""
        return bool(self._signals.read()[2] > 0)


class Sharding:
    """How the parameters of a model are distributed over processes.

    Args:
        group: group of the processes.
        step_groups: groups in which each training step has a collective.
    """

    def __init__(self, group: dist.ProcessGroup, step_groups: Sequence[dist.ProcessGroup]) -> None:
        self.group = group
        self.step_groups = step_groups
        self.size = dist.get_world_size(group)
        self._rank = dist.get_rank(group)

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
            return cls(dist.group.WORLD, mesh.get_all_groups())  # type: ignore[arg-type]
        if mesh.ndim == 1:
            return cls(mesh.get_group(), mesh.get_all_groups())
        raise ConfigurationError("watch() takes meshes of several dimensions only if they hold every process")

    @property
    def is_first(self) -> bool:
        """Whether this process decides which steps are sampled."""
        return self._rank == 0

    def make_message(
        self, table: Tensor, rows: Sequence[int], parameters: Sequence[Tensor], *, interval: int, has_failed: bool
    ) -> Tensor:
        """Return what this process sends: the statistics of its parts, such that those of whole layers are their sums.

        Args:
            table: `[layer, statistic]` of the parts that this process holds.
            rows: place of each layer of the table among the parameters.
            parameters: all parameters that may have statistics; their number is the same in all processes.
            interval: steps to the next sampled one; that of the first process counts.
            has_failed: whether the table must not be used.
        """
        message = self._make_empty_message(parameters)
        message[-1, 0] = float(interval) if self.is_first else 0.0
        message[-1, 1] = float(has_failed)
        if has_failed or not rows:
            return message
        held = [parameters[row] for row in rows]
        parts = table.detach().to(message, copy=True)
        held_elements = parts.new_tensor([float(_count_elements(local_part(parameter))) for parameter in held])
        copies = parts.new_tensor([float(self._count_copies(parameter)) for parameter in held])
        all_elements = parts.new_tensor([float(_count_elements(parameter)) for parameter in held]).clamp_min(1.0)
        maxima = parts[:, MAXIMUM_COLUMNS].clone()
        parts[:, NORM_COLUMNS] = parts[:, NORM_COLUMNS].square()
        parts[:, MEAN_COLUMNS] *= (held_elements / all_elements)[:, None]
        parts[:, ACTIVATION_COLUMNS] *= copies[:, None] / self.size  # the average: each process has its own batch
        places = torch.tensor(rows, device=message.device)
        message[places, : table.shape[1]] = parts / copies[:, None]
        first = _STATISTICS + self._rank * len(MAXIMUM_COLUMNS)
        message[places, first : first + len(MAXIMUM_COLUMNS)] = maxima
        return message

    def make_farewell(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return what this process sends if it no longer watches."""
        message = self._make_empty_message(parameters)
        message[-1, 2] = 1.0
        return message

    def reduce(self, message: Tensor, rows: Sequence[int], statistics: int) -> ReducedTable:
        """Return the statistics of whole layers. Every process of the group must call it.

        Args:
            message: what this process sends; it is overwritten.
            rows: places of the wanted layers among the parameters.
            statistics: number of the wanted statistics.
        """
        dist.all_reduce(message, group=self.group)
        wanted = message[torch.tensor(rows, dtype=torch.long, device=message.device)]
        whole = wanted[:, :_STATISTICS]
        maxima = wanted[:, _STATISTICS:].view(len(rows), self.size, len(MAXIMUM_COLUMNS))
        whole[:, NORM_COLUMNS] = whole[:, NORM_COLUMNS].sqrt()
        whole[:, MAXIMUM_COLUMNS] = maxima.amax(dim=1)
        whole[:, SUM_COLUMNS] = whole[:, SUM_COLUMNS].round()
        return ReducedTable(whole[:, :statistics], message[-1, :3])

    def _make_empty_message(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return zeros `[parameter and signals, statistic and a column for each maximum of each process]`."""
        device = local_part(parameters[0]).device if parameters else torch.device("cpu")
        dtype = torch.float64 if device.type != "mps" else torch.float32
        columns = _STATISTICS + self.size * len(MAXIMUM_COLUMNS)
        return torch.zeros((len(parameters) + 1, columns), dtype=dtype, device=device)

    def _count_copies(self, parameter: Tensor) -> int:
        """Return the number of processes that hold the same part of a parameter."""
        placements = getattr(parameter, "placements", None)
        if placements is None:
            return self.size
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
