"""What activations do, where it is asked for: the share of outputs that are exactly zero, and that are saturated.

One idea: an activation belongs to the layer whose output it bends, which is the one that was called last before it.
Hooks of the modules see both. Activations that are functions and no modules are seen in the output of their layer, once
the first graph has shown which function follows it.

Saturated is an output where the activation's slope is below a twentieth of its steepest: there, hardly any gradient
passes (Glorot & Bengio 2010, section 3). An activation that does not flatten on both sides has no saturation, but may
have zeros: dead units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradmedic.recording.sampler import Sampler
from gradmedic.torch.graph import Follower
from gradmedic.torch.statistics import HostArray, MeasuredArray, PendingArray
from gradmedic.torch.topology import ACTIVATIONS, NORMALIZATIONS, Owned

ACTIVATION_STATISTICS = ("activation_zero_fraction", "activation_saturation")
"""What `ActivationMeter.read` returns, in order."""

_FLAT = 0.05
_FLAT_TANH = math.sqrt(1.0 - _FLAT)
"""Where the slope of tanh, 1 - y^2, is that share of its largest."""
_FLAT_SIGMOID = 0.5 * _FLAT_TANH
"""The same from the middle of a sigmoid: its slope is y (1 - y), 1/4 at most."""

_IS_SATURATED: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda y: y.abs() > _FLAT_TANH,
    "sigmoid": lambda y: (y - 0.5).abs() > _FLAT_SIGMOID,
    "hardtanh": lambda y: y.abs() >= 1.0,
    "hardsigmoid": lambda y: (y <= 0.0) | (y >= 1.0),
    "relu6": lambda y: y >= 6.0,
}
"""By the name of the activation, of its outputs."""
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
}
"""Activations whose outputs are worth computing again where they are no modules."""


class ActivationMeter:
    """Counts zeros and saturated outputs while a model computes; `read` returns their shares and begins anew.

    Args:
        models: to observe.
        owned: their parameters.
        sampler: says which steps to measure.
        followers: what follows each parameter by its id, as far as a graph has shown it.
        guard: is told what failed if a function does, the function and its arguments, and calls it, so that an error
            of ours is none of the training's.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        owned: Sequence[Owned],
        sampler: Sampler,
        followers: Callable[[], dict[int, Follower]],
        guard: Callable[..., None],
    ) -> None:
        self._sampler = sampler
        self._followers = followers
        self._guard = guard
        self._owners = {id(each.module): each.parameter for each in owned if each.module is not None}
        self._module_of = {id(each.parameter): id(each.module) for each in owned}
        self._called: list[int] = []  # modules with parameters, since the last activation
        self._with_modules: set[int] = set()  # those that an activation module was seen to follow
        self._counts: dict[int, list[tuple[Tensor, Tensor, int]]] = {}
        self._handles: list[RemovableHandle] = []
        for model in models:
            for module in model.modules():
                if id(module) in self._owners or type(module) in ACTIVATIONS:
                    self._handles.append(module.register_forward_hook(self))

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._counts.clear()

    def read(self, parameters: Sequence[Tensor]) -> MeasuredArray:
        """Return ACTIVATION_STATISTICS `[parameter, statistic]`, 0 where no activation follows, and forget them."""
        rows: list[Tensor] = []
        places: list[int] = []
        for i, parameter in enumerate(parameters):
            counted = self._counts.get(self._module_of.get(id(parameter), 0))
            if counted:
                elements = sum(count for _, _, count in counted)
                zeros = torch.stack([count for count, _, _ in counted]).sum()
                saturated = torch.stack([count for _, count, _ in counted]).sum()
                rows.append(torch.stack([zeros, saturated]) / elements)
                places.append(i)
        values = np.zeros((len(parameters), 2))
        if not rows:
            return HostArray(values)
        stacked = torch.stack(rows)
        if stacked.device.type == "cpu":
            values[places] = stacked.numpy()
            return HostArray(values)
        return _Spread(PendingArray(stacked), places, values)

    def forget(self) -> None:
        """Begin anew: the step is over."""
        self._counts.clear()
        self._called.clear()

    def __call__(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        """Look at what a module answers."""
        if torch.compiler.is_compiling() or not self._sampler.is_sampling or not torch.is_grad_enabled():
            return
        if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
            self._guard("activations could not be measured", self._look_at, module, output.detach())

    def __reduce__(self) -> tuple[type[_Inert], tuple[()]]:
        return _Inert, ()

    @torch.no_grad()
    def _look_at(self, module: nn.Module, output: Tensor) -> None:
        name = ACTIVATIONS.get(type(module))
        if name is not None:
            for called in self._called:
                self._with_modules.add(called)
                self._counts[called] = [*self._counts.get(called, ()), _count(output, name)]
            self._called.clear()
            return
        if not isinstance(module, NORMALIZATIONS):
            self._called.clear()
        self._called.append(id(module))
        follower = self._followers().get(id(self._owners[id(module)]))
        if follower is None or follower.normalized or id(module) in self._with_modules:
            return
        function = _FUNCTIONS.get(follower.activation or "")
        if function is not None:
            counted = _count(function(output), str(follower.activation))
            self._counts[id(module)] = [*self._counts.get(id(module), ()), counted]


class _Inert:
    """What is left of a meter in a copy of the model, or in a file: nothing."""

    def __call__(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        pass


class _Spread:
    """Rows that are on their way, among others that are zero."""

    is_ready = False

    def __init__(self, rows: PendingArray, places: list[int], values: NDArray[np.float64]) -> None:
        self._rows, self._places, self._values = rows, places, values

    def read(self) -> NDArray[np.float64]:
        self._values[self._places] = self._rows.read()
        return self._values

    def tensor(self) -> Tensor:
        values = torch.from_numpy(self._values).to(self._rows.tensor())
        values[self._places] = self._rows.tensor()
        return values


def _count(output: Tensor, name: str) -> tuple[Tensor, Tensor, int]:
    """Return how many outputs are zero, how many saturated, and how many there are."""
    is_saturated = _IS_SATURATED.get(name)
    zeros = output.numel() - torch.count_nonzero(output)
    saturated = zeros.new_zeros(()) if is_saturated is None else is_saturated(output).sum()
    return zeros.float(), saturated.float(), output.numel()
