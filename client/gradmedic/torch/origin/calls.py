"""Records the calls of torch's functions: name, source line, module, and the nodes of the graph that each one made.

Autograd numbers the nodes of a thread in the order of their creation. The next number is read before and after each
call, so that a node of the graph belongs to the call whose interval holds its number.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from gradmedic.torch.origin.operation_names import name_function
from gradmedic.torch.origin.source import Place, find_caller

_UNRECORDED = frozenset({"__get__", "backward", "grad"})
"""Functions that are no operation: attributes, and what runs the backward pass."""


@dataclass(slots=True)
class Call:
    """A call of a function of torch's API."""

    name: str | None
    """Name of the operation as users write it; None if the function joins many operations."""
    place: Place | None
    module: str | None
    begin: int
    """Number of the first node that the call made, if it made one."""
    end: int
    """Number after the last one."""


class CallRecorder(TorchFunctionMode):
    """Records every call while it is entered.

    Args:
        modules: path of each module by its id.
    """

    def __init__(self, modules: Mapping[int, str]) -> None:
        super().__init__()
        self.current: Call | None = None
        """The call that runs now."""
        self.outer: tuple[Place | None, str | None] = (None, None)
        """Line and module of what is not called from a line of its own: those of the call that is repeated."""
        self.roots: list[Tensor] = []
        """What the script called `backward()` of in this step, without the graph."""
        self.scalars: list[Tensor] = []
        """Results of this step that have one element and a graph, as a loss has; without the graph."""
        self._modules = modules
        self._calls: list[Call] = []
        self._begins: list[int] = []
        self._calls_before_step = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function and record it."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "backward":
            self.roots += [value.detach() for value in args[:1] if isinstance(value, Tensor)]
        if name in _UNRECORDED:
            return func(*args, **kwargs)
        caller = find_caller(sys._getframe(1), self._modules)
        begin = read_sequence_number()
        call = Call(
            name_function(func),
            caller.place or self.outer[0],
            self.outer[1] if caller.module is None else caller.module,
            begin,
            begin,
        )
        before, self.current = self.current, call
        try:
            output = func(*args, **kwargs)
        finally:
            self.current = before
            call.end = read_sequence_number()
            self.add(call)
        if isinstance(output, Tensor) and output.requires_grad and output.numel() == 1:
            self.scalars.append(output.detach())
        return output

    def begin_step(self) -> None:
        """Forget the calls of the step before the last one. Those of the last one may still have their graph."""
        del self._calls[: self._calls_before_step], self._begins[: self._calls_before_step]
        self._calls_before_step = len(self._calls)
        self.roots.clear()
        self.scalars.clear()

    def add(self, call: Call) -> None:
        """Record a call that made the newest nodes of the graph."""
        self._calls.append(call)
        self._begins.append(call.begin)

    def find(self, node: Node) -> Call | None:
        """Return the call that made a node; of a custom function, the first call inside of its forward pass."""
        number = node._sequence_nr()
        first = bisect_right(self._begins, number)
        if first and number < self._calls[first - 1].end:
            return self._calls[first - 1]
        is_custom = isinstance(node, torch.autograd.function.BackwardCFunction)
        return self._calls[first] if is_custom and first < len(self._calls) else None


def read_sequence_number() -> int:
    """Return the number that autograd gives to the next node of this thread."""
    return int(torch._C._autograd._get_sequence_nr())
