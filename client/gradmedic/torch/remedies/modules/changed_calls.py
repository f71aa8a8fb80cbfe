"""Changes functions that a module calls: another activation, or the input of a block added to its result.

A function mode is entered when a changed module is called, and left when the module returns. So it is active in exactly
the calls of that module, also when a checkpoint repeats them in the backward pass. A place is recognized by where in
the code the function is called, and by how often it was called there before.

Everything here is part of the model: a copy of the model, or one that is saved and loaded, computes the same.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from gradmedic.torch.remedies.modules.function_modes import leave_mode
from gradmedic.torch.remedies.modules.places import ACTIVATIONS, MATH_FUNCTIONS, Place
from gradmedic.torch.remedies.modules.remedy_hook import RemedyHook
from gradmedic.torch.remedies.modules.trace import CallSite, find_call_site, get_function_name

ACTIVATION_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "ReLU": functional.relu,
    "LeakyReLU": functional.leaky_relu,
    "ELU": functional.elu,
    "SELU": functional.selu,
    "GELU": functional.gelu,
    "Tanh": torch.tanh,
}
"""The function of each module of `torch.nn`, with that module's defaults."""
ACTIVATION_NAMES = {
    "ReLU": "relu",
    "LeakyReLU": "leaky_relu",
    "ELU": "elu",
    "SELU": "selu",
    "GELU": "gelu",
    "Tanh": "tanh",
}
"""The name of each of these functions in a trace."""


@dataclass(frozen=True, slots=True)
class CallChange:
    """A change of the function calls at a place."""

    place: Place
    activation: str | None = None
    """Module name of the activation that is called in place of the function."""
    added_input: str | None = None
    """Name of the layer whose input is added to the result."""


@dataclass(slots=True)
class _ModuleCall:
    """A call of a module that has not returned yet."""

    changes: Mapping[CallSite, Sequence[CallChange]]
    counts: Counter[CallSite] = field(default_factory=Counter)


class ChangedCalls(TorchFunctionMode):
    """The changes of one model. Its hooks `EnterModule`, `LeaveModule` and `RememberInput` share it."""

    def __init__(self, changes: Sequence[CallChange]) -> None:
        super().__init__()
        self._changes = tuple(changes)
        self._by_owner: dict[str, dict[CallSite, list[CallChange]]] = {}
        for change in changes:
            self._by_owner.setdefault(change.place.owner, {}).setdefault(change.place.site, []).append(change)
        self._module_calls: list[_ModuleCall] = []
        self._layer_inputs: dict[str, Tensor] = {}

    def install(self, model: nn.Module, callers: Iterable[str] = ()) -> bool:
        """Register the hooks; return whether the model itself has some.

        Args:
            model: model whose modules are changed.
            callers: modules that call the same code, as a function that several share. They may have no changes.
        """
        modules = dict(model.named_modules())
        classes = {type(modules[owner]) for owner in {*self._by_owner, *callers}}
        for name, module in modules.items():
            if type(module) in classes:  # modules of one class share their code, but not their changes
                module.register_forward_pre_hook(EnterModule(self, name), prepend=True)
                module.register_forward_hook(LeaveModule(self), always_call=True)
            if isinstance(module, nn.TransformerEncoder) and any(
                owner.startswith(f"{name}." if name else "") for owner in self._by_owner
            ):
                module.use_nested_tensor = False  # changed functions do not accept nested tensors
        for layer in sorted({change.added_input for change in self._changes if change.added_input is not None}):
            modules[layer].register_forward_pre_hook(RememberInput(self, layer))
        return type(model) in classes

    def has_changes(self, owner: str) -> bool:
        """Whether anything is changed in calls of a module."""
        return owner in self._by_owner

    def enter(self, owner: str) -> None:
        """Begin a call of the module of this name."""
        if not self._module_calls:
            self.__enter__()  # type: ignore[no-untyped-call]
        self._module_calls.append(_ModuleCall(self._by_owner.get(owner, {})))

    def leave(self) -> None:
        """End the call of a module that began last."""
        if self._module_calls:
            self._module_calls.pop()
            if not self._module_calls:
                leave_mode(self)

    def remember_input(self, layer: str, layer_input: Tensor) -> None:
        """Keep the input of a block until its end."""
        self._layer_inputs[layer] = layer_input

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = get_function_name(func, args)
        if not self._module_calls or (name not in ACTIVATIONS and name not in MATH_FUNCTIONS):
            return func(*args, **kwargs)
        module_call = self._module_calls[-1]
        site = find_call_site(sys._getframe(1))
        ordinal = module_call.counts[site]
        module_call.counts[site] += 1
        changes = [
            change
            for change in module_call.changes.get(site, ())
            if change.place.ordinals is None or ordinal in change.place.ordinals
        ]
        if not changes:
            return func(*args, **kwargs)
        argument = args[0] if args else kwargs["input"]
        # A script may use the changed argument and not the result. What autograd keeps of it must stay as it is.
        is_in_place = func.__name__.endswith("_") and not func.__name__.startswith("__")
        is_in_place = is_in_place or bool(kwargs.get("inplace"))
        source = argument.clone() if is_in_place else argument
        activation = next((change.activation for change in changes if change.activation is not None), None)
        if activation is not None:
            result = ACTIVATION_FUNCTIONS[activation](source)
        else:
            result = func(source, *args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
        for change in changes:
            if change.added_input in self._layer_inputs:  # of several layers before a place, the one called last counts
                result = result + self._layer_inputs.pop(change.added_input)
        return argument.copy_(result) if is_in_place else result

    def __reduce__(self) -> tuple[type[ChangedCalls], tuple[tuple[CallChange, ...]]]:
        return ChangedCalls, (self._changes,)


class EnterModule(RemedyHook):
    """Forward pre-hook of a module whose calls may be changed."""

    def __init__(self, calls: ChangedCalls, owner: str) -> None:
        self._calls, self._owner = calls, owner

    @property
    def changes_module(self) -> bool:
        """Whether anything is changed in this module itself."""
        return self._calls.has_changes(self._owner)

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        """Begin the call of the module."""
        self._calls.enter(self._owner)


class LeaveModule:
    """Forward hook of a module whose calls may be changed; it also runs when the module raises."""

    def __init__(self, calls: ChangedCalls) -> None:
        self._calls = calls

    def __call__(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """End the call of the module."""
        self._calls.leave()


class RememberInput(RemedyHook):
    """Forward pre-hook of the first layer of a block."""

    def __init__(self, calls: ChangedCalls, layer: str) -> None:
        self._calls, self._layer = calls, layer

    def __call__(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep the input of the layer."""
        if args and isinstance(args[0], Tensor):
            self._calls.remember_input(self._layer, args[0])
