"""Reads the norm of a step's gradient, alone or together with the other processes of the training."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradmedic.torch.guards.consensus import Consensus
from gradmedic.torch.guards.gradient_norms import GradientNorms
from gradmedic.torch.lockstep import list_all_parameters
from gradmedic.torch.optimizers import read_tensor_attribute
from gradmedic.torch.statistics import local_part


class Reading(NamedTuple):
    """The numbers of one step."""

    norm: float
    """L2 norm of the whole gradient before clipping, not scaled by any loss scaler."""
    is_left_out: bool
    """Whether a loss scaler leaves the step out."""
    max_norm: float = 0.0
    """Norm to which the first process clips; 0 if it does not, or if there is one process."""
    signal: float = 0.0
    """Number that the first process has sent; 0 if none."""


class NormReader:
    """Reads the norms of the steps of some optimizers. It waits for a device once a step.

    Args:
        consensus: the common decisions of several processes; None if there is one process.
    """

    def __init__(self, consensus: Consensus | None) -> None:
        self._consensus = consensus
        self._norms = GradientNorms(1 if consensus is None else consensus.size)

    def close(self) -> None:
        """Observe clipping no more."""
        self._norms.close()

    def read(self, optimizer: Optimizer) -> Reading | None:
        """Return the numbers of the step that an optimizer begins; None without a gradient."""
        parameters = [parameter for parameter in list_all_parameters(optimizer) if parameter.grad is not None]
        if not parameters:
            return None
        parts = self._norms.measure(parameters)
        found_inf, scale = (read_tensor_attribute(optimizer, name) for name in ("found_inf", "grad_scale"))
        if found_inf is None and scale is None:
            return Reading(math.hypot(*parts.tolist()), is_left_out=False)
        found_inf = parts.new_zeros(1) if found_inf is None else found_inf.reshape(1)
        scale = parts.new_ones(1) if scale is None else scale.reshape(1)
        *numbers, left_out, divisor = torch.cat([parts, found_inf.to(parts), scale.to(parts)]).tolist()
        return Reading(math.hypot(*numbers) / divisor, is_left_out=left_out > 0)

    def read_together(
        self, consensus: Consensus, optimizer: Optimizer, *, max_norm: float, signal: float
    ) -> Reading | None:
        """Return the numbers of the step that an optimizer begins in all processes; None if they do not decide on it.

        Args:
            consensus: the common decisions.
            optimizer: the optimizer.
            max_norm: norm to which this process clips; 0 if it does not. That of the first process counts.
            signal: number for the rewinders of all processes; 0 if there is none.
        """
        if not consensus.begin_step():
            return None
        try:
            parts = self._measure_part(optimizer)
            found_inf = read_tensor_attribute(optimizer, "found_inf")
        except Exception:
            consensus.leave(find_device(optimizer))
            raise
        sums = consensus.reduce(parts, found_inf, max_norm=max_norm, signal=signal)
        if sums.leaving:
            return None
        norm = math.sqrt(sums.squares) if sums.squares >= 0 else math.nan
        return Reading(norm, sums.found_inf > 0, sums.max_norm, sums.signal)

    def _measure_part(self, optimizer: Optimizer) -> Tensor:
        """Return numbers whose squares add up to this process's part of the squared norm."""
        parameters = [parameter for parameter in list_all_parameters(optimizer) if parameter.grad is not None]
        if not parameters:
            return torch.zeros(1, device=find_device(optimizer))
        parts = self._norms.measure(parameters)
        scale = read_tensor_attribute(optimizer, "grad_scale")
        return parts if scale is None else parts / scale.to(parts)


def find_device(optimizer: Optimizer) -> torch.device:
    """Return the device of an optimizer's first parameter."""
    return next((local_part(parameter).device for parameter in list_all_parameters(optimizer)), torch.device("cpu"))
