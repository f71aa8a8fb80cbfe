"""Finds out whether gradients of earlier optimizer steps are still there when the next backward pass begins.

After a step of an optimizer, one or two of its small parameters get a hook that torch calls before it adds a gradient
to `grad`. If `grad` is still the tensor that the optimizer used, if nothing has written to it since, and if it is not
zero, then the new gradient is added to the old one, as where `zero_grad` is missing. Between two steps there may be
several backward passes: what carries gradients must not zero them before any of these. So a script that adds up the
gradients of micro-batches, or one whose second loss leaves gradients that it zeroes later, carries none.

A few steps decide it, the first ones. Then the hooks are removed.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from gradmedic.torch.lockstep import list_all_parameters
from gradmedic.torch.optimizer_hooks import keep_out_of_graphs
from gradmedic.torch.recorded_code import is_recorded
from gradmedic.torch.statistics import MeasuredArray, start_copy

logger = logging.getLogger("gradmedic")

AGREEING_STEPS = 3
"""Consecutive steps of one optimizer with the same result that decide. A script may zero gradients in another place at
the end of an epoch, but not three times in a row."""
MAX_STEPS = 60
"""Steps that are looked at, at most. An optimizer with a closure, for example, never gives a result."""
_FOLLOWED = 2
"""Parameters that are followed. The gradient of one alone may be zero."""
_LARGEST = 65_536
"""Most elements of a parameter that is followed: they are counted, and the old gradient is kept until the next step."""


class CarriedGradients:
    """Follows the gradients of optimizers from one step to the next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # measurements are read on any thread
        self._answer: bool | None = None
        self._is_over = False
        self._steps = 0
        self._open: dict[int, list[_FollowedGradient]] = {}  # by the optimizer's id
        self._finished: list[tuple[int, list[_FollowedGradient]]] = []
        self._streaks: dict[int, tuple[bool, int]] = {}  # last result of an optimizer, and how often in a row

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """End what the last step of an optimizer began."""
        if self._open:
            self._call_safely(self._end, optimizer)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Begin to follow gradients of an optimizer, unless the result is known."""
        if self._is_over:
            return
        self._steps += 1
        if self._answer is not None or self._steps > MAX_STEPS or _is_backward_compiled():
            self.close()
        else:
            self._call_safely(self._begin, optimizer)

    def read(self) -> bool | None:
        """Return whether gradients are carried over, waiting for a device if need be; None while it is unknown.

        Any thread may call it.
        """
        with self._lock:
            while self._finished and self._answer is None:
                optimizer, followed = self._finished.pop(0)
                result = _join_results([gradient.read() for gradient in followed])
                if result is not None:
                    self._add_result(optimizer, result)
        return self._answer

    def close(self) -> None:
        """Remove all hooks, and follow no more gradients."""
        self._is_over = True
        for followed in self._open.values():
            for gradient in followed:
                gradient.close()
        self._open.clear()

    def _add_result(self, optimizer: int, is_carried: bool) -> None:
        """Add the result of a step of one optimizer, and decide if it is the last one that is needed."""
        last, count = self._streaks.get(optimizer, (is_carried, 0))
        self._streaks[optimizer] = is_carried, count + 1 if last == is_carried else 1
        decided = [last for last, count in self._streaks.values() if count >= AGREEING_STEPS]
        if any(decided):
            self._answer = True
        elif len(decided) == len(self._streaks):
            self._answer = False

    def _begin(self, optimizer: torch.optim.Optimizer) -> None:
        candidates = [parameter for parameter in list_all_parameters(optimizer) if _may_be_followed(parameter)]
        candidates.sort(key=lambda parameter: parameter.numel())
        self._open[id(optimizer)] = [_FollowedGradient(parameter) for parameter in candidates[:_FOLLOWED]]

    def _end(self, optimizer: torch.optim.Optimizer) -> None:
        followed = self._open.pop(id(optimizer), [])
        for gradient in followed:
            gradient.close()
        if followed:
            self._finished.append((id(optimizer), followed))

    def _call_safely(self, function: Callable[[torch.optim.Optimizer], None], optimizer: torch.optim.Optimizer) -> None:
        try:
            with torch.no_grad():
                function(optimizer)
        except Exception as error:  # must not reach the script
            self.close()
            logger.warning("gradmedic: it is not known whether zero_grad is missing: %r", error)


class _FollowedGradient:
    """The gradient of one parameter, from the end of an optimizer step to the beginning of the next one."""

    def __init__(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        self._parameter = weakref.ref(parameter)
        self._gradient: Tensor | None = gradient
        self._version = -1 if gradient is None else gradient._version
        self._is_untouched = True
        self._counts: list[MeasuredArray] = []
        # A hook of the parameter itself would let `torch.compile` compile again what uses the parameter.
        self._node: Node | None = get_gradient_edge(parameter).node
        self._handle = self._node.register_prehook(keep_out_of_graphs(self._before_accumulation))

    def _before_accumulation(self, _gradients: tuple[Tensor, ...]) -> None:
        parameter = self._parameter()
        if parameter is None or not self._is_untouched:
            return
        try:
            with torch.no_grad():
                self._look_at(parameter.grad)
        except Exception as error:  # must not reach the backward pass
            self._is_untouched = False
            logger.warning("gradmedic: it is not known whether a gradient is carried over: %r", error)

    def _look_at(self, before: Tensor | None) -> None:
        """Look at `grad` as it is before a gradient is added to it."""
        if is_recorded():
            self._is_untouched = False
        elif before is None or before is not self._gradient or before._version != self._version:
            self._is_untouched, self._gradient = False, None
            self._counts.append(start_copy(torch.zeros(1)))
        else:
            self._version += 1  # the accumulation
            self._counts.append(start_copy(torch.count_nonzero(before).reshape(1)))

    def close(self) -> None:
        """Remove the hook, and let go of the old gradient."""
        self._handle.remove()
        self._gradient = self._node = None

    def read(self) -> bool | None:
        """Return whether the old gradient was there all the time; None without a backward pass that could be seen."""
        return all(count.read()[0] > 0 for count in self._counts) if self._counts else None


def _is_backward_compiled() -> bool:
    """Whether `torch.compile` compiles backward passes. It would compile them again for each hook."""
    settings, compiled = (sys.modules.get(f"torch._dynamo.{name}") for name in ("config", "compiled_autograd"))
    return bool(getattr(settings, "compiled_autograd", False) or getattr(compiled, "compiled_autograd_enabled", False))


def _may_be_followed(parameter: Tensor) -> bool:
    gradient = parameter.grad
    return (
        gradient is not None
        and type(gradient) is Tensor
        and type(parameter) in (Tensor, torch.nn.Parameter)
        and parameter.requires_grad
        and gradient.layout == torch.strided
        and 0 < gradient.numel() <= _LARGEST
    )


def _join_results(results: list[bool | None]) -> bool | None:
    """Return whether any gradient is carried over; None if no result is known."""
    known = [result for result in results if result is not None]
    return any(known) if known else None
