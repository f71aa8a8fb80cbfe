"""Records the operations of the script between the output of a model and `backward()`.

A function mode sees them. It is entered after the call of a watched model and removed before anything else of the
training runs: the next call of the model, or the optimizer. It is not entered where another mode is active, or where
something is compiled, because a compiler would compile its callers again. Modules that compute differently below a mode
end it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._device import DeviceContext
from torch.utils.hooks import RemovableHandle

from gradmedic.torch.module_hooks import FAST_PATH_MODULES
from gradmedic.torch.origin.source import find_place
from gradmedic.torch.origin.step_record import Item, Precision, StepRecord

_UNRECORDED = frozenset(
    {"__get__", "__set__", "backward", "__repr__", "__format__", "item", "tolist", "numpy", "__len__"}
)
"""Functions that compute no tensor of the step."""


class LossTape(TorchFunctionMode):
    """Adds each operation of the script to the record of its step.

    Args:
        give_up: function that is called with the error if an operation could not be recorded.
    """

    def __init__(self, give_up: Callable[[Exception], None]) -> None:
        super().__init__()
        self._give_up = give_up
        self._record: StepRecord | None = None
        self._guard: RemovableHandle | None = None

    def start(self, record: StepRecord) -> bool:
        """Record from now on, if nothing else that torch calls is in the way; return whether it does."""
        modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        if self in modes:
            self._record = record
            return True
        if uses_compiler() or any(not isinstance(mode, DeviceContext) for mode in modes):
            return False
        self._record = record
        self._guard = register_module_forward_pre_hook(self._before_module)
        _push_mode(self)  # type: ignore[no-untyped-call]
        return True

    def rest(self) -> None:
        """Record nothing, although torch may still call it."""
        self._record = None

    def stop(self) -> None:
        """Record no more. Modes that were entered since stay."""
        self._record = None
        if self._guard is not None:
            self._guard.remove()
            self._guard = None
        above: list[Any] = []
        if self not in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
            return
        while (mode := _pop_mode()) is not self:  # type: ignore[no-untyped-call]
            above.append(mode)
        for mode in reversed(above):
            _push_mode(mode)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function and record it."""
        kwargs = kwargs or {}
        record = self._record
        if record is None or getattr(func, "__name__", "") in _UNRECORDED:
            return func(*args, **kwargs)
        try:
            item = Item(
                func, record.encode(args), record.encode(kwargs), find_place(sys._getframe(1)), Precision.read(),
                torch.is_grad_enabled(),
            )  # fmt: skip
        except Exception as error:  # must not reach the script
            self._end(error)
            return func(*args, **kwargs)
        output = func(*args, **kwargs)
        try:
            if isinstance(output, (Tensor, list, tuple)) or item.outputs:
                record.note_outputs(item, output)
            if (item.outputs or output is None) and not record.add(item):
                self._record = None
        except Exception as error:  # must not reach the script
            self._end(error)
        return output

    def _end(self, error: Exception) -> None:
        self._record = None
        self._give_up(error)

    def _before_module(self, module: nn.Module, _inputs: Any) -> None:
        """Stop before a module that computes by a faster path of its own unless there is a mode."""
        if isinstance(module, FAST_PATH_MODULES) and not module.training:
            self.stop()


def uses_compiler() -> bool:
    """Whether the script has called `torch.compile`, also if nothing was compiled yet."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    backends = getattr(compiler, "cached_backends", {})
    return any(backend is not None for backend in backends.values())
