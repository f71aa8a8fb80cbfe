"""The remedy that computes in float32 where the script chose float16 or bfloat16.

Parameters and buffers of 16 bits become float32, every 16-bit tensor that a torch function gets is cast to float32
first, a cast to 16 bits gives float32, and autocast is switched off. So nothing overflows beyond 65,504, no gradient
is rounded to zero, and no update is lost against its weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradmedic.torch.remedies.module_remedy import ModuleContext
from gradmedic.torch.remedies.modules.function_remedy import FunctionRemedy, is_in_place
from gradmedic.torch.remedies.modules.trace import get_function_name

_LOW = frozenset({torch.float16, torch.bfloat16})
_CASTS = frozenset({"half", "bfloat16"})
_ACCESSES = frozenset({"__get__", "__set__", "__delete__", "element_size", "data_ptr", "backward"})
"""Functions that read or set an attribute of a tensor, which must be that tensor."""
_AUTOCAST = torch.amp.autocast_mode.autocast


class UseFloat32(FunctionRemedy):
    """Computes in float32, wherever the script computes in 16 bits."""

    id = "use_float32"
    accepts_sharded = False
    needs_parameters = True
    nothing_seen = "the script computes nothing in float16 or bfloat16"

    def __init__(self, parameters: Mapping[str, Any], context: ModuleContext) -> None:
        super().__init__(parameters, context)
        self._low: list[Tensor] = []
        """Parameters and buffers of 16 bits."""
        self._enter_autocast: Any = None  # torch's method, while it is replaced

    def reason_against(self, model: nn.Module, wrappers: set[str]) -> str | None:
        """Return why the model's precision must stay."""
        if (reason := super().reason_against(model, wrappers)) is not None:
            return reason
        low = [parameter for parameter in model.parameters() if parameter.dtype in _LOW]
        if low and "DistributedDataParallel" in wrappers:
            return "DistributedDataParallel has laid out the parameters already"
        if low and any(optimizer.state for optimizer in self.context.optimizers):
            return "the optimizer has a state in 16 bits already"
        self._low += [*low, *(buffer for buffer in model.buffers() if buffer.dtype in _LOW)]
        return None

    def start(self) -> None:
        """Compute in float32 from now on."""
        super().start()
        for tensor in self._low:
            tensor.data = tensor.data.float()
            self.sharing.add_place("weights")
        if self.sharing is self:
            self._enter_autocast = enter = _AUTOCAST.__enter__

            def enter_switched_off(autocast: Any) -> Any:
                if autocast.fast_dtype in _LOW and autocast._enabled:
                    self.add_place("autocast")
                    autocast._enabled = False
                return enter(autocast)  # type: ignore[no-untyped-call]

            _AUTOCAST.__enter__ = enter_switched_off  # type: ignore[method-assign]

    def close(self) -> None:
        """Let the script compute in 16 bits again. Parameters stay."""
        super().close()
        if self._enter_autocast is not None:
            _AUTOCAST.__enter__ = self._enter_autocast  # type: ignore[method-assign]
            self._enter_autocast = None

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function with float32 in place of 16 bits."""
        name = get_function_name(func)
        if name in _ACCESSES:
            return func(*args, **kwargs)
        if name in _CASTS and args and isinstance(args[0], Tensor):
            self.add_place(name)
            return args[0].float()
        first = args[:1] if is_in_place(func, kwargs) else ()  # what is written to must be that tensor
        changed = (*first, *(self._widen(value, name) for value in args[len(first) :]))
        return func(
            *changed, **{key: value if key == "out" else self._widen(value, name) for key, value in kwargs.items()}
        )

    def _widen(self, value: Any, name: str) -> Any:
        """Return an argument of a function, with float32 in place of 16 bits."""
        if isinstance(value, Tensor):
            if value.dtype in _LOW:
                self.add_place(name)
                return value.float()
            return value
        if isinstance(value, torch.dtype):
            if value in _LOW:
                self.add_place(name)
                return torch.float32
            return value
        if type(value) in (list, tuple):
            return type(value)(self._widen(item, name) for item in value)
        return value
