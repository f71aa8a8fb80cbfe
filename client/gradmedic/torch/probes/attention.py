"""Measures the largest logit and the entropy of attention, per module, on probed steps.

Attention is a call of a function: `scaled_dot_product_attention`, `multi_head_attention_forward`, or a softmax of a
product. A function mode sees these calls and passes them on unchanged. The first probed call of a model shows whether
`torch.compile` runs a part of it, and the second which modules attend. From the third on, the mode is entered around
those modules alone, so that other code runs without it.

Hooks of modules and the mode are there only during a probed call of the model. So a fast path that torch takes in
modules without hooks is taken as before. Parts that are compiled, scripted, or may take such a path never run under the
mode.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from gradmedic.protocol.probes import choose_subjects, name_metric
from gradmedic.torch.module_hooks import (
    FAST_PATH_MODULES,
    AttachedHook,
    attach_forward_hook,
    attach_forward_pre_hook,
)
from gradmedic.torch.probes.attention_logits import (
    measure_multi_head,
    measure_scaled_dot_product,
    measure_softmax,
    plain_arithmetic,
)
from gradmedic.torch.probes.meter import ProbeContext, ProbeMeter, ProbeValues
from gradmedic.torch.probes.part_hooks import ProbeHook
from gradmedic.torch.recorded_code import count_compiled_frames, is_recorded
from gradmedic.torch.remedies.modules.function_modes import leave_mode
from gradmedic.torch.statistics import start_copy
from gradmedic.torch.structure import OwnedParameter, unwrap_model

logger = logging.getLogger("gradmedic")

MAX_CALLS = 4
"""Most calls of one module in one call of the model that are measured."""

_MEASURES: Mapping[int, Callable[..., Tensor | None]] = MappingProxyType({
    id(functional.scaled_dot_product_attention): measure_scaled_dot_product,
    id(functional.multi_head_attention_forward): measure_multi_head,
    id(functional.softmax): measure_softmax,
    id(torch.softmax): measure_softmax,
    id(Tensor.softmax): measure_softmax,
})  # fmt: skip
"""What measures a call of a function that computes attention weights, by the id of the function."""
_TRANSPARENT = (nn.ModuleList, nn.ModuleDict)
"""Modules that are never called."""


class AttentionMeter(ProbeMeter):
    """Measures `attention_logit_max` and `attention_entropy` of at most `MAX_SUBJECTS` modules.

    Of a step, only the first call of each model is measured, and only where gradients are computed. Of modules that
    `torch.compile` or TorchScript runs, nothing is seen.
    """

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self._models = [_ModelCalls(unwrap_model(model)[0], context) for model in context.models]

    def finish_step(self) -> Sequence[ProbeValues]:
        """Return the numbers of the modules that were measured."""
        return [values for model in self._models for values in model.finish_step()]

    def close(self) -> None:
        """Remove all hooks."""
        for model in self._models:
            model.close()


class _ModelCalls:
    """What is measured in the calls of one model."""

    def __init__(self, model: nn.Module, context: ProbeContext) -> None:
        self._model, self._context = model, context
        self._names = _name_modules(model, context.owned)
        self._is_over = False
        self._is_seen = False  # whether a whole call has shown that nothing inside is compiled
        self._owners: dict[str, nn.Module] = {}  # modules that attend, by name, once they are known
        self._found: dict[str, None] | None = None  # names of modules that attend, while they are looked for
        self._frames: int | None = None  # frames that were compiled before the call that is watched for that
        self._has_measured = False
        self._thread: int | None = None  # thread that computes a probed call; None outside of one
        self._called: list[str] = []  # names of the modules that are being called, the innermost last
        self._hooks: list[AttachedHook] = []  # those of a probed call
        self._mode = _ObservingMode(self)
        self._measured: dict[str, list[Tensor]] = {}
        self._model_hooks = [
            attach_forward_pre_hook(model, _Hook(self.begin)),
            attach_forward_hook(model, _Hook(self.end), always_call=True),
        ]

    def close(self) -> None:
        """Remove all hooks. Also within a call, of which nothing more is measured then."""
        self._is_over = True
        self._leave()
        self._remove_model_hooks()
        self._measured.clear()

    def finish_step(self) -> Iterator[ProbeValues]:
        """Iterate over the numbers that were measured since the last call, and forget them."""
        self._has_measured = False
        if self._thread == threading.get_ident():
            self._leave()  # an interrupt ended the call: hooks of modules are not called then
        if self._is_over:
            self._remove_model_hooks()
        if not self._measured:
            return
        measured, self._measured = self._measured, {}
        devices: dict[torch.device, dict[str, Tensor]] = {}
        for name, calls in measured.items():
            numbers = calls[0] if len(calls) == 1 else _join_calls(torch.stack([call.to(calls[0]) for call in calls]))
            devices.setdefault(numbers.device, {})[name] = numbers
        for numbers_of in devices.values():
            names = [
                name_metric(probe, name)
                for name in numbers_of
                for probe in ("attention_logit_max", "attention_entropy")
            ]
            yield ProbeValues(tuple(names), start_copy(torch.cat(list(numbers_of.values()))))

    def _remove_model_hooks(self) -> None:
        for hook in self._model_hooks:
            if hook is not None:
                hook.remove()
        self._model_hooks.clear()

    # --- hooks of the model -------------------------------------------------------------------------------------------

    def begin(self, _module: nn.Module, _arguments: Any, _named: Any = None) -> None:
        """Prepare to observe a call of the model, if it is the first one of a probed step."""
        if is_recorded() or self._is_over or not self._context.schedule.is_probing:
            return
        if self._has_measured or self._thread is not None or not torch.is_grad_enabled() or _module is not self._model:
            return
        self._has_measured = True
        self._context.call_safely(self._enter)

    def end(self, _module: nn.Module, _arguments: Any, output: Any) -> None:
        """Remove what `begin` attached. After a call that raised, the output is None."""
        if is_recorded() or self._thread is None:  # in this order: what follows cannot be compiled
            return
        if _module is not self._model or threading.get_ident() != self._thread:
            return
        self._context.call_safely(self._leave, output is not None)

    def _enter(self) -> None:
        self._thread = threading.get_ident()
        if not self._is_seen:
            self._frames = count_compiled_frames()
            return
        modules: Mapping[str, nn.Module] = self._owners
        if not modules:
            self._found = {}
            modules = {
                name: module
                for root in _list_safe(self._model)
                for module in root.modules()
                if (name := self._names.get(id(module))) is not None and _may_attend(module)
            }
        for name, module in modules.items():
            if not _may_differ(module):
                self._attach(module, name)

    def _attach(self, module: nn.Module, name: str) -> None:
        def enter(_module: nn.Module, _arguments: Any, _named: Any = None) -> None:
            if self._is_own_call(module, _module):
                self._called.append(name)
                if len(self._called) == 1:
                    self._mode.__enter__()  # type: ignore[no-untyped-call]

        def leave(_module: nn.Module, _arguments: Any, _output: Any) -> None:
            if self._is_own_call(module, _module) and self._called and self._called[-1] == name:
                self._called.pop()
                if not self._called:
                    leave_mode(self._mode)

        if module is self._model:
            self._called.append(name)  # its own hooks are being called: none can be added for this call
            self._mode.__enter__()  # type: ignore[no-untyped-call]
            return
        hooks = (
            attach_forward_pre_hook(module, _Hook(enter)),
            attach_forward_hook(module, _Hook(leave), always_call=True),
        )
        self._hooks.extend(hook for hook in hooks if hook is not None)

    def _is_own_call(self, module: nn.Module, called: nn.Module) -> bool:
        return called is module and threading.get_ident() == self._thread and not is_recorded()

    def _leave(self, is_whole: bool = False) -> None:
        if self._thread is None:
            return
        self._thread = None
        self._called.clear()
        leave_mode(self._mode)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if not is_whole:
            return
        if not self._is_seen:
            self._is_seen = True
            is_known = any(_is_compiled(module) for module in self._model.modules())
            self._is_over = not is_known and self._frames != count_compiled_frames()
        elif self._found is not None:
            chosen = set(choose_subjects(list(self._found)))
            self._owners = {
                name: module
                for module in self._model.modules()
                if (name := self._names.get(id(module))) is not None and name in chosen
            }
            self._found = None
            self._is_over = not self._owners

    # --- calls of functions -------------------------------------------------------------------------------------------

    def observe(self, function: Callable[..., Any], arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
        """Measure a call of a function, if it is attention."""
        measure = _MEASURES.get(id(function))
        if measure is None or not self._called or threading.get_ident() != self._thread or is_recorded():
            return
        self._context.call_safely(self._measure, self._called[-1], measure, arguments, named)

    def _measure(
        self, name: str, measure: Callable[..., Tensor | None], arguments: Sequence[Any], named: Mapping[str, Any]
    ) -> None:
        calls = self._measured.get(name, [])
        if len(calls) >= MAX_CALLS or (self._found is not None and name in self._found):
            return
        device = next((value.device for value in (*arguments, *named.values()) if isinstance(value, Tensor)), None)
        if device is None:
            return
        try:
            with plain_arithmetic(device):
                numbers = measure(*arguments, **named)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            # A call of a form that is not known here, or no memory left: of this module nothing is measured any more.
            logger.debug("gradmedic: attention of %s is not measured: %r", name or "the model", error)
            self._owners.pop(name, None)
            self._is_over = self._found is None and not self._owners
            return
        if numbers is None:
            return
        if self._found is not None:
            self._found[name] = None
        else:
            self._measured[name] = [*calls, numbers]


class _Hook(ProbeHook):
    """A hook of this meter."""


class _ObservingMode(TorchFunctionMode):
    """Passes every call on unchanged, and lets some be measured."""

    def __init__(self, calls: _ModelCalls) -> None:
        super().__init__()
        self._calls = calls

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if torch.compiler.is_compiling():  # a compiled function that is called here compiles to the same code
            return function(*args, **named)
        result = function(*args, **named)
        if id(function) in _MEASURES:
            self._calls.observe(function, args, named)
        return result


def _name_modules(model: nn.Module, owned: Sequence[OwnedParameter]) -> dict[int, str]:
    """Return the names of the modules of a model by id, as they begin the names of its layers; empty for the model."""
    paths = {id(module): path for path, module in model.named_modules()}
    prefix = ""
    for entry in owned:
        path = paths.get(id(entry.module))
        if path is not None:
            prefix = entry.name.removesuffix(f"{path}.{entry.attribute}" if path else entry.attribute)
            break
    return {identity: f"{prefix}{path}".removesuffix(".") for identity, path in paths.items()}


def _list_safe(module: nn.Module) -> list[nn.Module]:
    """Return the largest parts of a model that may run under a function mode, and that are called."""
    if _may_differ(module):
        return []
    if not isinstance(module, _TRANSPARENT) and not any(_may_differ(part) for part in module.modules()):
        return [module]
    return [safe for child in module.children() for safe in _list_safe(child)]


def _may_differ(module: nn.Module) -> bool:
    """Whether a module may compute differently under a function mode or with hooks."""
    return (
        isinstance(module, torch.jit.ScriptModule)
        or _is_compiled(module)
        or (isinstance(module, FAST_PATH_MODULES) and not module.training)
    )


def _is_compiled(module: nn.Module) -> bool:
    is_compiled_in_place = getattr(module, "_compiled_call_impl", None) is not None
    return is_compiled_in_place or isinstance(getattr(module, "_orig_mod", None), nn.Module)


def _may_attend(module: nn.Module) -> bool:
    """Whether a module may call attention itself: it has parts, or is no module of torch."""
    return next(module.children(), None) is not None or not type(module).__module__.startswith("torch.nn.")


def _join_calls(calls: Tensor) -> Tensor:
    """Return the largest logit and the lowest entropy `[2]` of calls `[call, 2]`."""
    return torch.stack([calls[:, 0].amax(), calls[:, 1].amin()])
