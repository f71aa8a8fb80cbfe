"""Checks every operation of the forward and the backward pass, and finds the origin of what is not finite.

An operation whose output is not finite is remembered with the operations that made its inputs, as far as these were not
finite either. From what must be explained - the loss, or gradients - the search goes back along these links. So an
infinity that disappears later is never accused, as that of a mask which a softmax turns into zeros.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode

from gradmedic.protocol.origins import Origin, OriginInput
from gradmedic.torch.origin.calls import Call, CallRecorder, read_sequence_number
from gradmedic.torch.origin.numbers import dense_part, first_nonfinite, has_nan, is_checked, is_finite
from gradmedic.torch.origin.operation_names import name_node, name_operator, normalize
from gradmedic.torch.origin.source import Place, describe_place, find_caller
from gradmedic.torch.origin.special_inputs import describe_backward, describe_forward

_UNINITIALIZED = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted"})
"""Operations whose output has no meaning yet."""
_OVERWRITING = frozenset({"copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "set_"})
"""Operations that do not read what they change."""
_MOST_EVENTS = 20_000
"""Operations that are remembered. After the first of them, nearly every operation of a step is not finite."""
_BACKWARD_FUNCTION = "backward"
"""Name of the method of a custom function that computes its gradient."""


@dataclass(slots=True)
class Event:
    """An operation whose output is not finite."""

    number: int
    operation: str
    direction: str
    place: Place | None
    module: str | None
    value: float
    """NaN or an infinity."""
    parents: list[Event] = field(default_factory=list)
    """Operations that made those inputs that are not finite."""
    is_constant: bool = False
    """Whether the script itself gave the infinity, as a number or as a tensor that it did not compute here."""
    makes_nan: bool = False
    """Whether an element is NaN although none of the inputs is."""
    data: OriginInput | None = None
    """Description of an input of the step that is NaN."""
    input: OriginInput | None = None
    """Description of the input, of an operation that may be the origin."""

    @property
    def is_forward(self) -> bool:
        """Whether it ran in a forward pass."""
        return self.direction == "forward"


class OriginFinder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Checks every operation while it is entered, and remembers those whose output is not finite.

    Nothing that runs inside computes anything else than without it. Each operation is checked by one sum of its output.

    Args:
        modules: the modules by their path, whose calls are told apart.
    """

    def __init__(self, modules: Mapping[str, torch.nn.Module] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._paths = {id(module): path for path, module in (modules or {}).items()}
        self.calls = CallRecorder(self._paths)
        self._events: dict[int, list[Event]] = {}
        """What made the elements of a storage that are not finite, by the storage."""
        self._kept: dict[int, Any] = {}
        """The storages of this step, so that their addresses stay theirs."""
        self._kept_before: dict[int, Any] = {}
        """Those of the step before."""
        self._uninitialized: set[int] = set()
        self._count = 0
        self._most_events = _MOST_EVENTS
        self._names: dict[tuple[Place | None, str], str] = {}
        """Name of each operation that a line called in the forward pass, by the name that the dispatcher has for it."""
        self._newest = -1
        self._node = -1
        """Number of the node whose gradient is computed now."""
        self._arriving: Tensor | None = None
        """The gradient that arrives at it, as far as it was seen."""
        self._made_by: dict[int, int] = {}
        """Number of the node that made each storage of a gradient."""
        self.failure: Exception | None = None
        """The first error of a check itself."""

    def __enter__(self) -> OriginFinder:
        """Check and record from now on."""
        self.calls.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Check no more."""
        super().__exit__(kind, error, at)  # type: ignore[no-untyped-call]
        self.calls.__exit__(kind, error, at)  # type: ignore[no-untyped-call]

    def begin_step(self) -> None:
        """Forget what is older than the last step, so that nothing of it stays in memory."""
        forgotten, self._kept_before, self._kept = self._kept_before, self._kept, {}
        for key in forgotten.keys() - self._kept_before.keys():
            self._events.pop(key, None)
            self._uninitialized.discard(key)
        self._made_by.clear()
        self._most_events = self._count + _MOST_EVENTS
        self.calls.begin_step()

    def explain(self, targets: Iterable[Tensor]) -> Origin | None:
        """Return the origin of the first non-finite element that reached some tensors.

        Args:
            targets: the loss; or gradients, if the loss is finite.

        Returns:
            The origin. None if the tensors are finite, or no checked operation made what is not.
        """
        waiting = [
            event for target in targets if not is_finite(target) for event in self._events.get(_storage(target), ())
        ]
        found: dict[int, Event] = {}
        while waiting:
            event = waiting.pop()
            if event.number not in found:
                found[event.number] = event
                waiting.extend(event.parents)
        ordered = [found[number] for number in sorted(found)]
        origin = next((event for event in ordered if _is_origin(event)), None)
        if origin is None:
            return None
        own = [event for event in ordered if (event.operation, event.place) == (origin.operation, origin.place)]
        gradients = [event for event in own if not event.is_forward]
        if origin.is_forward and gradients and all(event in own for event in ordered if event.is_forward):
            # What it made reached a gradient alone, through what the operation saved: its own backward pass failed.
            return dataclasses.replace(_describe(gradients[0]), input=gradients[0].input or origin.input)
        return _describe(origin)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and check its output."""
        kwargs = kwargs or {}
        name = func._schema.name.rpartition("::")[2]
        values = [*args, *kwargs.values()]
        inputs = list(_tensors(values))
        changed: list[Tensor] = []
        if func._schema.is_mutable:
            changed = _list_changed(func, args, kwargs)
        read = [t for t in inputs if not (name in _OVERWRITING and any(t is c for c in changed))]
        before = [t for t in read if any(t is c for c in changed) and not self._is_finite_input(t)]
        node: Node | None = torch._C._current_autograd_node()
        call = self.calls.current
        if node is not None:
            self._follow_gradient(node, inputs)
            if isinstance(node, BackwardCFunction) and torch.is_grad_enabled():
                self._add_recomputed_call(name)
        elif call is not None and call.name is not None:
            self._names[call.place, name] = call.name
        output = func(*args, **kwargs)
        try:
            if node is not None:
                self._made_by.update((_storage(tensor), self._node) for tensor in _tensors([output]))
            if name in _UNINITIALIZED:
                for tensor in _tensors([output]):
                    self._keep(tensor, self._uninitialized)
            else:
                self._check(func, values, read, before, changed or list(_tensors([output])), is_mutable=bool(changed))
        except Exception as error:  # the check must not end what it checks
            self.failure = self.failure or error
        return output

    def _add_recomputed_call(self, name: str) -> None:
        """Record an operation of a reentrant checkpoint, which runs a forward pass inside of the backward pass.

        Torch shows no calls of functions there. The node of the operation is the newest one.
        """
        number = read_sequence_number()
        if number == self._newest:  # a part of the same operation
            return
        self._newest = number
        place, module = find_caller(sys._getframe(2), self._paths)
        if place is not None:
            known = self._names.get((place, name), normalize(name))
            self.calls.add(Call(known, place, module, number - 1, number))

    def _follow_gradient(self, node: Node, inputs: Sequence[Tensor]) -> None:
        """Notice which input is the gradient that arrives at a node: another node made it."""
        number = node._sequence_nr()
        if number != self._node:
            self._node, self._arriving = number, None
        if self._arriving is None:
            self._arriving = next((t for t in inputs if self._made_by.get(_storage(t), number) != number), None)

    def _check(
        self, func: Any, values: Sequence[Any], read: Sequence[Tensor], before: Sequence[Tensor],
        outputs: Sequence[Tensor], *, is_mutable: bool,
    ) -> None:  # fmt: skip
        own = {_storage(tensor) for tensor in read} if not is_mutable else set()
        bad_outputs = []
        for output in outputs:
            if not is_checked(output) or (key := _storage(output)) in own or not key:  # a view, or no storage
                continue
            if not is_finite(output):
                bad_outputs.append(output)
            elif is_mutable and output.numel() * output.element_size() >= output.untyped_storage().nbytes():
                self._events.pop(key, None)
                self._uninitialized.discard(key)
        if not bad_outputs or self._count >= self._most_events:
            return
        changed = {id(output) for output in outputs} if is_mutable else set()
        bad_inputs = [t for t in read if id(t) not in changed and not self._is_finite_input(t)]
        bad_inputs += [t for t in before if not any(t is other for other in bad_inputs)]
        event = self._describe_event(func, values, bad_inputs, bad_outputs, has_changed=is_mutable)
        for output in bad_outputs:
            key = _storage(output)
            is_whole = output.numel() * output.element_size() >= output.untyped_storage().nbytes()
            others = [] if is_whole else self._events.get(key, [])
            self._events[key] = [*others, event]
            self._kept[key] = output.untyped_storage()
            if is_whole:
                self._uninitialized.discard(key)

    def _describe_event(
        self, func: Any, values: Sequence[Any], bad_inputs: Sequence[Tensor], outputs: Sequence[Tensor],
        *, has_changed: bool,
    ) -> Event:  # fmt: skip
        self._count += 1
        node: Node | None = torch._C._current_autograd_node()
        operation, direction, place, module = self._find_call(func, node)
        event = Event(self._count, operation, direction, place, module, first_nonfinite(outputs[0]))
        unknown: list[Tensor] = []
        for tensor in bad_inputs:
            parents = self._events.get(_storage(tensor))
            if parents is None:
                unknown.append(tensor)
            else:
                event.parents.extend(parents)
        had_nan = any(has_nan(tensor) for tensor in bad_inputs)
        event.makes_nan = not had_nan and any(has_nan(output) for output in outputs)
        if any(has_nan(tensor) or tensor.ndim for tensor in unknown if has_nan(tensor)):
            event.data = _describe_data(next(tensor for tensor in unknown if has_nan(tensor)))
        elif unknown or any(_is_nonfinite_number(value) for value in values):
            event.is_constant = True
        if event.makes_nan or not bad_inputs:
            event.input = self._describe_input(
                operation, name_operator(func), direction, node, values, outputs, has_changed=has_changed
            )
        return event

    def _find_call(self, func: Any, node: Node | None) -> tuple[str, str, Place | None, str | None]:
        """Return the name of the operation, its direction, its line, and the path of its module."""
        call: Call | None = self.calls.current
        name = name_operator(func)
        if call is not None and node is None:
            return call.name or name, "forward", call.place, call.module
        if node is None:
            caller = find_caller(sys._getframe(3), self._paths)
            place, module = self.calls.outer
            return name, "forward", caller.place or place, module if caller.module is None else caller.module
        caller = find_caller(sys._getframe(3), self._paths)
        made_by = self.calls.find(node)
        if caller.place is not None:  # Python code runs inside of the backward pass
            is_gradient = caller.place.function == _BACKWARD_FUNCTION
            module = caller.module if caller.module is not None else (made_by.module if made_by else None)
            used = self._names.get((caller.place, func._schema.name.rpartition("::")[2]))
            if used is None:
                used = name if call is None or call.name is None else call.name
            return used, "backward" if is_gradient else "forward", caller.place, module
        if made_by is None:
            return name_node(node.name()), "backward", None, None
        return made_by.name or name_node(node.name()), "backward", made_by.place, made_by.module

    def _describe_input(
        self, operation: str, inner: str, direction: str, node: Node | None, values: Sequence[Any],
        outputs: Sequence[Tensor], *, has_changed: bool,
    ) -> OriginInput | None:  # fmt: skip
        if direction == "forward" or node is None:
            if has_changed:
                return None
            described = describe_forward(operation, values, outputs)
            return describe_forward(inner, values, outputs) if described.special is None else described
        return describe_backward(
            operation, _read_saved(node), self._arriving, outputs[0], inner=describe_forward(inner, values, ())
        )

    def _is_finite_input(self, tensor: Tensor) -> bool:
        key = _storage(tensor)
        return (key in self._uninitialized and key not in self._events) or is_finite(tensor)

    def _keep(self, tensor: Tensor, keys: set[int]) -> None:
        key = _storage(tensor)
        if key:
            keys.add(key)
            self._kept[key] = tensor.untyped_storage()


def _is_origin(event: Event) -> bool:
    if event.data is not None:
        return True
    if not event.parents and not event.is_constant:
        return True
    return event.makes_nan and _comes_from_constants(event)


def _comes_from_constants(event: Event) -> bool:
    """Whether every infinity that reaches an operation was given by the script."""
    waiting, seen = list(event.parents), set[int]()
    while waiting:
        parent = waiting.pop()
        if parent.number in seen:
            continue
        seen.add(parent.number)
        if not parent.parents and not parent.is_constant:
            return False
        waiting.extend(parent.parents)
    return True


def _describe(event: Event) -> Origin:
    return Origin(
        operation=event.operation,
        direction=event.direction,
        module=event.module,
        source=None if event.place is None else describe_place(event.place),
        input=event.data or event.input,
        value=event.value,
        kind="data" if event.data is not None else "numeric",
    )


def _describe_data(tensor: Tensor) -> OriginInput:
    bad = int((~tensor.isfinite()).sum())
    return OriginInput(
        shape=list(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."), special="nonfinite", count=bad,
        total=tensor.numel(), unit="element",
        text=f"{bad:,} of {tensor.numel():,} elements were NaN or infinite before the model computed anything",
    )  # fmt: skip


def _read_saved(node: Node) -> dict[str, Any]:
    """Return what a node saved, without the values that are gone already."""
    saved: dict[str, Any] = {}
    for name in dir(node):
        if name.startswith("_saved_"):
            try:
                saved[name.removeprefix("_saved_")] = getattr(node, name)
            except (RuntimeError, TypeError):
                continue
    return saved


def _list_changed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    changed: list[Any] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        if place < len(args) and not argument.kwarg_only:
            changed.append(args[place])
        elif argument.name in kwargs:
            changed.append(kwargs[argument.name])
    return list(_tensors(changed))


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield dense_part(value)
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _is_nonfinite_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _storage(tensor: Tensor) -> int:
    """Return the address of a tensor's storage; 0 if it has none, as a sparse one."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return 0
