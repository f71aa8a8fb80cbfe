"""Changes functions that a module calls: another activation in a place, or the block's input added behind it.

One idea: a function mode, entered when a module of the plan is called and left when it returns, so that it is active
in exactly the calls of that module, also where a checkpoint repeats them in the backward pass. A place is recognized by
where in the code the function is called, and by how often it was called there before.

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

from gradmedic.torch.modules import modes
from gradmedic.torch.modules.plan import ACTIVATIONS, GROWING, Place
from gradmedic.torch.modules.trace import Site, name_of, site_of

REPLACEMENTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "ReLU": functional.relu,
    "LeakyReLU": functional.leaky_relu,
    "ELU": functional.elu,
    "SELU": functional.selu,
    "GELU": functional.gelu,
    "Tanh": torch.tanh,
}
"""By the name of the module in `torch.nn`; each with that module's defaults."""
NAMES = {"ReLU": "relu", "LeakyReLU": "leaky_relu", "ELU": "elu", "SELU": "selu", "GELU": "gelu", "Tanh": "tanh"}
"""The functions' names, as a trace has them."""


@dataclass(frozen=True, slots=True)
class Change:
    """What happens at a place."""

    place: Place
    activation: str | None = None
    """Name of the activation that takes the place of the function."""
    layer: str | None = None
    """Whose input is added to the result."""


@dataclass(slots=True)
class _Frame:
    """A call of a module that is under way."""

    changes: Mapping[Site, Sequence[Change]]
    counts: Counter[Site] = field(default_factory=Counter)


class Calls(TorchFunctionMode):
    """The changes of one model; its hooks `Enter`, `Leave` and `Remember` share it."""

    def __init__(self, changes: Sequence[Change]) -> None:
        super().__init__()
        self._changes = tuple(changes)
        self._by_owner: dict[str, dict[Site, list[Change]]] = {}
        for change in changes:
            self._by_owner.setdefault(change.place.owner, {}).setdefault(change.place.site, []).append(change)
        self._frames: list[_Frame] = []
        self._inputs: dict[str, Tensor] = {}

    def install(self, model: nn.Module, callers: Iterable[str] = ()) -> bool:
        """Register the hooks; say whether the model itself has some.

        Args:
            model: whose modules are changed.
            callers: modules that call the same code, as a function that several share, and may have no changes.
        """
        modules = dict(model.named_modules())
        kinds = {type(modules[owner]) for owner in {*self._by_owner, *callers}}
        for name, module in modules.items():
            if type(module) in kinds:  # a module of the same code, called by one of these, has changes of its own
                module.register_forward_pre_hook(Enter(self, name), prepend=True)
                module.register_forward_hook(Leave(self), always_call=True)
            if isinstance(module, nn.TransformerEncoder) and any(
                each.startswith(f"{name}." if name else "") for each in self._by_owner
            ):
                module.use_nested_tensor = False  # in evaluation: its layers cannot take them where functions change
        for layer in sorted({change.layer for change in self._changes if change.layer is not None}):
            modules[layer].register_forward_pre_hook(Remember(self, layer))
        return type(model) in kinds

    def has_changes(self, owner: str) -> bool:
        """Whether anything is changed in calls of a module."""
        return owner in self._by_owner

    def enter(self, owner: str) -> None:
        """A module begins to compute."""
        if not self._frames:
            self.__enter__()  # type: ignore[no-untyped-call]
        self._frames.append(_Frame(self._by_owner.get(owner, {})))

    def leave(self) -> None:
        """It is done."""
        if self._frames:
            self._frames.pop()
            if not self._frames:
                modes.leave(self)

    def remember(self, layer: str, given: Tensor) -> None:
        """Keep the input of a block until its end."""
        self._inputs[layer] = given

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if not self._frames or (name not in ACTIVATIONS and name not in GROWING):
            return func(*args, **kwargs)
        frame = self._frames[-1]
        site = site_of(sys._getframe(1))
        ordinal = frame.counts[site]
        frame.counts[site] += 1
        changes = [
            change
            for change in frame.changes.get(site, ())
            if change.place.ordinals is None or ordinal in change.place.ordinals
        ]
        if not changes:
            return func(*args, **kwargs)
        given = args[0] if args else kwargs["input"]
        # In place the old result may be all that the script looks at; what is kept for the backward pass must stay.
        is_in_place = func.__name__.endswith("_") and not func.__name__.startswith("__")
        is_in_place = is_in_place or bool(kwargs.get("inplace"))
        source = given.clone() if is_in_place else given
        activation = next((change.activation for change in changes if change.activation is not None), None)
        if activation is not None:
            result = REPLACEMENTS[activation](source)
        else:
            result = func(source, *args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
        for change in changes:
            if change.layer in self._inputs:  # one place may be behind several layers: the last one called was its
                result = result + self._inputs.pop(change.layer)
        return given.copy_(result) if is_in_place else result

    def __reduce__(self) -> tuple[type[Calls], tuple[tuple[Change, ...]]]:
        return Calls, (self._changes,)


class Enter:
    """Forward pre-hook of a module whose calls are changed."""

    def __init__(self, calls: Calls, owner: str) -> None:
        self._calls, self._owner = calls, owner

    @property
    def has_changes(self) -> bool:
        """Whether anything is changed in this very module."""
        return self._calls.has_changes(self._owner)

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        """Tell that the module begins."""
        self._calls.enter(self._owner)


class Leave:
    """Forward hook of a module whose calls are changed; also called when it raises."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def __call__(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Tell that the module is done."""
        self._calls.leave()


class Remember:
    """Forward pre-hook of the first layer of a block."""

    def __init__(self, calls: Calls, layer: str) -> None:
        self._calls, self._layer = calls, layer

    def __call__(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep what the layer is given."""
        if args and isinstance(args[0], Tensor):
            self._calls.remember(self._layer, args[0])


class AddInput:
    """Forward hook of a layer that is a block of its own: adds what it was given."""

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return the sum."""
        given: Tensor = args[0]
        return output + given
