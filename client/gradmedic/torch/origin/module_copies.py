"""Copies modules, so that a step can be repeated without a trace in the modules of the training.

A copy has parameters, buffers and containers of its own. Other objects are shared. Hooks of the script are left out,
because they may have effects outside of the module; those of torch stay, as that of a weight normalization.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.jit import ScriptModule

_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called",
)  # fmt: skip
_DEEPEST = 4
"""Containers inside of containers that are copied."""


class CannotCopy(Exception):
    """A module cannot be copied; the message names the reason."""


class ModuleCopies:
    """Copies of models that share parameters and modules as the models do.

    Args:
        models: the models, without wrappers.

    Raises:
        CannotCopy: a module cannot be copied.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._modules: dict[int, nn.Module] = {}
        self._tensors: dict[int, Tensor] = {}
        for model in models.values():
            for module in model.modules():
                if isinstance(module, ScriptModule):
                    raise CannotCopy("a scripted module cannot be copied")
                if id(module) not in self._modules:
                    self._modules[id(module)] = module.__class__.__new__(module.__class__)
        originals = {id(module): module for model in models.values() for module in model.modules()}
        for identity, copied in self._modules.items():
            self._fill(copied, originals[identity])
        self.models = {name: self._modules[id(model)] for name, model in models.items()}
        """The copy of each model."""

    def modules(self) -> dict[str, nn.Module]:
        """Return all copied modules by their path, which begins with the model's name if there are several."""
        several = len(self.models) > 1
        found: dict[str, nn.Module] = {}
        for name, model in self.models.items():
            for path, module in model.named_modules():
                found[".".join(part for part in (name if several else "", path) if part)] = module
        return found

    def find(self, original: int) -> Tensor | None:
        """Return the copy of a parameter or buffer by the id of the original; None if it belongs to no model."""
        return self._tensors.get(original)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All copied parameters."""
        return [tensor for tensor in self._tensors.values() if isinstance(tensor, nn.Parameter)]

    def _fill(self, copied: nn.Module, original: nn.Module) -> None:
        attributes = copied.__dict__
        for name, value in original.__dict__.items():
            if name in _HOOKS:
                attributes[name] = OrderedDict((key, hook) for key, hook in value.items() if _is_of_torch(hook))
            elif name in ("_parameters", "_buffers"):
                attributes[name] = {key: self._copy_tensor(tensor) for key, tensor in value.items()}
            elif name == "_modules":
                attributes[name] = {key: self._modules.get(id(module)) for key, module in value.items()}
            elif name == "_compiled_call_impl":
                attributes[name] = None
            else:
                attributes[name] = self._copy(value, original, 0)

    def _copy(self, value: Any, owner: nn.Module, depth: int) -> Any:
        if isinstance(value, nn.Module):
            return self._modules.get(id(value), value)
        if isinstance(value, Tensor):
            return self._copy_tensor(value)
        if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
            return MethodType(value.__func__, self._modules.get(id(value.__self__), value.__self__))
        if callable(value) and getattr(owner, "forward", None) is value:
            raise CannotCopy(f"the method `forward` of a {type(owner).__name__} was replaced")
        if depth >= _DEEPEST:
            return value
        if type(value) in (list, tuple, set, deque):
            items = [self._copy(item, owner, depth + 1) for item in value]
            return deque(items, value.maxlen) if isinstance(value, deque) else type(value)(items)
        if type(value) in (dict, OrderedDict, defaultdict):
            copied = value.copy()
            copied.update((key, self._copy(item, owner, depth + 1)) for key, item in value.items())
            return copied
        return value

    def _copy_tensor(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        known = self._tensors.get(id(tensor))
        if known is None:
            if nn.parameter.is_lazy(tensor):
                raise CannotCopy("a parameter has no shape yet")
            known = tensor.detach().clone()
            if isinstance(tensor, nn.Parameter):
                known = nn.Parameter(known, requires_grad=tensor.requires_grad)
            elif tensor.is_leaf and tensor.requires_grad:
                known.requires_grad_()
            self._tensors[id(tensor)] = known
        return known


def set_training(model: nn.Module, flags: Sequence[bool]) -> None:
    """Set for each module of a model whether it is in training, without a call of `train()`."""
    for module, flag in zip(model.modules(), flags, strict=True):
        module.training = flag


def _is_of_torch(hook: Any) -> bool:
    owner = getattr(hook, "__module__", None) or type(hook).__module__
    return str(owner).startswith("torch.")
