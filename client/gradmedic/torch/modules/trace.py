"""Writes down what a model computes: one call of a copy of it, as a graph of functions.

One idea: a function mode sees every torch function with its tensors, and hooks of the copy say which module calls it.
Nothing of the script's is touched: the copy computes without gradients, on copies of the arguments, and the generators
are put back where they stood.
"""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from gradmedic.torch.first_batch import tensors_in
from gradmedic.torch.remedies import NotApplicable

_INSIDE_TORCH = ("torch/nn/functional.py", "torch/overrides.py", "torch/_tensor.py", "torch/functional.py")
"""Files between a function and who called it."""
_MODULE_CALL = "torch/nn/modules/module.py"
_CHECKPOINT = "torch/utils/checkpoint.py"

_LAYERS = frozenset({
    "linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addmv", "baddbmm", "einsum",
    "multi_head_attention_forward", "rnn_tanh", "rnn_relu", "lstm", "gru", "rnn_tanh_cell", "rnn_relu_cell",
    "lstm_cell", "gru_cell",
})  # fmt: skip
"""Functions that are a layer if one of their arguments is a matrix of weights."""
_FRESH = ("_like", "bernoulli", "new_")
"""Functions whose result does not depend on the numbers that they are given: masks and the like."""

Site = tuple[str, str, int]
"""Where in the code a function is called: file, function, instruction."""


@dataclass(slots=True)
class Call:
    """One call of a torch function."""

    index: int
    name: str
    owner: str
    """The module whose forward called it."""
    site: Site
    ordinal: int
    """How many calls at this site came before, in the same call of the owner."""
    sources: tuple[int, ...]
    """Calls whose results it was given, as far as they depend on the model's inputs; `INPUT` for these themselves."""
    has_weights: bool
    """Whether it was given a matrix that depends on parameters alone."""
    is_layer: bool
    is_recomputed: bool
    """Whether a checkpoint calls it again outside of its owner."""
    shape: tuple[int, ...]
    """Of its result."""
    input_shape: tuple[int, ...]
    constants: tuple[Any, ...]
    """Its arguments that are numbers."""
    turn: int
    """Which call of the owner this was."""


INPUT = -1


@dataclass(slots=True)
class Trace:
    """The calls of one run, and what was seen of the modules."""

    calls: list[Call] = field(default_factory=list)
    turns: Counter[str] = field(default_factory=Counter)
    """How often each module was called."""

    def consumers(self) -> Mapping[int, list[Call]]:
        """Return the calls that use each call's result."""
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            for source in call.sources:
                found.setdefault(source, []).append(call)
        return found


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Trace:
    """Run a copy of a model and return what it computed.

    Raises:
        NotApplicable: it cannot be copied, or its copy cannot be run.
    """
    try:
        return _run(
            model, args, kwargs, is_training=True
        )  # not the fast paths of evaluation: they are single functions
    except NotApplicable:
        if model.training:
            raise
        return _run(model, args, kwargs, is_training=False)  # as a batch norm that is shown one example


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, is_training: bool) -> Trace:
    try:
        copied = copy.deepcopy(model)
        own_args, own_kwargs = _copied(args), _copied(dict(kwargs))
    except Exception as error:
        raise NotApplicable(f"the model cannot be tried on a copy of it: {error}") from error
    for module in copied.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if not _is_torchs(hook)]:
                del hooks[
                    key
                ]  # a copy that is looked at must not measure, treat, or do what the script wants done once
    if is_training:
        copied.train()
    with _unchanged_generators(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a copy without gradients may warn of that
        recorder = _Recorder(copied, (own_args, own_kwargs))
        try:
            with recorder:
                copied(*own_args, **own_kwargs)
        except Exception as error:
            raise NotApplicable(f"a copy of the model could not be run: {error}") from error
    return recorder.trace


def site_of(frame: FrameType | None) -> Site:
    """Return where the function that a mode was told of is called, from the frame above the mode's."""
    while frame is not None and frame.f_code.co_filename.endswith(_INSIDE_TORCH):
        frame = frame.f_back
    if frame is None:
        return ("", "", 0)
    return (frame.f_code.co_filename, frame.f_code.co_qualname, frame.f_lasti)


def name_of(function: Any) -> str:
    """Return the name of a function that a mode was told of, without the underscore of one that works in place."""
    name = str(getattr(function, "__name__", ""))
    return name if name.startswith("__") else name.rstrip("_")


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.trace = Trace()
        self._stack: list[tuple[str, int, Counter[Site]]] = []
        self._producers: dict[int, int] = {id(tensor): INPUT for tensor in tensors_in(inputs)}
        self._by_storage: dict[int, int] = {}  # autograd functions hand on their results as other objects
        self._weights = {id(parameter) for parameter in model.parameters()}
        self._known = self._weights | {id(buffer) for buffer in model.buffers()}
        self._kept: list[Any] = [inputs]  # an id must not be used again
        for name, module in model.named_modules():
            module.register_forward_pre_hook(self._enterer(name), prepend=True)
            module.register_forward_hook(self._leave, always_call=True)

    def _enterer(self, name: str) -> Any:
        def enter(_module: nn.Module, _args: Any) -> None:
            self._stack.append((name, self.trace.turns[name], Counter()))
            self.trace.turns[name] += 1

        return enter

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if self._stack:
            self._stack.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [tensor for tensor in tensors_in((*args, *kwargs.values())) if not is_lazy(tensor)]
        found = (self._producer_of(tensor) for tensor in given)
        sources = tuple(dict.fromkeys(source for source in found if source is not None))
        weights = [tensor.ndim for tensor in given if id(tensor) in self._weights]
        input_shape = tuple(given[0].shape) if given else ()
        result = func(*args, **kwargs)
        results = [tensor for tensor in tensors_in(result) if not is_lazy(tensor)]
        if not results:
            return result
        self._kept.append((given, results))
        name = name_of(func)
        depends = bool(sources) and results[0].dtype != torch.bool and not any(part in name for part in _FRESH)
        if not depends:
            for tensor in results:
                self._producers.pop(id(tensor), None)
                self._known.add(id(tensor))
                if weights and not sources:
                    self._weights.add(id(tensor))
            return result
        self._note(name, sources, weights, args, kwargs, results, input_shape)
        return result

    def _note(
        self,
        name: str,
        sources: tuple[int, ...],
        weights: list[int],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        results: list[Tensor],
        input_shape: tuple[int, ...],
    ) -> None:
        frame = sys._getframe(2)
        site = site_of(frame)
        owner, turn, counts = self._stack[-1] if self._stack else ("", 0, Counter())
        has_weights = any(ndim >= 2 for ndim in weights)
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
            turn=turn,
        )
        counts[site] += 1
        self.trace.calls.append(call)
        for tensor in results:
            self._producers[id(tensor)] = call.index
            if tensor.layout == torch.strided:
                self._by_storage[tensor.untyped_storage().data_ptr()] = call.index

    def _producer_of(self, tensor: Tensor) -> int | None:
        if id(tensor) in self._producers:
            return self._producers[id(tensor)]
        if id(tensor) in self._known or tensor.layout != torch.strided:
            return None
        return self._by_storage.get(tensor.untyped_storage().data_ptr())


def _is_torchs(hook: Any) -> bool:
    """Whether a hook is part of torch, as those that compute a weight from others or build a lazy layer."""
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


def _copied(value: Any) -> Any:
    """Return arguments that a model may change, without changing those of the script."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_copied(item) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if hasattr(value, "__next__"):
        raise TypeError("an argument is an iterator")
    return copy.deepcopy(value)


@contextmanager
def _unchanged_generators() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
