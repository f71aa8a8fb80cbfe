"""Records what a model computes, by one call of a copy of it, as a graph of function calls.

A function mode intercepts every torch function with its tensors, and hooks of the copy record which module calls it.
Nothing of the script changes: the copy computes without gradients, on copies of the arguments, and the random
generators are restored.
"""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from gradmedic.torch.first_batch import tensors_in
from gradmedic.torch.remedies.base import NotApplicable

_INSIDE_TORCH = ("torch/nn/functional.py", "torch/overrides.py", "torch/_tensor.py", "torch/functional.py")
"""Files of torch between a function and the module that called it."""
_MODULE_CALL = "torch/nn/modules/module.py"
_CHECKPOINT = "torch/utils/checkpoint.py"

_LAYERS = frozenset({
    "linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addmv", "baddbmm", "einsum",
    "multi_head_attention_forward", "rnn_tanh", "rnn_relu", "lstm", "gru", "rnn_tanh_cell", "rnn_relu_cell",
    "lstm_cell", "gru_cell",
})  # fmt: skip
"""Functions that are a layer if one of their arguments is a matrix of weights."""
_PRODUCTS_OF_TWO = frozenset({"mul", "__mul__", "__rmul__", "__imul__", "multiply"})
"""Functions that multiply two tensors element by element."""
_INDEPENDENT = ("_like", "bernoulli", "new_")
"""Parts of the names of functions whose result does not depend on the numbers in their arguments, as masks."""

CallSite = tuple[str, str, int]
"""Where in the code a function is called: file, calling function, instruction."""


@dataclass(slots=True)
class Call:
    """One call of a torch function."""

    index: int
    name: str
    owner: str
    """Name of the module whose forward called it."""
    site: CallSite
    ordinal: int
    """Number of calls at this site before, in the same call of the owner."""
    sources: tuple[int, ...]
    """Calls whose results are its arguments, if they depend on the model's inputs. `INPUT` stands for an input."""
    has_weights: bool
    """Whether one of its arguments is a matrix that depends on parameters alone."""
    is_layer: bool
    is_recomputed: bool
    """Whether a checkpoint repeats it outside of its owner."""
    shape: tuple[int, ...]
    """Shape of its result."""
    input_shape: tuple[int, ...]
    """Shape of its first tensor."""
    constants: tuple[Any, ...]
    """Its arguments that are numbers."""
    owner_call: int
    """Number of calls of the owner before this one."""
    parameters: tuple[str, ...] = ()
    """Names of the model's parameters among its arguments, or from which an argument was computed."""


AnyRecorder = TypeVar("AnyRecorder", bound="Recorder")
INPUT = -1
"""Stands for an input of the model among the sources of a call."""


@dataclass(slots=True)
class Trace:
    """The function calls in one call of a model."""

    calls: list[Call] = field(default_factory=list)
    module_calls: Counter[str] = field(default_factory=Counter)
    """Number of calls of each module, by its name."""

    def find_consumers(self) -> Mapping[int, list[Call]]:
        """Return the calls that use the result of each call, by the index of the latter."""
        consumers: dict[int, list[Call]] = {}
        for call in self.calls:
            for source in call.sources:
                consumers.setdefault(source, []).append(call)
        return consumers


def trace_model(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Trace:
    """Call a copy of a model and return what it computed.

    Raises:
        NotApplicable: the model cannot be copied, or its copy cannot be called.
    """
    return call_copy(model, args, kwargs, Recorder).trace


def call_copy(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    make_recorder: Callable[[nn.Module, Any], AnyRecorder],
) -> AnyRecorder:
    """Call a copy of a model without gradients, and return the recorder that was active in the call.

    Args:
        model: stays as it is.
        args: positional arguments of the call.
        kwargs: named arguments of the call.
        make_recorder: gets the copy and the copied arguments, and returns the recorder. It may change the copy's
            weights.

    Raises:
        NotApplicable: the model cannot be copied, or its copy cannot be called.
    """
    try:
        # Not in evaluation mode: its fast paths are single functions.
        return _call_copy(model, args, kwargs, make_recorder, is_training=True)
    except NotApplicable:
        if model.training:
            raise
        # Some models cannot train on this batch: batch normalization fails on a single example.
        return _call_copy(model, args, kwargs, make_recorder, is_training=False)


def _call_copy(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    make_recorder: Callable[[nn.Module, Any], AnyRecorder],
    *,
    is_training: bool,
) -> AnyRecorder:
    try:
        copied = copy.deepcopy(model)
        copied_args, copied_kwargs = _copy_argument(args), _copy_argument(dict(kwargs))
    except Exception as error:
        raise NotApplicable(f"the model cannot be copied: {error}") from error
    for module in copied.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if not _belongs_to_torch(hook)]:
                # The copy must not measure, apply remedies, or do what the script wants done once.
                del hooks[key]
    if is_training:
        copied.train()
    with _preserve_generators(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a copy without gradients may warn of that
        recorder = make_recorder(copied, (copied_args, copied_kwargs))
        try:
            with recorder:
                copied(*copied_args, **copied_kwargs)
        except Exception as error:
            raise NotApplicable(f"a copy of the model could not be called: {error}") from error
    return recorder


def find_call_site(frame: FrameType | None) -> CallSite:
    """Return where the code calls a function that a function mode intercepts. `frame` is the caller of the mode."""
    while frame is not None and frame.f_code.co_filename.endswith(_INSIDE_TORCH):
        frame = frame.f_back
    if frame is None:
        return ("", "", 0)
    return (frame.f_code.co_filename, frame.f_code.co_qualname, frame.f_lasti)


def get_function_name(function: Any, args: Sequence[Any] = ()) -> str:
    """Return the name of a function that a function mode intercepts, without the underscore of one in place.

    Where the arguments are given, the product of a tensor with itself is a square.

    >>> x = torch.ones(2)
    >>> get_function_name(torch.relu_), get_function_name(torch.mul, (x, x)), get_function_name(torch.mul, (x, 2.0))
    ('relu', 'square', 'mul')
    """
    name = str(getattr(function, "__name__", ""))
    name = name if name.startswith("__") else name.rstrip("_")
    if name in _PRODUCTS_OF_TWO and len(args) == 2 and args[0] is args[1]:
        return "square"
    return name


class Recorder(TorchFunctionMode):
    """Records each function call of a model.

    Args:
        model: a copy, which is called while the recorder is active.
        inputs: the arguments of the call.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.trace = Trace()
        self._module_stack: list[tuple[str, int, Counter[CallSite]]] = []
        self._producers: dict[int, int] = {id(tensor): INPUT for tensor in tensors_in(inputs)}
        self._by_storage: dict[int, int] = {}  # autograd functions return the same memory in another object
        self._weights: dict[int, tuple[str, ...]] = {id(p): (name,) for name, p in model.named_parameters()}
        """Names of the parameters that a tensor is, or is computed from alone, by the tensor's id."""
        self._independent = {*self._weights, *(id(buffer) for buffer in model.buffers())}
        self._kept_alive: list[Any] = [inputs]  # so that no id is used twice
        for name, module in model.named_modules():
            module.register_forward_pre_hook(self._make_enter_hook(name), prepend=True)
            module.register_forward_hook(self._leave, always_call=True)

    def _make_enter_hook(self, name: str) -> Any:
        def enter(_module: nn.Module, _args: Any) -> None:
            self._module_stack.append((name, self.trace.module_calls[name], Counter()))
            self.trace.module_calls[name] += 1

        return enter

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if self._module_stack:
            self._module_stack.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        arguments = [tensor for tensor in tensors_in((*args, *kwargs.values())) if not is_lazy(tensor)]
        producers = (self._find_producer(tensor) for tensor in arguments)
        sources = tuple(dict.fromkeys(source for source in producers if source is not None))
        weight_dimensions = [tensor.ndim for tensor in arguments if id(tensor) in self._weights]
        parameters = tuple(dict.fromkeys(name for tensor in arguments for name in self._weights.get(id(tensor), ())))
        input_shape = tuple(arguments[0].shape) if arguments else ()
        result = func(*args, **kwargs)
        results = [tensor for tensor in tensors_in(result) if not is_lazy(tensor)]
        if not results:
            return result
        self._kept_alive.append((arguments, results))
        name = get_function_name(func, args)
        depends = bool(sources) and results[0].dtype != torch.bool and not any(part in name for part in _INDEPENDENT)
        if not depends:
            for tensor in results:
                self._producers.pop(id(tensor), None)
                self._independent.add(id(tensor))
                if weight_dimensions and not sources:
                    self._weights[id(tensor)] = parameters
            return result
        call = self._add_call(name, sources, weight_dimensions, parameters, args, kwargs, results, input_shape)
        changed = self.change_result(call, arguments, result)
        if changed is not result:
            self._kept_alive.append(changed)
            self._register_results(call, list(tensors_in(changed)))
        return changed

    def change_result(self, call: Call, arguments: Sequence[Tensor], result: Any) -> Any:  # noqa: ARG002
        """Return what a function returns in this call of the model.

        Args:
            call: has just been recorded.
            arguments: tensors among the function's arguments.
            result: what the function returned.
        """
        return result

    def _add_call(
        self,
        name: str,
        sources: tuple[int, ...],
        weight_dimensions: list[int],
        parameters: tuple[str, ...],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        results: list[Tensor],
        input_shape: tuple[int, ...],
    ) -> Call:
        frame = sys._getframe(2)
        site = find_call_site(frame)
        owner, owner_call, counts = self._module_stack[-1] if self._module_stack else ("", 0, Counter())
        has_weights = any(dimensions >= 2 for dimensions in weight_dimensions)
        call = Call(
            index=len(self.trace.calls),
            name=name,
            owner=owner,
            site=site,
            ordinal=counts[site],
            sources=sources,
            has_weights=has_weights,
            is_layer=has_weights and name in _LAYERS,
            is_recomputed=_is_recomputed(frame),
            shape=tuple(results[0].shape),
            input_shape=input_shape,
            constants=tuple(v for v in (*args, *kwargs.values()) if isinstance(v, (int, float))),
            owner_call=owner_call,
            parameters=parameters,
        )
        counts[site] += 1
        self.trace.calls.append(call)
        self._register_results(call, results)
        return call

    def _register_results(self, call: Call, results: Sequence[Tensor]) -> None:
        for tensor in results:
            self._producers[id(tensor)] = call.index
            if tensor.layout == torch.strided:
                self._by_storage[tensor.untyped_storage().data_ptr()] = call.index

    def _find_producer(self, tensor: Tensor) -> int | None:
        if id(tensor) in self._producers:
            return self._producers[id(tensor)]
        if id(tensor) in self._independent or tensor.layout != torch.strided:
            return None
        return self._by_storage.get(tensor.untyped_storage().data_ptr())


def _belongs_to_torch(hook: Any) -> bool:
    """Whether a hook is part of torch, as one that builds a lazy layer or computes a weight from others."""
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return str(module).startswith("torch.")


def _is_recomputed(frame: FrameType | None) -> bool:
    """Whether a checkpoint stands between a function and the module that calls it."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.endswith(_CHECKPOINT):
            return True
        if file.endswith(_MODULE_CALL) and frame.f_code.co_name == "_call_impl":
            return False
        frame = frame.f_back
    return False


def _copy_argument(value: Any) -> Any:
    """Return a copy of an argument, which a model may change."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_copy_argument(item) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_copy_argument(item) for item in value)
    if isinstance(value, dict):
        return {key: _copy_argument(item) for key, item in value.items()}
    if hasattr(value, "__next__"):
        raise TypeError("an argument is an iterator")
    return copy.deepcopy(value)


@contextmanager
def _preserve_generators() -> Iterator[None]:
    """Restore the random generators in the end."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
