"""Notes which modules a model calls during its first forward pass, and when.

A call is an interval of sequence numbers: autograd numbers the nodes of a graph in the order of their execution, and
the next number is read before and after each call. So a node of the graph belongs to the innermost call around it.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import torch
from torch import nn

from gradmedic.torch.module_hooks import AttachedHook, attach_forward_hook, attach_forward_pre_hook, list_fast_parts
from gradmedic.torch.recorded_code import is_recorded

_MOST_CALLS = 20_000
"""Calls that are noted. A cell in a loop over a long sequence is called more often."""


class ModuleCalls:
    """The calls of a model's modules in one forward pass, in their order. Lists hold one entry a call.

    Args:
        model: model without wrappers; None in a copy of the hooks, which do nothing.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.modules: list[int] = []
        """Id of the called module."""
        self.begins: list[int] = []
        """Sequence number of the first node of the call, if it has any."""
        self.ends: list[int] = []
        """Sequence number after the last node of the call."""
        self._records: list[bool] = []
        """Whether gradients are recorded during the call."""
        self._parents: list[int] = []
        self._open: list[int] = []
        self._model = 0 if model is None else id(model)
        self._known: set[int] = set()
        self._hooks: list[AttachedHook | None] = []
        fast = set() if model is None else list_fast_parts(model)
        for module in () if model is None else model.modules():
            if id(module) in fast and module is not model:
                continue
            self._known.add(id(module))
            self._hooks.append(attach_forward_pre_hook(module, self.begin_call))
            self._hooks.append(attach_forward_hook(module, self.end_call))

    def begin_call(self, module: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        """Note that a call begins. A call of the model itself begins a new forward pass."""
        if is_recorded() or not self._hooks:  # in this order: the hook cannot be traced
            return
        if id(module) == self._model:
            self._forget()
        if id(module) not in self._known or len(self.modules) >= _MOST_CALLS:
            return
        begin = _read_sequence_number()
        self._records.append(torch.is_grad_enabled())
        self._parents.append(self._open[-1] if self._open else -1)
        self._open.append(len(self.modules))
        self.modules.append(id(module))
        self.begins.append(begin)
        self.ends.append(begin)

    def end_call(self, module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        """Note that a call ends."""
        if is_recorded() or not self._hooks:
            return
        end, identity = _read_sequence_number(), id(module)
        if any(self.modules[call] == identity for call in self._open):
            while self._open:  # calls that raised an error have no end
                call = self._open.pop()
                self.ends[call] = end
                if self.modules[call] == identity:
                    break

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            if hook is not None:
                hook.remove()
        self._hooks.clear()

    def find_innermost(self, first: int, last: int) -> int | None:
        """Return the id of the innermost module whose call holds both nodes, by their sequence numbers."""
        call = bisect_right(self.begins, first) - 1
        while call >= 0 and self.ends[call] <= max(first, last):
            call = self._parents[call]
        return self.modules[call] if call >= 0 else None

    def list_first_calls(self) -> dict[int, tuple[int, int]]:
        """Return the sequence number and the position of the first call of each module, by the module's id."""
        first: dict[int, tuple[int, int]] = {}
        for position, (module, begin) in enumerate(zip(self.modules, self.begins, strict=True)):
            first.setdefault(module, (begin, position))
        return first

    def list_hidden(self) -> set[int]:
        """Return the ids of the outermost modules that ran without recording gradients."""
        return {
            module
            for module, records, parent in zip(self.modules, self._records, self._parents, strict=True)
            if not records and (parent < 0 or self._records[parent])
        }

    def count_calls(self) -> dict[int, int]:
        """Return the number of calls of each module, by the module's id."""
        counts: dict[int, int] = {}
        for module in self.modules:
            counts[module] = counts.get(module, 0) + 1
        return counts

    def _forget(self) -> None:
        for entries in (self.modules, self.begins, self.ends, self._records, self._parents, self._open):
            entries.clear()

    def __reduce__(self) -> tuple[type[ModuleCalls], tuple[None]]:
        return ModuleCalls, (None,)


def _read_sequence_number() -> int:
    """Return the number that autograd gives to the next node of this thread."""
    return int(torch._C._autograd._get_sequence_nr())
