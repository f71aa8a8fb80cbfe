"""Remembers by reference what a step computes: the calls of the watched models, and the script's own operations.

The script's own operations are those between a model's output and `backward()`: the loss. They are recorded as a tape:
the function and its arguments, where a tensor that the step computed is a number, so that no intermediate result is
kept. Inputs, targets and other tensors from outside are kept until the step ends.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

from gradmedic.torch.first_batch import tensors_in
from gradmedic.torch.origin.generators import GeneratorState
from gradmedic.torch.origin.source import Place

_MOST_ITEMS = 2_000
"""Calls that are remembered of a step. Of a loss that makes more, only what reaches the model is repeated."""
MOST_MODEL_CALLS = 64
"""Calls of models that are remembered of a step. Their inputs are kept."""


class Made(NamedTuple):
    """Stands for a tensor that the step computed."""

    number: int


class Given(NamedTuple):
    """Stands for a tensor from outside of the step."""

    number: int


@dataclass(frozen=True, slots=True)
class GivenTensor:
    """A tensor from outside, without its graph."""

    tensor: Tensor
    version: int
    original: int
    """Id of the tensor that the script holds. It may be a parameter."""
    requires_grad: bool
    is_computed: bool
    """Whether something outside of the step computed it, with a graph."""

    @property
    def has_changed(self) -> bool:
        """Whether it was changed in place since."""
        return not self.tensor.is_inference() and self.tensor._version != self.version


@dataclass(frozen=True, slots=True)
class Precision:
    """How autocast computes, by the type of the device."""

    dtypes: dict[str, tuple[bool, torch.dtype]]

    @classmethod
    def read(cls) -> Precision:
        """Return how autocast computes now."""
        devices = ("cpu", "cuda") if torch.cuda.is_initialized() else ("cpu",)  # type: ignore[no-untyped-call]
        return cls({name: (torch.is_autocast_enabled(name), torch.get_autocast_dtype(name)) for name in devices})

    @contextlib.contextmanager
    def apply(self) -> Iterator[None]:
        """Let autocast compute like this."""
        with contextlib.ExitStack() as stack:
            for device, (is_enabled, dtype) in self.dtypes.items():
                if is_enabled != torch.is_autocast_enabled(device) or is_enabled:
                    stack.enter_context(torch.autocast(device, dtype=dtype, enabled=is_enabled))
            yield


@dataclass(slots=True)
class Item:
    """A call of a watched model, or of a function of torch, in a step."""

    function: Any
    """The function; the position of the model."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: Place | None
    """The line that made the call."""
    precision: Precision
    records_gradient: bool = True
    outputs: list[int] = field(default_factory=list)
    """Numbers of the tensors that it returned."""
    generators: GeneratorState | None = None
    """State of the generators before the call of a model."""
    training: list[bool] | None = None
    """Whether each module of the model was in training."""


@dataclass(slots=True)
class Root:
    """What the script called `backward()` of."""

    number: int | None
    """Its number; None if the tape does not hold it."""
    value: Tensor
    """Its value, without the graph."""
    node: Node | None


class StepRecord:
    """What one step computed so far."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.given: list[GivenTensor] = []
        self.roots: list[Root] = []
        self.output_gradients: dict[int, Tensor] = {}
        """Gradient that arrived at a tensor of the step, by the tensor's number, where the tape does not reach."""
        self.reason: str | None = None
        """Why the step cannot be repeated."""
        self.model_calls = 0
        self._made: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._given_numbers: dict[int, int] = {}
        self._count = 0

    def add(self, item: Item) -> bool:
        """Remember a call; return whether there was room for it."""
        if isinstance(item.function, int):
            self.model_calls += 1
        elif len(self.items) >= _MOST_ITEMS:
            return False
        self.items.append(item)
        return True

    def encode(self, value: Any) -> Any:
        """Return an argument with `Made` and `Given` in place of tensors."""
        if isinstance(value, Tensor):
            return self._encode_tensor(value)
        if isinstance(value, (list, tuple)):
            items = [self.encode(item) for item in value]
            if isinstance(value, tuple):
                return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
            return items
        if isinstance(value, dict):
            copied = {key: self.encode(item) for key, item in value.items()}
            if type(value) is dict:
                return copied
            clone = value.copy()
            clone.update(copied)
            return clone
        return value

    def note_outputs(self, item: Item, output: Any) -> None:
        """Give numbers to the tensors that a call returned."""
        for tensor in tensors_of(output):
            number = self.find(tensor)
            if number is None:
                number = self._count
                self._count += 1
                self._made[id(tensor)] = (weakref.ref(tensor), number)
            item.outputs.append(number)

    def find(self, tensor: Tensor) -> int | None:
        """Return the number of a tensor that the step computed, None if it did not."""
        reference, number = self._made.get(id(tensor), (None, None))
        return number if reference is not None and reference() is tensor else None

    def list_alive(self, numbers: Sequence[int]) -> list[tuple[int, Tensor]]:
        """Return those of some tensors of the step that the script still holds, with their numbers."""
        wanted = set(numbers)
        found = [(number, reference()) for reference, number in self._made.values() if number in wanted]
        return [(number, tensor) for number, tensor in found if tensor is not None]

    def _encode_tensor(self, tensor: Tensor) -> Made | Given:
        number = self.find(tensor)
        if number is not None:
            return Made(number)
        known = self._given_numbers.get(id(tensor))
        if known is not None and self.given[known].tensor.data_ptr() == tensor.data_ptr():
            return Given(known)
        version = 0 if tensor.is_inference() else tensor._version
        self.given.append(
            GivenTensor(tensor.detach(), version, id(tensor), tensor.requires_grad, tensor.grad_fn is not None)
        )
        self._given_numbers[id(tensor)] = len(self.given) - 1
        return Given(len(self.given) - 1)


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors that a call returned: alone, in a container, or as attributes of an object."""
    if isinstance(output, (Tensor, list, tuple, dict)) or output is None:
        return list(tensors_in(output))
    return list(tensors_in(list(getattr(output, "__dict__", {}).values())))
