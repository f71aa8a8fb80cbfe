"""Applies the remedies of a candidate that change modules, in a fixed order, and records where.

There are two moments. At `watch()` the remedies are checked, and those that change weights act. At the first call of a
model, a copy of it is traced, and the remedies that change calls act where the trace shows a place. After the first
step every remedy must have a place. One that has none makes the whole candidate not applicable: a race compares
candidates as they were named.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gradmedic.torch.remedies.base import NotApplicable
from gradmedic.torch.remedies.module_remedy import CallRemedy, EdgeRemedy, FirstCall, ModuleRemedy, WeightRemedy
from gradmedic.torch.remedies.modules.changed_calls import CallChange, ChangedCalls
from gradmedic.torch.remedies.modules.places import Places, find_places
from gradmedic.torch.remedies.modules.remedy_hook import is_changed
from gradmedic.torch.remedies.modules.trace import trace_model
from gradmedic.torch.remedies.step_remedy import StepRemedy
from gradmedic.torch.structure import unwrap_model

_changed_models: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class ModuleRemedies:
    """The remedies that change modules of some models.

    Args:
        models: watched models, by name.
        remedies: remedies in the order in which the candidate names them.

    Raises:
        NotApplicable: a remedy cannot be applied, as is known before the models are called.
    """

    def __init__(self, models: Mapping[str, nn.Module], remedies: Sequence[ModuleRemedy]) -> None:
        self._remedies = remedies
        self._in_order = sorted(remedies, key=lambda remedy: remedy.order)
        self._models: dict[str, nn.Module] = {}
        self._changed_before: dict[str, nn.Module] = {}
        """Models that were changed at an earlier `watch()`. Only the weights of the new optimizers are changed now."""
        for name, wrapped in models.items():
            model, wrappers = unwrap_model(wrapped)
            for remedy in remedies:
                if (reason := remedy.reason_against(model, wrappers)) is not None:
                    raise NotApplicable(f"{remedy.id}: {reason}")
            (self._changed_before if model in _changed_models else self._models)[name] = model
        self._handles: list[RemovableHandle] = []
        self._called_parts = {name: CalledParts(self, name) for name in self._models}
        self._is_closed = False
        self._has_forced_eager = False

    @property
    def places(self) -> dict[str, list[str]]:
        """Where each remedy was applied, by its id."""
        return {remedy.id: remedy.places for remedy in self._remedies}

    def apply(self) -> None:
        """Change the weights, and register the hooks that wait for the first calls.

        Raises:
            NotApplicable: a remedy that changes weights has no place.
        """
        for name, model in {**self._models, **self._changed_before}.items():
            for remedy in self._in_order:
                if isinstance(remedy, WeightRemedy):
                    remedy.add_places(name, remedy.change_weights(model))
        for remedy in self._remedies:
            if isinstance(remedy, WeightRemedy) and not remedy.places and not self._changed_before:
                raise NotApplicable(f"{remedy.id}: {remedy.join_reasons()}")
        if any(remedy.needs_eager for remedy in self._remedies):
            torch.compiler.set_stance("force_eager")
            self._has_forced_eager = True
        for remedy in self._in_order:
            remedy.start()
        for name, model in self._models.items():
            _changed_models.add(model)
            self._register_hooks(name, model)

    def step_remedies(self, optimizer: Optimizer) -> list[StepRemedy]:
        """Return what these remedies have to do at each step of an optimizer."""
        return [step_remedy for remedy in self._remedies for step_remedy in remedy.step_remedies(optimizer)]

    def reason_to_end(self, *, is_step_over: bool) -> str | None:
        """Return which remedy turned out not to be applicable, and why; None as long as none did.

        Args:
            is_step_over: whether an optimizer has made a step since `watch()`.
        """
        for remedy in self._in_order:
            if remedy.failure is not None:
                return f"{remedy.id}: {remedy.failure}"
        if not is_step_over:
            return None
        called_parts = {name: parts.called for name, parts in self._called_parts.items()}
        for remedy in self._remedies:
            if not isinstance(remedy, (CallRemedy, EdgeRemedy)) or not self._models:
                continue
            if not any(called_parts.values()):
                return f"{remedy.id}: the script never calls the model"
            if isinstance(remedy, EdgeRemedy):
                remedy.finish_step(called_parts)
            if not remedy.places and all(called_parts.values()):
                return f"{remedy.id}: {remedy.join_reasons()}"
        for remedy in self._remedies:
            if remedy.failure_after_step is not None:
                return f"{remedy.id}: {remedy.failure_after_step}"
        return None

    def close(self) -> None:
        """Stop acting; weights, classes and places that were changed stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._is_closed = True
        for remedy in self._remedies:
            remedy.close()
        if self._has_forced_eager:
            torch.compiler.set_stance("default")
            self._has_forced_eager = False

    def _register_hooks(self, name: str, model: nn.Module) -> None:
        if not any(remedy.acts_at_calls for remedy in self._remedies):
            return
        # A script may call the model, or only parts of it, as the `training_step` of a framework does.
        called_parts = self._called_parts[name]
        for path, module in model.named_modules():
            self._handles.append(module.register_forward_pre_hook(_BeginCall(called_parts, path), with_kwargs=True))
            self._handles.append(module.register_forward_hook(_EndCall(called_parts), always_call=True))
        for remedy in self._in_order:
            if isinstance(remedy, EdgeRemedy):
                remedy.add_hook(name, model)

    def handle_call(
        self, called_parts: CalledParts, path: str, part: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Change the part of a model that the script itself calls, unless that is done."""
        if self._is_closed:
            return
        for remedy in self._remedies:
            remedy.observe_call(part)
        if called_parts.contain(path):
            return  # a checkpoint may repeat a call
        called_parts.called.add(path)
        remedies = [remedy for remedy in self._in_order if isinstance(remedy, CallRemedy)]
        if not remedies:
            return
        try:
            trace = trace_model(part, args, kwargs)
            places = find_places(part, trace)
        except NotApplicable as reason:
            if not called_parts.is_copy:
                for remedy in remedies:
                    remedy.reasons.append(str(reason))
            return
        places = places.without({name for name, module in part.named_modules() if is_changed(module)})
        first = FirstCall(name=_join_names(called_parts.name, path), args=args, kwargs=kwargs, trace=trace)
        for remedy in remedies:
            remedy.observe_first_call(first)
        self._change_calls(remedies, called_parts, path, part, places)

    def _change_calls(
        self, remedies: Sequence[CallRemedy], called_parts: CalledParts, path: str, part: nn.Module, places: Places
    ) -> None:
        changes: list[CallChange] = []
        for remedy in remedies:
            applied, more_changes = remedy.change_calls(part, places, is_copy=called_parts.is_copy)
            changes += more_changes
            if not called_parts.is_copy:
                remedy.add_places(_join_names(called_parts.name, path), applied)
        if changes:
            changed_calls = ChangedCalls(changes)
            if changed_calls.install(part, places.callers):
                changed_calls.enter("")  # this call has begun already; the hook at its end is yet to come


def _join_names(model: str, path: str) -> str:
    """Return the name of a part of a model, of which either may be empty."""
    return ".".join(name for name in (model, path) if name)


class CalledParts:
    """The parts of one model that the script itself has called.

    A copy of the model has its own: an average of the weights, or a target network, that is copied before the first
    call gets the remedies too. A model that is loaded from a file gets none.
    """

    def __init__(
        self, remedies: ModuleRemedies | None, name: str, called: Iterable[str] = (), *, is_copy: bool = False
    ) -> None:
        self.remedies, self.name, self.is_copy = remedies, name, is_copy
        self.called = set(called)
        """Paths of the parts in the model. The path of the model itself is empty."""
        self.depth = 0
        """Number of calls of its modules, one inside the other, that have not returned yet."""

    def contain(self, path: str) -> bool:
        """Whether the part of this path was called already, by itself or inside another part."""
        return any(path == called or called == "" or path.startswith(f"{called}.") for called in self.called)

    def __deepcopy__(self, memo: dict[int, Any]) -> CalledParts:
        return CalledParts(self.remedies, self.name, self.called, is_copy=True)

    def __reduce__(self) -> tuple[type[CalledParts], tuple[None, str]]:
        return CalledParts, (None, self.name)


class _BeginCall:
    """Forward pre-hook of each part of a model."""

    def __init__(self, called_parts: CalledParts, path: str) -> None:
        self._called_parts, self._path = called_parts, path

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Handle the call if it is the script that calls the part, and not another part."""
        self._called_parts.depth += 1
        if self._called_parts.depth == 1 and self._called_parts.remedies is not None:
            self._called_parts.remedies.handle_call(self._called_parts, self._path, module, args, kwargs)


class _EndCall:
    """Forward hook of each part of a model."""

    def __init__(self, called_parts: CalledParts) -> None:
        self._called_parts = called_parts

    def __call__(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Count that the call has returned, or raised."""
        self._called_parts.depth -= 1
