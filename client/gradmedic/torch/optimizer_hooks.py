"""Hooks of optimizers that `torch.compile` does not trace.

A script may compile a function that calls `optimizer.step()`. The compiler would follow the hooks into the measurement,
whose code it cannot compile: it breaks into dozens of graphs and compiles them again at each change of the sampling.
So the hooks are marked: the compiler leaves them as they are and breaks the graph in two places, where it calls them.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final

import torch
from torch.utils.hooks import RemovableHandle

from gradmedic.torch.recorded_code import is_captured

logger = logging.getLogger("gradmedic")

_REASON: Final = (
    "gradmedic watches this training, and statistics cannot be taken inside one graph. Compile without "
    "fullgraph=True, or leave optimizer.step() and the clipping of gradients outside of the compiled function."
)
"""What torch's error contains where a script compiles with `fullgraph=True`."""

NewArguments = tuple[tuple[Any, ...], dict[str, Any]] | None
"""Positional and named arguments that `step` gets in place of its own; None leaves them."""
Before = Callable[[torch.optim.Optimizer, tuple[Any, ...], dict[str, Any]], NewArguments]
After = Callable[[torch.optim.Optimizer], None]


class OptimizerHooks:
    """Calls functions before and after each step of some optimizers.

    Args:
        optimizers: the optimizers.
        before: function that takes the optimizer, and the positional and named arguments of `step`; it may return
            others. None for none.
        after: function that takes the optimizer; None for none.
    """

    _running: ClassVar[int] = 0
    """Hooks of all instances that torch is calling."""

    def __init__(
        self, optimizers: Iterable[torch.optim.Optimizer], before: Before | None = None, after: After | None = None
    ) -> None:
        self._before, self._after = before, after
        self._handles: list[RemovableHandle] = []
        for optimizer in optimizers:
            if before is not None:
                self._handles.append(optimizer.register_step_pre_hook(keep_out_of_graphs(self._call_before)))
            if after is not None:
                self._handles.append(optimizer.register_step_post_hook(keep_out_of_graphs(self._call_after)))

    def close(self) -> None:
        """Call the functions no more, and remove the hooks.

        Functions of this or another instance may call it. Then the hooks stay and do nothing: torch fails if one
        disappears while it calls all of them.
        """
        self._before = self._after = None
        if not OptimizerHooks._running:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()

    def _call_before(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> NewArguments:
        if self._before is not None and is_captured():
            logger.warning(
                "gradmedic: optimizer.step() is being captured in a CUDA graph; its replays are not watched: leave "
                "optimizer.step() outside of the graph"
            )
        elif self._before is not None:
            OptimizerHooks._running += 1
            try:
                return self._before(optimizer, args, kwargs)
            finally:
                OptimizerHooks._running -= 1
        return None

    def _call_after(self, optimizer: torch.optim.Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        if self._after is not None and not is_captured():
            OptimizerHooks._running += 1
            try:
                self._after(optimizer)
            finally:
                OptimizerHooks._running -= 1


def keep_out_of_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that `torch.compile` calls as it is, between two graphs.

    In a function that is compiled with `fullgraph=True`, torch refuses the call with an error that names the reason.
    """
    takes_reason = "reason" in inspect.signature(torch.compiler.disable).parameters  # since torch 2.7
    reason = {"reason": _REASON} if takes_reason else {}
    disabled: Callable[..., Any] = torch.compiler.disable(function, **reason)  # type: ignore[no-untyped-call]
    return disabled


def leave_uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that `torch.compile` does not compile by itself. It may compile what the function calls."""
    skipped: Callable[..., Any] = torch.compiler.disable(function, recursive=False)  # type: ignore[no-untyped-call]
    return skipped
