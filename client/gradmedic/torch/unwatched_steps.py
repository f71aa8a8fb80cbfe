"""Finds out that something else than the watched optimizers updates the watched parameters.

Then the gradients of these updates are not recorded, and nothing may be concluded from their absence. An optimizer that
`watch()` was not given is found by hooks that torch calls at the steps of all optimizers. A step that torch does not
see - the script replaced `step()`, or changes the parameters itself - is found by the version counters of parameters.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

logger = logging.getLogger("gradmedic")

STEPS_WITHOUT_GRADIENTS = 20
"""Calls of `log()` without a watched step, while the parameters change, before a warning. A run is called healthy after
as many steps."""
ACCUMULATED_STEPS = 100
"""Calls of `log()` without a step, while the parameters stay, before a warning. Fewer may be accumulation."""
_PROBES = 8
"""Parameters whose versions are compared. A step changes nearly all parameters."""


class UnwatchedSteps:
    """The updates of some parameters by something else than the watched optimizers.

    Args:
        given: the optimizers as the script gave them, perhaps wrapped.
        optimizers: the optimizers that are watched.
        parameters: ids of the watched parameters; it may grow.
        probes: the watched parameters.
    """

    def __init__(
        self,
        given: Sequence[Any],
        optimizers: Sequence[Optimizer],
        parameters: Collection[int],
        probes: Sequence[Tensor],
    ) -> None:
        self._own = [*given, *optimizers]
        self._parameters = parameters
        self._trainable = [parameter for parameter in probes if parameter.requires_grad]
        self._is_stepping = False
        self.step_count = 0
        """Number of watched steps that have begun."""
        self._has_others = False
        self._logs_without_step = 0
        self._version = 0
        self._has_changed = False
        self._has_warned = False
        self._is_closed = False
        _add(self)

    def close(self) -> None:
        """Stop observing. Then nothing counts as a change."""
        self._is_closed = True
        _remove(self)

    def begin_step(self) -> None:
        """Note that a watched optimizer begins a step."""
        self._is_stepping = True
        self.step_count += 1

    def end_step(self) -> None:
        """Note that a watched optimizer has ended its step."""
        self._is_stepping = False

    def finish_log(self, *, has_stepped: bool) -> bool:
        """Return whether, since the last call, only something else than the watched optimizers changed the parameters.

        Args:
            has_stepped: whether a watched optimizer has stepped since the last call.
        """
        has_others, self._has_others = self._has_others, False
        if self._is_closed:
            return False
        if has_stepped:
            self._logs_without_step, self._has_changed = 0, False
            return False
        self._logs_without_step += 1
        version, self._version = self._version, self._read_version()
        has_changed = has_others or (self._logs_without_step > 1 and version != self._version)
        self._has_changed = self._has_changed or has_changed
        if not self._has_warned:
            self._warn_of_silence()
        return has_changed

    # --- called at the steps of all optimizers ------------------------------------------------------------------------

    def owns(self, optimizer: Optimizer) -> bool:
        """Whether `watch()` was given this optimizer, or watches it."""
        return any(own is optimizer for own in self._own)

    def is_updated_by(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer updates some of the watched parameters."""
        return any(id(p) in self._parameters for group in optimizer.param_groups for p in group["params"])

    def note_step(self, optimizer: Optimizer, steps_before: int) -> None:
        """Note a step of an optimizer that is not watched; one inside or around a watched step is part of that.

        Args:
            optimizer: the optimizer.
            steps_before: `step_count` when its step began.
        """
        if self._is_stepping or self.step_count != steps_before:
            return
        self._has_others = True
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "gradmedic: %s updates layers of the watched model, but watch() was not given it: gradients of its "
                "steps are not recorded. %s (logged once)",
                type(optimizer).__name__,
                self._propose(optimizer),
            )

    def _propose(self, optimizer: Optimizer) -> str:
        for own in self._own:
            for name, value in getattr(own, "__dict__", {}).items():
                if value is optimizer:
                    return (
                        f"{type(own).__name__} was given, but its step() is not called: call "
                        f"run.watch(model, optimizer.{name})"
                    )
        return (
            "Call run.watch(model, optimizer) again with every optimizer that steps now: it replaces the watch that "
            "the model has"
        )

    # --- steps that torch does not see --------------------------------------------------------------------------------

    def _read_version(self) -> int:
        probes = islice((p for p in self._trainable if not is_lazy(p) and not p.is_inference()), _PROBES)
        return sum(probe._version for probe in probes)

    def _warn_of_silence(self) -> None:
        names = ", ".join(dict.fromkeys(type(own).__name__ for own in self._own))
        if self._has_changed and self._logs_without_step >= STEPS_WITHOUT_GRADIENTS:
            self._has_warned = True
            logger.warning(
                "gradmedic: no gradients were recorded in %d steps: the model changes, but torch never saw %s.step(). "
                "It is replaced or never called. Give run.watch() the optimizer whose step() the loop calls, or give "
                "the gradients to run.log(gradients=...) without watch() (logged once)",
                self._logs_without_step,
                names,
            )
        elif self._logs_without_step >= ACCUMULATED_STEPS:
            self._has_warned = True
            logger.warning(
                "gradmedic: no gradients were recorded in %d steps: %s.step() was not called, and the model did not "
                "change. A loop that accumulates gradients calls log() once for each optimizer step (logged once)",
                self._logs_without_step,
                names,
            )


_observers: list[UnwatchedSteps] = []
_handles: list[RemovableHandle] = []
_affected: weakref.WeakKeyDictionary[Optimizer, tuple[UnwatchedSteps, ...]] = weakref.WeakKeyDictionary()
"""The observers whose parameters an optimizer updates although none of them owns it, for each that has stepped."""
_steps_before: weakref.WeakKeyDictionary[Optimizer, tuple[int, ...]] = weakref.WeakKeyDictionary()
"""The observers' `step_count` at the beginning of a step that has not ended."""


def _add(observer: UnwatchedSteps) -> None:
    _observers.append(observer)
    _affected.clear()
    if not _handles:
        _handles.append(register_optimizer_step_pre_hook(_before_step))
        _handles.append(register_optimizer_step_post_hook(_after_step))


def _remove(observer: UnwatchedSteps) -> None:
    if observer in _observers:
        _observers.remove(observer)
    _affected.clear()
    if not _observers:
        while _handles:
            _handles.pop().remove()


def _before_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        return
    observers = _affected.get(optimizer)
    if observers is None:
        is_own = any(observer.owns(optimizer) for observer in _observers)
        observers = () if is_own else tuple(each for each in _observers if each.is_updated_by(optimizer))
        _affected[optimizer] = observers
    if observers:
        _steps_before[optimizer] = tuple(observer.step_count for observer in observers)


def _after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        return
    observers = _affected.get(optimizer)
    if observers:
        steps_before = _steps_before.pop(optimizer, None)
        if steps_before is not None and len(steps_before) == len(observers):
            for observer, steps in zip(observers, steps_before, strict=True):
                observer.note_step(optimizer, steps)
