"""The base of remedies that change torch functions wherever the script calls them, in the model or outside of it.

A function mode is entered at `watch()` and left at the end. It sees the calls of the thread that called `watch()`, with
those that a checkpoint repeats in the backward pass on a CPU. Under CUDA, the backward pass has threads of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from gradmedic.torch.remedies.module_remedy import ModuleContext, ModuleRemedy
from gradmedic.torch.remedies.modules.function_modes import leave_mode

_WRITING = frozenset({
    "__setitem__", "__set__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ifloordiv__",
    "__imod__", "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__",
})  # fmt: skip
"""Operators that write into their first argument."""
_acting: dict[str, FunctionRemedy] = {}
"""Remedies that act now, by id: a script may call `watch()` for each of its models."""


class FunctionRemedy(ModuleRemedy):
    """A remedy that changes calls of torch functions everywhere in the script."""

    accepts_sharded = True
    needs_eager = True
    nothing_seen: str
    """Why it is not applicable if the first step calls no function that it changes."""

    def __init__(self, parameters: Mapping[str, Any], context: ModuleContext) -> None:
        super().__init__(parameters, context)
        self._mode: _FunctionMode | None = None
        self.sharing: FunctionRemedy = self
        """The remedy that acts for this one: itself, unless that of another `watch()` does."""

    def reason_against(self, model: nn.Module, wrappers: set[str]) -> str | None:
        """Return why the remedy cannot be applied to a model, None if nothing is known against it."""
        if "DataParallel" in wrappers:
            return "DataParallel calls the model in threads of its own"
        return super().reason_against(model, wrappers)

    def start(self) -> None:
        """Change the calls from now on."""
        self.sharing = _acting.setdefault(self.id, self)
        if self.sharing is self:
            self._mode = _FunctionMode(self.call)
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Change no more calls."""
        if self._mode is not None:
            leave_mode(self._mode)
            self._mode = None
            _acting.pop(self.id, None)

    @property
    def failure_after_step(self) -> str | None:
        """Reason why nothing was changed."""
        return None if self.sharing.places else self.nothing_seen

    def add_place(self, name: str) -> None:
        """Add the name of a function that is changed."""
        if name not in self.places:
            self.places.append(name)

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a torch function, changed or not, and return its result."""
        raise NotImplementedError


class _FunctionMode(TorchFunctionMode):
    """Passes each call of a torch function on to a remedy."""

    def __init__(self, call: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        self._call = call

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._call(func, args, kwargs or {})


def is_in_place(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a torch function writes its result into an argument."""
    name = str(getattr(func, "__name__", ""))
    return "out" in kwargs or (name.endswith("_") and not name.endswith("__")) or name in _WRITING
