"""Gives every layer's weights a length of their own (Salimans and Kingma 2016).

One idea: the module gets another class, whose forward uses `gain * weight / |weight|`, row by row. The parameter that
the optimizer holds stays and is the direction; the gain is a new parameter of the module, in the group of its weight.
A checkpoint from before has no gain: it is the length that the weights have there.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradmedic.torch.remedies import NotApplicable

GAIN = "weight_gain"


class _Normalized:
    """What the classes below have in common."""

    weight: Tensor
    weight_gain: Tensor

    def normalized(self) -> Tensor:
        """Return the weights that the layer computes with."""
        return self.weight * (self.weight_gain / lengths_of(self.weight))


class NormalizedLinear(_Normalized, nn.Linear):
    """A linear layer with normalized weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """Return the layer's output."""
        return functional.linear(input, self.normalized(), self.bias)


class NormalizedConv1d(_Normalized, nn.Conv1d):
    """A convolution with normalized weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the layer's output."""
        output: Tensor = self._conv_forward(input, self.normalized(), self.bias)
        return output


class NormalizedConv2d(_Normalized, nn.Conv2d):
    """A convolution with normalized weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the layer's output."""
        output: Tensor = self._conv_forward(input, self.normalized(), self.bias)
        return output


class NormalizedConv3d(_Normalized, nn.Conv3d):
    """A convolution with normalized weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the layer's output."""
        output: Tensor = self._conv_forward(input, self.normalized(), self.bias)
        return output


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: NormalizedLinear,
    nn.Conv1d: NormalizedConv1d,
    nn.Conv2d: NormalizedConv2d,
    nn.Conv3d: NormalizedConv3d,
}
NORMALIZED = tuple(_CLASSES.values())
"""The classes that modules get."""


class _TakeOldCheckpoints:
    """Load-hook: computes the gain where a state has none."""

    def __call__(self, _module: nn.Module, state: dict[str, Any], prefix: str, *_others: Any) -> None:
        if prefix + GAIN not in state and prefix + "weight" in state:
            state[prefix + GAIN] = lengths_of(state[prefix + "weight"])


class _KeepFastPathOff:
    """Forward hook that does nothing: attention's fast path reads weights past the modules, unless there is a hook."""

    def __call__(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        pass


def lengths_of(weight: Tensor) -> Tensor:
    """Return the norm of each row, in the shape in which it divides the weights."""
    lengths: Tensor = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)
    return lengths


def normalize_weights(model: nn.Module, optimizers: list[Optimizer]) -> list[str]:
    """Normalize the weights of every linear layer and convolution; return their names.

    Shared weights, rows of zeros, and weights that no optimizer updates are left as they are.

    Raises:
        NotApplicable: parameters are sharded, or not there yet.
    """
    groups = {id(p): group for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    found = []
    for path, module in model.named_modules():
        kind = _CLASSES.get(type(module))
        if kind is None or not isinstance(weight := module.weight, nn.Parameter):
            continue
        if is_lazy(weight) or hasattr(weight, "device_mesh"):
            raise NotApplicable(f"the weights of {path} are sharded, or built at the first call only")
        group = groups.get(id(weight))
        if group is None or owners[id(weight)] > 1 or not weight.requires_grad:
            continue
        with torch.no_grad():
            lengths = lengths_of(weight)
        if not bool((lengths > 0).all()):
            continue
        module.__class__ = kind
        gain = nn.Parameter(lengths.clone())
        module.register_parameter(GAIN, gain)
        module.register_load_state_dict_pre_hook(_TakeOldCheckpoints())
        module.register_forward_hook(_KeepFastPathOff())
        group["params"].append(gain)
        if "param_names" in group:
            group["param_names"].append(f"{path}.{GAIN}")
        found.append(path)
    return found
