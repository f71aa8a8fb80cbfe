"""The remedy that normalizes weights (Salimans and Kingma 2016)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gradmedic.torch.remedies.module_remedy import AppliedPlaces, WeightRemedy
from gradmedic.torch.remedies.modules.normalized_layers import NORMALIZED_CLASSES, row_norms

GAIN = "weight_gain"
"""Name of the new parameter."""


class WeightNormalization(WeightRemedy):
    """Gives the weights of every linear layer and convolution a gain of their own, in the group of the weights."""

    id = "weight_normalization"
    order = 30
    changes_parameters = True

    def change_weights(self, model: nn.Module) -> AppliedPlaces:
        """Normalize the weights."""
        return AppliedPlaces(
            _normalize_weights(model, self.context.optimizers),
            "the model has no linear layer or convolution of its own",
        )


class _AddGain:
    """Hook before `load_state_dict()` of a layer: computes the gain if the state is from before the remedy."""

    def __call__(self, _module: nn.Module, state: dict[str, Any], prefix: str, *_others: Any) -> None:
        if prefix + GAIN not in state and prefix + "weight" in state:
            state[prefix + GAIN] = row_norms(state[prefix + "weight"])


class _KeepFastPathOff:
    """Forward hook that does nothing: with a hook, attention does not use its fast path, which reads the weights."""

    def __call__(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        pass


def _normalize_weights(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[str]:
    """Normalize the weights of linear layers and convolutions; return the names of these modules.

    Shared weights, weights with a row of zeros, and weights that no optimizer updates stay.
    """
    groups = {id(p): group for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    changed = []
    for path, module in model.named_modules():
        normalized_class = NORMALIZED_CLASSES.get(type(module))
        if normalized_class is None or not isinstance(weight := module.weight, nn.Parameter):
            continue
        group = groups.get(id(weight))
        if group is None or owners[id(weight)] > 1 or not weight.requires_grad:
            continue
        with torch.no_grad():
            norms = row_norms(weight)
        if not bool((norms > 0).all()):
            continue
        module.__class__ = normalized_class
        gain = nn.Parameter(norms.clone())
        module.register_parameter(GAIN, gain)
        module.register_load_state_dict_pre_hook(_AddGain())
        module.register_forward_hook(_KeepFastPathOff())
        group["params"].append(gain)
        if "param_names" in group:
            group["param_names"].append(f"{path}.{GAIN}")
        changed.append(path)
    return changed
