"""Copies the state of a training, and writes a copy back in place.

The state of a training is everything that its next step starts from: parameters and buffers of the models, state and
settings of the optimizers, the scale of the loss scaler, and the schedulers of the learning rate. Random generators are
left as they are: after a rewind the training goes on with other batches and other masks of dropout.

Tensors keep their identity, because the optimizer, a compiled model and the script hold them. So a snapshot fits only
the training that it was taken of. If a layer, a shape or a group of the optimizer has changed since, it is refused.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradmedic.torch.statistics import local_part
from gradmedic.torch.structure import unwrap_model

Key = tuple[str | int, ...]
"""Place of a tensor: `("model", index, name)`, or `("optimizer", index, parameter, name of the state)`."""
_OVERLAPS = 1
"""What torch answers for a tensor of which several elements share memory: it cannot be written to."""


class CannotRestore(Exception):  # it is a reason, and no failure
    """A snapshot does not fit the training any more; the message contains the reason."""


@dataclass(slots=True, eq=False)
class Snapshot:
    """The state of a training after a step."""

    step: int
    """Last step that is in the state."""
    layout: dict[Key, tuple[torch.Size, torch.dtype]]
    """Shape and dtype of the part of each tensor that this process holds."""
    tensors: list[Tensor]
    """Copies of these parts in the memory of the host, in the order of the layout."""
    values: dict[Key, Any]
    """Copies of what is no tensor: settings and counters of optimizers, and states of schedulers."""
    groups: tuple[tuple[int, ...], ...]
    """Number of parameters in each group of each optimizer."""
    copying: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    """Begin and end of the copies from each device."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def wait(self) -> None:
        """Wait until the copies are complete."""
        for _, end in self.copying:
            end.synchronize()

    def read_device_seconds(self) -> float:
        """Return the seconds that the copies took on their devices; 0 where they are not complete."""
        seconds = [
            begin.elapsed_time(end) / 1000
            for begin, end in self.copying
            if end.query()  # type: ignore[no-untyped-call]
        ]
        return max(seconds, default=0.0)

    def with_tensors(self, tensors: list[Tensor]) -> Snapshot:
        """Return this snapshot with other tensors."""
        return dataclasses.replace(self, tensors=tensors, copying=[])


class TrainingState:
    """The state of a training, which snapshots are taken of.

    Args:
        models: the models; wrappers of `torch.compile` and of data parallelism are looked into.
        optimizers: the optimizers.
        scaler: the loss scaler, if there is one.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self._models = [unwrap_model(model)[0] for model in models]
        self._optimizers = list(optimizers)
        self._scaler = scaler
        self._schedulers: list[LRScheduler] | None = None
        self._nonfinite_from_start: set[Key] | None = None
        """Tensors with non-finite elements that belong there, as in a mask of attention."""

    @property
    def has_scaler(self) -> bool:
        """Whether there is a loss scaler."""
        return self._scaler is not None

    @property
    def scheduler_count(self) -> int:
        """Number of schedulers that were found when the first snapshot was taken."""
        return len(self._schedulers or ())

    def take(self, step: int, reused: Snapshot | None = None) -> Snapshot | None:
        """Return a snapshot; None while a model has parameters without a shape.

        Copies from a device are only begun then: nothing waits for them here.

        Args:
            step: last step that is in the state.
            reused: a snapshot that is not needed any more, whose memory is written to if it fits.
        """
        if any(is_lazy(tensor) for model in self._models for tensor in (*model.parameters(), *model.buffers())):
            return None
        if self._schedulers is None:
            self._schedulers = find_schedulers(self._optimizers)
        live = dict(self._list_tensors())
        layout = {key: (tensor.shape, tensor.dtype) for key, tensor in live.items()}
        sources = list(live.values())
        if reused is not None and reused.layout == layout:
            reused.wait()
            copies = reused.tensors
        else:
            copies = [_make_room_for(source) for source in sources]
        devices = [source.device for source in sources if source.device.type == "cuda"]
        begins = {device: _record_event(device) for device in set(devices)}
        if sources:
            torch._foreach_copy_(copies, sources, non_blocking=True)
        snapshot = Snapshot(step, layout, copies, self._copy_values(), self._count_parameters())
        snapshot.copying = [(begin, _record_event(device)) for device, begin in begins.items()]
        if self._nonfinite_from_start is None:
            snapshot.wait()
            self._nonfinite_from_start = {
                key for key, tensor in zip(layout, copies, strict=True) if not _is_finite([tensor])
            }
        return snapshot

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Write a snapshot into the models, optimizers, the loss scaler and the schedulers, and zero all gradients.

        A gradient that a script accumulates belongs to the weights that are given up.

        Raises:
            CannotRestore: the training is not the one that the snapshot was taken of. Nothing was changed.
        """
        live = dict(self._list_tensors())
        self._check(snapshot, live)
        snapshot.wait()
        for (key, (shape, dtype)), kept in zip(snapshot.layout.items(), snapshot.tensors, strict=True):
            target = live.get(key)
            if target is not None and (target.shape, target.dtype) == (shape, dtype):
                # `data` leaves the version counter: a graph that the script still goes back through stays usable.
                target.data.copy_(kept)
            elif key[0] == "optimizer":  # the script has emptied the state of the optimizer since then
                self._state_of(key)[key[-1]] = kept.to(self._find_parameter(key).device, copy=True)
        self._restore_values(snapshot)
        for optimizer in self._optimizers:
            for parameter in _list_parameters(optimizer):
                if parameter.grad is not None:
                    local_part(parameter.grad).data.zero_()

    def check(self, snapshot: Snapshot) -> None:
        """Raise CannotRestore if the training is not the one that a snapshot was taken of."""
        self._check(snapshot, dict(self._list_tensors()))

    def fits(self, snapshot: Snapshot) -> bool:
        """Return whether the training is still the one that a snapshot was taken of."""
        try:
            self.check(snapshot)
        except CannotRestore:
            return False
        return True

    def is_finite(self, snapshot: Snapshot) -> bool:
        """Return whether a snapshot has no non-finite number, apart from tensors that had one from the start."""
        snapshot.wait()
        excluded = self._nonfinite_from_start or set()
        return _is_finite(
            [tensor for key, tensor in zip(snapshot.layout, snapshot.tensors, strict=True) if key not in excluded]
        )

    @torch.no_grad()
    def is_finite_now(self) -> bool:
        """Return the same of the training as it is. On a device, it is waited for."""
        excluded = self._nonfinite_from_start or set()
        return _is_finite([tensor for key, tensor in self._list_tensors() if key not in excluded])

    # --- what belongs to the state ------------------------------------------------------------------------------------

    def _list_tensors(self) -> Iterator[tuple[Key, Tensor]]:
        """Iterate over the tensors of the state, each once: the parts that this process holds."""
        seen: set[int] = set()
        for index, model in enumerate(self._models):
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if id(tensor) not in seen and _can_be_written(tensor):
                    seen.add(id(tensor))
                    yield ("model", index, name), local_part(tensor).detach()
        for index, optimizer in enumerate(self._optimizers):
            for place, parameter in enumerate(_list_parameters(optimizer)):
                if id(parameter) not in seen and _can_be_written(parameter):
                    seen.add(id(parameter))
                    yield ("parameter", index, place), local_part(parameter).detach()
                for name, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        yield ("optimizer", index, place, name), local_part(value).detach()
            for place, group in enumerate(optimizer.param_groups):
                for name, value in group.items():
                    if isinstance(value, Tensor):
                        yield ("group", index, place, name), local_part(value).detach()
        for name in ("_scale", "_growth_tracker"):
            if isinstance(value := getattr(self._scaler, name, None), Tensor):
                yield ("scaler", name), value

    def _copy_values(self) -> dict[Key, Any]:
        values: dict[Key, Any] = {}
        for index, optimizer in enumerate(self._optimizers):
            for place, parameter in enumerate(_list_parameters(optimizer)):
                for name, value in optimizer.state.get(parameter, {}).items():
                    if not isinstance(value, Tensor):
                        values["optimizer", index, place, name] = self._copy(value)
            for place, group in enumerate(optimizer.param_groups):
                for name, value in group.items():
                    if name != "params" and not isinstance(value, Tensor):
                        values["group", index, place, name] = self._copy(value)
        for index, scheduler in enumerate(self._schedulers or ()):
            values["scheduler", index] = self._copy(scheduler.state_dict())
        return values

    def _copy(self, value: Any) -> Any:
        """Return a deep copy of a value, in which the models and optimizers are themselves."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        return copy.deepcopy(value, {id(each): each for each in (*self._models, *self._optimizers)})

    def _restore_values(self, snapshot: Snapshot) -> None:
        for key, value in snapshot.values.items():
            if key[0] == "optimizer":
                self._state_of(key)[key[-1]] = self._copy(value)
            elif key[0] == "group":
                self._optimizers[int(key[1])].param_groups[int(key[2])][str(key[3])] = self._copy(value)
            else:
                (self._schedulers or [])[int(key[1])].load_state_dict(self._copy(value))
        kept = snapshot.layout.keys() | snapshot.values.keys()
        for index, optimizer in enumerate(self._optimizers):
            for place, parameter in enumerate(_list_parameters(optimizer)):
                state = optimizer.state.get(parameter, {})
                for name in [name for name in state if ("optimizer", index, place, name) not in kept]:
                    del state[name]
                if not state:  # an optimizer makes its state where there is none
                    optimizer.state.pop(parameter, None)

    def _count_parameters(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(len(group["params"]) for group in optimizer.param_groups) for optimizer in self._optimizers)

    def _state_of(self, key: Key) -> dict[Any, Any]:
        """Return the mapping in which an optimizer has the state of this key."""
        state: dict[Any, Any] = self._optimizers[int(key[1])].state[self._find_parameter(key)]
        return state

    def _find_parameter(self, key: Key) -> Tensor:
        return _list_parameters(self._optimizers[int(key[1])])[int(key[2])]

    def _check(self, snapshot: Snapshot, live: dict[Key, Tensor]) -> None:
        """Raise CannotRestore if the training has changed in what an optimizer does not make itself."""
        if snapshot.groups != self._count_parameters():
            raise CannotRestore("a group of parameters was added to an optimizer, or removed from it, since then")
        for key, (shape, dtype) in snapshot.layout.items():
            target = live.get(key)
            if target is None and key[0] == "optimizer" and hasattr(self._find_parameter(key), "device_mesh"):
                raise CannotRestore(f"the sharded state {key[-1]} of an optimizer is gone since then")
            if target is not None and key[0] != "optimizer" and (target.shape, target.dtype) != (shape, dtype):
                raise CannotRestore(
                    f"{key[-1]} was {list(shape)} of {dtype}, and is {list(target.shape)} of {target.dtype} now"
                )
        for key in (*snapshot.layout, *live):
            if key[0] == "model" and (key in live) != (key in snapshot.layout):
                change = "added to the model" if key in live else "removed from the model"
                raise CannotRestore(f"{key[-1]} was {change} since then")


def find_schedulers(optimizers: Sequence[Optimizer]) -> list[LRScheduler]:
    """Return the schedulers of torch that were made on some optimizers.

    A scheduler refers to its optimizer, and the optimizer does not refer to it. So the objects that Python's collector
    tracks are searched, which takes some milliseconds.
    """
    ids = {id(optimizer) for optimizer in optimizers}
    schedulers = [each for each in gc.get_objects() if issubclass(type(each), LRScheduler)]
    found = []
    for scheduler in schedulers:
        optimizer = getattr(scheduler, "optimizer", None)
        inner = getattr(optimizer, "optimizer", None)  # that of a framework's wrapper
        if id(optimizer) in ids or id(inner) in ids:
            found.append(scheduler)
    return found


def _list_parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _can_be_written(tensor: Tensor) -> bool:
    local = local_part(tensor)
    return not (
        local.device.type == "meta"
        or local.is_inference()
        or (local.layout == torch.strided and torch._debug_has_internal_overlap(local) == _OVERLAPS)
    )


def _make_room_for(tensor: Tensor) -> Tensor:
    """Return memory of the host; for a tensor of a GPU, memory that the GPU copies to by itself, if there is enough."""
    if tensor.device.type == "cuda":
        with suppress(RuntimeError):
            return torch.empty_like(tensor, device="cpu", pin_memory=True)
    return torch.empty_like(tensor, device="cpu")


def _record_event(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _is_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether tensors have only finite elements: whether the largest absolute element of each is finite."""
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex()):
            checked = tensor.float() if tensor.itemsize == 1 else tensor  # torch computes little in eight bits
            by_kind.setdefault((checked.device, checked.dtype), []).append(checked)
    norms = [torch.stack(torch._foreach_norm(each, ord=math.inf)) for each in by_kind.values()]
    return all(math.isfinite(float(each.amax())) for each in norms)
