"""Scales losses for the backward pass, dynamically, so that float16 gradients neither overflow nor vanish.

Every `loss.backward()` calls `torch.autograd.backward`, which is wrapped while a trial scales losses. The loss is
multiplied before, and the gradients are divided right after, so that the script reads the gradients that it expects.
Gradients of float16 are divided later, when they are clipped or when the optimizer steps: until then a script may
divide them by a scale of its own, and before that they might not fit into float16. A step with gradients that are not
finite is skipped and lowers the scale; a hundred steps without one raise it.

This is what `torch.amp.GradScaler` does (Micikevicius et al. 2018, Mixed precision training, section 3.2), but a trial
is short: each overflow in a row lowers the scale by more than the one before, and the scale is raised after fewer
steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.optim import Optimizer

from gradmedic.torch.clipping import add_clipping_observer, remove_clipping_observer

INITIAL_SCALE = 2.0**15
LARGEST_SCALE = 2.0**24
SMALLEST_SCALE = 2.0**-40
GROWTH_INTERVAL = 100
"""Steps without an overflow until the scale is doubled."""

_shared: list[LossScale] = []
"""The one scale of the process, while losses are scaled."""


def share_loss_scale(optimizers: Iterable[Optimizer]) -> LossScale:
    """Scale losses for these optimizers too, and return the one scale that all models of the process share."""
    if not _shared:
        _shared.append(LossScale())
    _shared[0].add(optimizers)
    return _shared[0]


class LossScale:
    """The scale of all losses of the process; see `share_loss_scale`."""

    def __init__(self) -> None:
        self._optimizers: list[Optimizer] = []
        self.value = INITIAL_SCALE
        """Scale of the last backward pass."""
        self.has_seen_float16 = False
        """Whether anything is computed in float16."""
        self._next_value = INITIAL_SCALE
        self._finite_steps = self._overflows_in_a_row = 0
        self._still_scaled: dict[int, Tensor] = {}  # parameters by id
        self._original_backward: Callable[..., Any] | None = None
        self._is_in_backward = False

    def add(self, optimizers: Iterable[Optimizer]) -> None:
        """Scale every loss from now on, and divide the gradients of these optimizers' parameters."""
        self._optimizers += optimizers
        if self._original_backward is not None:
            return
        original = self._original_backward = torch.autograd.backward

        @functools.wraps(original)
        def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
            if self._is_in_backward:  # a checkpoint runs its own backward pass inside one that is scaled
                original(tensors, grad_tensors, *args, **kwargs)
                return
            tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
            if grad_tensors is None:
                output_gradients: list[Any] = [None] * len(tensors)
            else:
                output_gradients = [grad_tensors] if isinstance(grad_tensors, Tensor) else list(grad_tensors)
            other_leaves = self._find_other_leaves(tensors)
            if other_leaves is None:
                original(tensors, grad_tensors, *args, **kwargs)
                return
            self._change_scale(other_leaves)
            self._is_in_backward = True
            try:
                original(tensors, self._scale_output_gradients(tensors, output_gradients), *args, **kwargs)
            finally:
                self._is_in_backward = False
                self._unscale_after_backward(other_leaves)

        torch.autograd.backward = backward
        add_clipping_observer(self)

    def close(self) -> None:
        """Scale no more losses."""
        if _shared and _shared[0] is self:
            _shared.clear()
        if self._original_backward is not None:
            torch.autograd.backward = self._original_backward
            self._original_backward = None
            remove_clipping_observer(self)

    @torch.no_grad()
    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide those gradients of float16 that are still scaled."""
        for parameter in parameters:
            if self._still_scaled.pop(id(parameter), None) is not None and parameter.grad is not None:
                parameter.grad.mul_(1 / self.value)

    def before_clipping(self, parameters: list[Tensor], total_norm: Tensor | None) -> None:  # noqa: ARG002
        """Divide the gradients that are about to be clipped."""
        self.unscale(parameters)

    def after_clipping(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:
        """Do nothing: clipped gradients are no longer scaled."""

    def update(self, gradients: Sequence[Tensor]) -> bool:
        """Choose the scale of the next backward pass; return whether this step overflowed and must be skipped."""
        has_overflown = not all(bool(gradient.isfinite().all()) for gradient in gradients)
        if has_overflown:
            self._finite_steps = 0
            self._overflows_in_a_row += 1
            self._next_value = max(self._next_value * 0.5**self._overflows_in_a_row, SMALLEST_SCALE)
            return True
        self._overflows_in_a_row = 0
        self._finite_steps += 1
        if self._finite_steps % GROWTH_INTERVAL == 0:
            self._next_value = min(self._next_value * 2, LARGEST_SCALE)
        return False

    def _scale_output_gradients(self, tensors: list[Tensor], output_gradients: list[Any]) -> list[Any]:
        scaled = []
        for tensor, gradient in zip(tensors, output_gradients, strict=True):
            if gradient is None and tensor.numel() == 1:
                gradient = torch.ones_like(tensor, memory_format=torch.preserve_format)
            scaled.append(None if gradient is None else gradient * self.value)
        return scaled

    @torch.no_grad()
    def _change_scale(self, other_leaves: Sequence[Tensor]) -> None:
        """Begin to use the next scale. Bring the gradients that are there to it, because gradients add up."""
        before, self.value = self.value, self._next_value
        for parameter in self._list_parameters():
            if parameter.grad is not None:
                is_scaled = id(parameter) in self._still_scaled
                parameter.grad.mul_(self.value / before if is_scaled else self.value)
        for leaf in other_leaves:
            if leaf.grad is not None:
                leaf.grad.mul_(self.value)

    @torch.no_grad()
    def _unscale_after_backward(self, other_leaves: Sequence[Tensor]) -> None:
        for leaf in other_leaves:
            if leaf.grad is not None:
                leaf.grad.mul_(1 / self.value)
        for parameter in self._list_parameters():
            if parameter.dtype == torch.float16:
                self.has_seen_float16 = True
                self._still_scaled[id(parameter)] = parameter
            elif parameter.grad is not None:
                parameter.grad.mul_(1 / self.value)

    def _find_other_leaves(self, tensors: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the leaves of a graph that no optimizer here updates, as weights of another network, or inputs.

        Return None if no optimizer here updates any leaf: then the loss is that of another network alone.
        """
        own = {id(parameter) for parameter in self._list_parameters()}
        leaves: dict[int, Tensor] = {id(tensor): tensor for tensor in tensors if tensor.is_leaf}
        waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
        seen = set(waiting)
        is_opaque = False
        while waiting:
            node = waiting.pop()
            # The leaves of a checkpoint are not in the graph.
            is_opaque = is_opaque or isinstance(node, BackwardCFunction)
            leaf = getattr(node, "variable", None)
            if isinstance(leaf, Tensor):
                leaves[id(leaf)] = leaf
            for source, _ in node.next_functions:
                if source is not None and source not in seen:
                    seen.add(source)
                    waiting.append(source)
        if not is_opaque and leaves and not own & leaves.keys():
            return None
        return [leaf for leaf_id, leaf in leaves.items() if leaf_id not in own and leaf.requires_grad]

    def _list_parameters(self) -> Iterator[Tensor]:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                yield from group["params"]
