"""Scales losses for the backward pass, dynamically, so that float16 gradients neither overflow nor vanish.

One idea: `torch.autograd.backward` is the one door through which every `loss.backward()` goes. It is wrapped while a
trial scales losses: the loss is multiplied before, the gradients are divided right after, so that whatever else the
script does with them - clip, log, step - sees the gradients that it expects. Gradients of float16 are divided later,
when they are clipped or the optimizer steps: until then a script may divide them by a scale of its own, and before that
they might not fit. A step with gradients that are not finite is passed over and lowers the scale; a while without one
raises it.

Like `torch.amp.GradScaler` (Micikevicius et al. 2018, Mixed precision training, section 3.2), but a trial is short: in
a row of overflows each one lowers the scale by a bit more than the last, and it is raised after a hundred steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.optim import Optimizer

from gradmedic.torch import clipping

INITIAL_SCALE = 2.0**15
LARGEST_SCALE = 2.0**24
SMALLEST_SCALE = 2.0**-40
GROWTH_INTERVAL = 100
"""Good steps until the scale is doubled."""

_shared: list[LossScale] = []


def scale_losses(optimizers: Iterable[Optimizer]) -> LossScale:
    """Scale losses for these optimizers too; there is one scale, however many models a script watches."""
    if not _shared:
        _shared.append(LossScale())
    _shared[0].add(optimizers)
    return _shared[0]


class LossScale:
    """The scale of all losses of the process, while someone needs it: see `scale_losses`."""

    def __init__(self) -> None:
        self._optimizers: list[Optimizer] = []
        self.value = INITIAL_SCALE
        self.sees_half = False
        """Whether anything of float16 was seen."""
        self._next = INITIAL_SCALE
        self._good = self._overflows = 0
        self._scaled_still: dict[int, Tensor] = {}
        self._original: Callable[..., Any] | None = None
        self._is_under_way = False

    def add(self, optimizers: Iterable[Optimizer]) -> None:
        """Scale every loss from now on, and the gradients of these optimizers' parameters back."""
        self._optimizers += optimizers
        if self._original is not None:
            return
        original = self._original = torch.autograd.backward

        @functools.wraps(original)
        def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
            if self._is_under_way:  # a checkpoint's, inside of a backward pass that is scaled
                original(tensors, grad_tensors, *args, **kwargs)
                return
            tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
            if grad_tensors is None:
                given: list[Any] = [None] * len(tensors)
            else:
                given = [grad_tensors] if isinstance(grad_tensors, Tensor) else list(grad_tensors)
            others = self._others(tensors)
            if others is None:
                original(tensors, grad_tensors, *args, **kwargs)
                return
            self._prepare(others)
            self._is_under_way = True
            try:
                original(tensors, self._scaled(tensors, given), *args, **kwargs)
            finally:
                self._is_under_way = False
                self._scale_back(others)

        torch.autograd.backward = backward
        clipping.observe(self)

    def close(self) -> None:
        """Scale nothing any more."""
        if _shared and _shared[0] is self:
            _shared.clear()
        if self._original is not None:
            torch.autograd.backward = self._original
            self._original = None
            clipping.ignore(self)

    @torch.no_grad()
    def scale_back(self, parameters: Iterable[Tensor]) -> None:
        """Divide gradients of float16 that are still scaled: whoever comes now wants them as they are."""
        for parameter in parameters:
            if self._scaled_still.pop(id(parameter), None) is not None and parameter.grad is not None:
                parameter.grad.mul_(1 / self.value)

    def before_clipping(self, parameters: list[Tensor]) -> None:
        """See `gradmedic.torch.clipping.ClippingObserver`."""
        self.scale_back(parameters)

    def after_clipping(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:
        """See `gradmedic.torch.clipping.ClippingObserver`."""

    def note_step(self, gradients: Sequence[Tensor]) -> bool:
        """Say whether a step is to be passed over, and choose the scale of the next backward pass."""
        has_overflown = not all(bool(gradient.isfinite().all()) for gradient in gradients)
        if has_overflown:
            self._good = 0
            self._overflows += 1
            self._next = max(self._next * 0.5**self._overflows, SMALLEST_SCALE)
            return True
        self._overflows = 0
        self._good += 1
        if self._good % GROWTH_INTERVAL == 0:
            self._next = min(self._next * 2, LARGEST_SCALE)
        return False

    def _scaled(self, tensors: list[Tensor], given: list[Any]) -> list[Any]:
        scaled = []
        for tensor, gradient in zip(tensors, given, strict=True):
            if gradient is None and tensor.numel() == 1:
                gradient = torch.ones_like(tensor, memory_format=torch.preserve_format)
            scaled.append(None if gradient is None else gradient * self.value)
        return scaled

    @torch.no_grad()
    def _prepare(self, others: Sequence[Tensor]) -> None:
        """Take the next scale, and bring what is there already to it: gradients add up."""
        before, self.value = self.value, self._next
        for parameter in self._parameters():
            if parameter.grad is not None:
                is_scaled = id(parameter) in self._scaled_still
                parameter.grad.mul_(self.value / before if is_scaled else self.value)
        for leaf in others:
            if leaf.grad is not None:
                leaf.grad.mul_(self.value)

    @torch.no_grad()
    def _scale_back(self, others: Sequence[Tensor]) -> None:
        for leaf in others:
            if leaf.grad is not None:
                leaf.grad.mul_(1 / self.value)
        for parameter in self._parameters():
            if parameter.dtype == torch.float16:
                self.sees_half = True
                self._scaled_still[id(parameter)] = parameter
            elif parameter.grad is not None:
                parameter.grad.mul_(1 / self.value)

    def _others(self, tensors: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the leaves of a graph that no optimizer here updates: another network's weights, or inputs.

        None if there are no others: it is the loss of another network alone.
        """
        own = {id(parameter) for parameter in self._parameters()}
        found: dict[int, Tensor] = {id(tensor): tensor for tensor in tensors if tensor.is_leaf}
        waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
        seen = set(waiting)
        is_opaque = False
        while waiting:
            node = waiting.pop()
            is_opaque = is_opaque or isinstance(node, BackwardCFunction)  # a checkpoint has its leaves inside
            leaf = getattr(node, "variable", None)
            if isinstance(leaf, Tensor):
                found[id(leaf)] = leaf
            for source, _ in node.next_functions:
                if source is not None and source not in seen:
                    seen.add(source)
                    waiting.append(source)
        if not is_opaque and found and not own & found.keys():
            return None
        return [leaf for id_, leaf in found.items() if id_ not in own and leaf.requires_grad]

    def _parameters(self) -> Iterator[Tensor]:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                yield from group["params"]
