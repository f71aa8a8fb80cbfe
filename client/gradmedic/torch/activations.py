"""Measures what activations do, where it is asked for: fractions of outputs that are exactly zero, and saturated.

An activation belongs to the layer that was called last before it. Hooks of the modules see both. Activations that are
functions and no modules are computed once more from the output of their layer, once the first graph has shown which
function follows it. Of a model that `torch.compile` or TorchScript runs, nothing is seen.

An output is saturated where the slope of the activation is below a twentieth of its steepest: there, hardly any
gradient passes (Glorot & Bengio 2010, section 3). An activation that does not flatten on both sides has no saturation,
but may have zeros: dead units.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradmedic.recording.sampler import Sampler
from gradmedic.torch.columns import ACTIVATION_STATISTICS
from gradmedic.torch.followers import Follower
from gradmedic.torch.lockstep import Lockstep
from gradmedic.torch.module_hooks import AttachedHook, attach_forward_hook
from gradmedic.torch.recorded_code import is_recorded
from gradmedic.torch.statistics import HostArray, MeasuredArray, PendingArray
from gradmedic.torch.structure import ACTIVATIONS, NORMALIZATIONS, OwnedParameter

logger = logging.getLogger("gradmedic")

_FLAT_SLOPE = 0.05
"""Fraction of the steepest slope below which an activation is saturated."""
_FLAT_TANH = math.sqrt(1.0 - _FLAT_SLOPE)
"""Output of tanh where its slope, 1 - y^2, is that fraction of the steepest one."""
_FLAT_SIGMOID = 0.5 * _FLAT_TANH
"""The same for a sigmoid, from its middle: the slope is y (1 - y), 1/4 at most."""

_IS_SATURATED: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda y: y.abs() > _FLAT_TANH,
    "sigmoid": lambda y: (y - 0.5).abs() > _FLAT_SIGMOID,
    "hardtanh": lambda y: y.abs() >= 1.0,
    "hardsigmoid": lambda y: (y <= 0.0) | (y >= 1.0),
    "relu6": lambda y: y >= 6.0,
}
"""Which outputs of an activation are saturated, by its name."""
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
}
"""Activations whose outputs are computed again if they are functions and no modules."""


class ActivationMeter:
    """Counts zeros and saturated outputs while models compute.

    Args:
        models: models to observe.
        owned: parameters of the models.
        sampling: decides which steps are measured.
        find_follower: function that returns what follows a parameter, by its id, as far as a graph has shown it.
        call_safely: function that calls a function and reports its error, which must not reach the training. It takes
            the message for an error, the function and the arguments.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        owned: Sequence[OwnedParameter],
        sampling: Sampler | Lockstep,
        find_follower: Callable[[int], Follower | None],
        call_safely: Callable[..., None],
    ) -> None:
        self._sampling = sampling
        self._find_follower = find_follower
        self._call_safely = call_safely
        self._owners = {id(entry.module): entry.parameter for entry in owned if entry.module is not None}
        self._module_of = {id(entry.parameter): id(entry.module) for entry in owned}
        self._called: list[int] = []  # ids of modules with parameters, called since the last activation module
        self._followed_by_module: set[int] = set()  # ids of those that an activation module followed
        self._counts: dict[int, list[tuple[Tensor, Tensor, int]]] = {}  # zeros, saturated, all, by the id of a module
        self._is_called = False
        self._has_warned = False
        self._hooks: list[AttachedHook | None] = []  # None for a scripted module
        for model in models:
            for module in model.modules():
                if id(module) in self._owners or type(module) in ACTIVATIONS:
                    self._hooks.append(attach_forward_hook(module, self))

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            if hook is not None:
                hook.remove()
        self._hooks.clear()
        self._counts.clear()

    def read(self, parameters: Sequence[Tensor]) -> MeasuredArray:
        """Return ACTIVATION_STATISTICS `[parameter, statistic]`; 0 for a layer that no activation follows."""
        if not self._is_called and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "gradmedic: no activation is measured: the model was not called, or a compiler or TorchScript runs it"
            )
        shares: list[Tensor] = []
        rows: list[int] = []
        for i, parameter in enumerate(parameters):
            counts = self._counts.get(self._module_of.get(id(parameter), 0))
            if counts:
                elements = sum(count for _, _, count in counts)
                zeros = torch.stack([count for count, _, _ in counts]).sum()
                saturated = torch.stack([count for _, count, _ in counts]).sum()
                shares.append(torch.stack([zeros, saturated]) / elements)
                rows.append(i)
        values = np.zeros((len(parameters), len(ACTIVATION_STATISTICS)))
        if not shares:
            return HostArray(values)
        stacked = torch.stack(shares)
        if stacked.device.type == "cpu":
            values[rows] = stacked.numpy()
            return HostArray(values)
        return _PendingRows(PendingArray(stacked), rows, values)

    def clear(self) -> None:
        """Drop the counts, at the end of a step."""
        self._counts.clear()
        self._called.clear()

    def __call__(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        """Count in the output of a module."""
        if is_recorded() or not self._sampling.is_sampling or not torch.is_grad_enabled():
            return
        self._is_called = True
        if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
            self._call_safely("activations could not be measured", self._count_output, module, output.detach())

    def __reduce__(self) -> tuple[type[_InertHook], tuple[()]]:
        return _InertHook, ()

    @torch.no_grad()
    def _count_output(self, module: nn.Module, output: Tensor) -> None:
        name = ACTIVATIONS.get(type(module))
        if name is not None:
            for called in self._called:
                self._followed_by_module.add(called)
                self._counts[called] = [*self._counts.get(called, ()), _count(output, name)]
            self._called.clear()
            return
        if not isinstance(module, NORMALIZATIONS):
            self._called.clear()
        self._called.append(id(module))
        follower = self._find_follower(id(self._owners[id(module)]))
        if follower is None or follower.normalized or id(module) in self._followed_by_module:
            return
        function = _FUNCTIONS.get(follower.activation or "")
        if function is not None:
            count = _count(function(output), str(follower.activation))
            self._counts[id(module)] = [*self._counts.get(id(module), ()), count]


class _InertHook:
    """Takes the place of a meter in a copy of the model, and does nothing."""

    def __call__(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        pass


class _PendingRows:
    """An array of which some rows are being copied to the host, and the others are zero."""

    is_ready = False

    def __init__(self, pending: PendingArray, rows: list[int], values: NDArray[np.float64]) -> None:
        self._pending, self._rows, self._values = pending, rows, values

    def read(self) -> NDArray[np.float64]:
        self._values[self._rows] = self._pending.read()
        return self._values

    def tensor(self) -> Tensor:
        values = torch.from_numpy(self._values).to(self._pending.tensor())
        values[self._rows] = self._pending.tensor()
        return values


def _count(output: Tensor, name: str) -> tuple[Tensor, Tensor, int]:
    """Return the numbers of outputs that are zero, that are saturated, and of all outputs."""
    is_saturated = _IS_SATURATED.get(name)
    zeros = output.numel() - torch.count_nonzero(output)
    saturated = zeros.new_zeros(()) if is_saturated is None else is_saturated(output).sum()
    return zeros.float(), saturated.float(), output.numel()
