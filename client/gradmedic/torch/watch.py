"""Observes a torch model at the moments when its optimizers step.

One idea: hooks of the optimizer frame every update, whoever causes it. Before it, gradients are as the optimizer will
use them and weights as they were; after it, the difference is the update. Gradients that the script clips are measured
when it clips, and count if nothing but clipping touched them since, which their version counters tell.

Only sampled steps are measured. Nothing here draws random numbers or changes a tensor of the training, and an error of
its own ends the observation, not the training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from gradmedic import wire
from gradmedic.encoding import to_float32
from gradmedic.exceptions import ConfigurationError
from gradmedic.layers import LayerBook
from gradmedic.source import Measurement, PendingNumber, Sampler
from gradmedic.step import Row
from gradmedic.torch import clipping
from gradmedic.torch.first_batch import FirstBatch, describe_training, precision_of
from gradmedic.torch.graph import FirstGraph, Follower
from gradmedic.torch.statistics import (
    GRADIENT_STATISTICS,
    Here,
    HostArray,
    UnderWay,
    measure_gradients,
    measure_norms,
)
from gradmedic.torch.topology import Owned, describe_layers, describe_optimizer, list_parameters, number_at_hand

logger = logging.getLogger("gradmedic")

STATISTICS = (*GRADIENT_STATISTICS, "weight_norm", "update_norm")
"""What a watched run carries, in order."""

_MOST_HELD = 300
"""Arrays of one step: a hundred optimizer steps between two `log()`. More are folded into one, so that a script that
seldom or never logs does not fill the memory."""

_GRADIENT = slice(0, len(GRADIENT_STATISTICS))
_NONFINITE = STATISTICS.index("nonfinite_count")
_WEIGHT = slice(5, 6)
_UPDATE = slice(6, 7)


class Watch:
    """Observes models and their optimizers; a `Source` of a run.

    Args:
        model: one, or several by name.
        optimizer: one or several.
        scaler: loss scaler, if any.
        prefix: goes before the names of the layers.

    Raises:
        ConfigurationError: the arguments are not what they should be.
    """

    statistics = STATISTICS
    framework = f"torch {torch.__version__}"

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
        *,
        scaler: torch.amp.GradScaler | None = None,
        prefix: str = "",
    ) -> None:
        self._models = _models_of(model)
        self._optimizers = _optimizers_of(optimizer)
        if scaler is not None and not hasattr(scaler, "get_scale"):
            raise ConfigurationError(f"scaler must be a torch.amp.GradScaler, not {type(scaler).__name__}")
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._owned = [
            owned
            for name, each in self._models.items()
            for owned in list_parameters(each, prefix + (f"{name}." if name else ""))
        ]
        if not self._owned:
            raise ConfigurationError("watch() needs a model with parameters")
        self._prefix = prefix
        self._slots = {id(owned.parameter): _Slot(owned.parameter) for owned in self._owned}
        if not any(id(p) in self._slots for p in self._updated_parameters()):
            raise ConfigurationError("the optimizer updates no parameter of the model: was the model replaced since?")
        self._described_optimizers: list[wire.Optimizer] = []
        self._training: wire.Training | None = None
        self._training_is_of: object = None
        self._clips_gradients: bool | None = None
        self._is_described = False
        self._steps = _Steps()
        self._update: _Update | None = None
        self._scale = _scale_of(self._scaler)
        self._handles: list[RemovableHandle] = []

    def begin(self, *, book: LayerBook, sampler: Sampler, before_first_step: Callable[[], None]) -> None:
        """Start observing.

        Args:
            book: that takes the layers.
            sampler: says which steps to measure.
            before_first_step: called before the first update.

        Raises:
            ConfigurationError: another watched model has layers of these names.
        """
        book.reserve(owned.name for owned in self._owned)
        self._book, self._sampler, self._before_first_step = book, sampler, before_first_step
        self._first_batch = FirstBatch(next(iter(self._models.values())))
        self._first_graphs = [FirstGraph(model) for model in self._models.values()]
        for optimizer in self._optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
        clipping.observe(self)

    def close(self) -> None:
        """Stop observing and leave no trace."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._first_batch.close()
        for graph in self._first_graphs:
            graph.close()
        clipping.ignore(self)
        self._steps, self._update = _Steps(), None
        for slot in self._slots.values():
            slot.forget()

    # --- what the run asks --------------------------------------------------------------------------------------------

    def describe(self) -> None:
        """Add the layers to the book, as they are before the first update."""
        if self._is_described:
            return
        self._is_described = True
        with self._guard("the model could not be described"):
            updated = {id(p) for p in self._updated_parameters()}
            layers = self._describe_layers(self._owned, updated)
            for owned, layer in zip(self._owned, layers, strict=True):
                self._slots[id(owned.parameter)].position = self._book.add(layer)
            self._described_optimizers = [describe_optimizer(optimizer) for optimizer in self._optimizers]

    def training(self) -> wire.Training | None:
        """Return what is known of how the models train; called by the sender's thread."""
        return self._training

    def take(self) -> Taken:
        """Return what was measured since the last call."""
        with self._guard("a step could not be taken"):
            self._update_training()
            steps, self._steps = self._steps, _Steps()
            for slot in self._slots.values():
                slot.early = None
            scale_before, self._scale = self._scale, _scale_of(self._scaler)
            if self._scaler is not None:
                steps.scale_before, steps.scale_after = scale_before, self._scale
            return Taken(steps)
        return Taken(_Steps())

    def hold(self, number: Any) -> PendingNumber | None:
        """Start copying a tensor with one element to the host, unless it is there."""
        if isinstance(number, Tensor) and number.device.type != "cpu" and number.numel() == 1:
            return _PendingTensor(UnderWay(number.detach().reshape(1)))
        return None

    # --- what the training does ---------------------------------------------------------------------------------------

    def before_clipping(self, parameters: list[Tensor]) -> None:
        """Measure gradients that are about to be clipped."""
        with self._guard("clipping could not be observed"), torch.no_grad():
            slots = [slot for p in parameters if (slot := self._slots.get(id(p))) is not None]
            if not slots:
                return
            self._clips_gradients = True
            if not self._sampler.is_sampling:
                return
            self._before_first_step()
            fresh = [slot for slot in slots if slot.parameter.grad is not None and not slot.is_early_valid()]
            for group in _by_device(fresh):
                array = measure_gradients([_gradient_of(slot) for slot in group])
                for row, slot in enumerate(group):
                    slot.early = _Early(array, row, _gradient_of(slot))

    def after_clipping(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:
        """Remember that what changed the gradients was clipping, and by how much."""
        with self._guard("clipping could not be observed"):
            slots = [slot for p in parameters if (slot := self._slots.get(id(p))) is not None]
            for slot in slots:
                if slot.early is not None:
                    slot.early.version = slot.early.gradient._version
            if slots and coefficient is not None and (self._sampler.is_sampling or coefficient.device.type == "cpu"):
                self._steps.coefficients.append(_host(coefficient))

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with self._guard("a step could not be measured"), torch.no_grad():
            self._before_first_step()
            if self._clips_gradients is None:
                self._clips_gradients = False
            self._steps.note(optimizer)
            self._update = None
            if not self._sampler.is_sampling:
                return
            # A closure computes the gradients during the step: then they are there afterwards only.
            has_closure = any(callable(value) for value in (*args[1:], *kwargs.values()))
            slots = self._slots_of(optimizer, needs_gradient=not has_closure)
            if not has_closure:
                self._take_gradients(slots, _tensor_or_none(optimizer, "grad_scale"))
            weights = []
            for group in _by_device(slots):
                parameters = [slot.parameter.detach() for slot in group]
                weights.append((group, measure_norms(parameters)))
                torch._foreach_copy_([slot.buffer() for slot in group], parameters)
            self._update = _Update(has_closure, weights)

    def _after_step(self, optimizer: torch.optim.Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        with self._guard("a step could not be measured"), torch.no_grad():
            update, self._update = self._update, None
            if update is None:
                return
            for group, weight_norms in update.weights:
                rows = np.arange(len(group))
                if update.has_closure:
                    rows = np.array([i for i, slot in enumerate(group) if slot.parameter.grad is not None], dtype=int)
                touched = [group[i] for i in rows]
                if not touched:
                    continue
                if update.has_closure:
                    self._take_gradients(touched, None)
                self._steps.add(touched, _WEIGHT, weight_norms, rows)
                differences = [slot.buffer() for slot in touched]
                torch._foreach_sub_(differences, [slot.parameter.detach() for slot in touched])
                self._steps.add(touched, _UPDATE, measure_norms(differences))
            found_inf = _tensor_or_none(optimizer, "found_inf")
            if found_inf is not None:
                self._steps.found_inf.append(_host(found_inf))

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _take_gradients(self, slots: Sequence[_Slot], scale: Tensor | None) -> None:
        fresh = []
        early: dict[int, list[_Slot]] = {}
        for slot in slots:
            if slot.early is not None and slot.is_early_valid():
                early.setdefault(id(slot.early.array), []).append(slot)
            else:
                fresh.append(slot)
        for group in early.values():
            measured = [slot.early for slot in group if slot.early is not None]
            self._steps.add(group, _GRADIENT, measured[0].array, np.array([each.row for each in measured]))
        for group in _by_device(fresh):
            self._steps.add(group, _GRADIENT, measure_gradients([_gradient_of(slot) for slot in group], scale))
        for slot in slots:
            slot.early = None

    def _slots_of(self, optimizer: torch.optim.Optimizer, *, needs_gradient: bool) -> list[_Slot]:
        found = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                slot = self._slots.get(id(parameter)) or self._add_slot(parameter)
                if parameter.grad is not None or (parameter.requires_grad and not needs_gradient):
                    found.append(slot)
        return found

    def _add_slot(self, parameter: Tensor) -> _Slot:
        """Begin to observe a parameter that came into the optimizer after `watch()`, or that no model has."""
        known = (
            owned
            for name, model in self._models.items()
            for owned in list_parameters(model, self._prefix + (f"{name}." if name else ""))
            if owned.parameter is parameter
        )
        unnamed = Owned(f"{self._prefix}parameter", parameter, None, "parameter")
        owned = next(known, unnamed)
        self._owned.append(owned)
        slot = self._slots[id(parameter)] = _Slot(parameter)
        slot.position = self._book.add(self._describe_layers([owned], {id(parameter)})[0])
        return slot

    def _describe_layers(self, owned: list[Owned], updated: set[int]) -> list[wire.Layer]:
        seen: dict[int, Follower] = {}
        for graph in self._first_graphs:
            seen.update(graph.followers)
        return describe_layers(owned, list(self._models.values()), updated, seen)

    def _updated_parameters(self) -> Iterator[Tensor]:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                yield from group["params"]

    def _update_training(self) -> None:
        is_of = (self._clips_gradients, self._first_batch.is_over)
        if is_of != self._training_is_of:
            self._training_is_of = is_of
            self._training = describe_training(
                self._described_optimizers,
                precision_of([o.parameter for o in self._owned if not is_lazy(o.parameter)], self._first_batch),
                self._first_batch,
                self._clips_gradients,
            )

    @contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        """Turn an error of ours into a warning, after which nothing more is observed."""
        try:
            yield
        except Exception as error:
            self.close()
            logger.warning("gradmedic: %s, so this model is no longer watched: %r", what, error)


class Taken:
    """What was measured in one step, with arrays that may still be on their way."""

    def __init__(self, steps: _Steps) -> None:
        self._steps = steps

    @property
    def is_ready(self) -> bool:
        """Whether `read` returns without waiting for a device."""
        return all(array.is_ready for array in self._steps.arrays())

    def read(self) -> Measurement:
        """Return the measurement."""
        steps = self._steps
        skipped = any(array.read().max() > 0 for array in steps.found_inf)
        scale = None
        if steps.scale_before is not None and steps.scale_after is not None:
            scale, scale_after = float(steps.scale_before.read()[0]), float(steps.scale_after.read()[0])
            skipped = skipped or (not steps.has_stepped and scale_after < scale)
        coefficients = [float(array.read()[0]) for array in steps.coefficients]
        clip_coefficient = float(np.min(coefficients)) if coefficients else None  # NaN if any is
        return Measurement(
            row=None if skipped else steps.row(),
            learning_rate=steps.learning_rate,
            loss_scale=scale,
            clip_coefficient=clip_coefficient,
            skipped=skipped,
        )


class _Early:
    """Statistics of a gradient that was measured before it was clipped."""

    __slots__ = ("array", "gradient", "row", "version")

    def __init__(self, array: HostArray, row: int, gradient: Tensor) -> None:
        self.array = array
        self.row = row
        self.gradient = gradient
        self.version = gradient._version


class _Slot:
    """A parameter under observation."""

    __slots__ = ("_buffer", "early", "parameter", "position")

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.position = -1
        self.early: _Early | None = None
        self._buffer: Tensor | None = None

    def is_early_valid(self) -> bool:
        """Whether nothing but clipping changed the gradient since it was measured."""
        early = self.early
        return early is not None and early.gradient is self.parameter.grad and early.version == early.gradient._version

    def buffer(self) -> Tensor:
        """Return memory for a copy of the weights, allocated once."""
        if self._buffer is None or self._buffer.shape != self.parameter.shape:
            self._buffer = torch.empty_like(self.parameter, requires_grad=False)
        return self._buffer

    def forget(self) -> None:
        self.early = self._buffer = None


@dataclass(frozen=True, slots=True)
class _Update:
    """An optimizer's step that is under way: whose weights were copied, and their norms."""

    has_closure: bool
    weights: list[tuple[list[_Slot], HostArray]]


@dataclass(frozen=True, slots=True)
class _Part:
    """Some statistics of some layers."""

    positions: NDArray[np.int32]
    columns: slice
    array: HostArray
    rows: NDArray[np.int_] | None


class _Steps:
    """What happened since the last `log()`: usually one optimizer step."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self.has_stepped = False
        self.learning_rate: float | None = None
        self.coefficients: list[HostArray] = []
        self.found_inf: list[HostArray] = []
        self.scale_before: HostArray | None = None
        self.scale_after: HostArray | None = None

    def note(self, optimizer: torch.optim.Optimizer) -> None:
        """Take in that an optimizer steps."""
        self.has_stepped = True
        rates = [rate for group in optimizer.param_groups if (rate := number_at_hand(group.get("lr"))) is not None]
        if self.learning_rate is not None:
            rates.append(self.learning_rate)
        self.learning_rate = max(rates, default=None)

    def add(
        self, slots: Sequence[_Slot], columns: slice, array: HostArray, rows: NDArray[np.int_] | None = None
    ) -> None:
        """Take in some statistics of some layers, in these rows of an array; later ones replace earlier ones."""
        if len(self._parts) >= _MOST_HELD:
            self._fold()
        positions = np.fromiter((slot.position for slot in slots), dtype=np.int32, count=len(slots))
        self._parts.append(_Part(positions, columns, array, rows))

    def arrays(self) -> Iterator[HostArray]:
        """Iterate over everything that may be on its way."""
        yield from (part.array for part in self._parts)
        yield from self.coefficients
        yield from self.found_inf
        for scale in (self.scale_before, self.scale_after):
            if scale is not None:
                yield scale

    def row(self) -> Row | None:
        """Return the statistics of all layers that were touched; of several optimizer steps, the last.

        Only `nonfinite_count` is that of the worst one.
        """
        if not self._parts:
            return None
        touched, values = self._join()
        return Row(STATISTICS, touched, to_float32(values))

    def _fold(self) -> None:
        """Keep of what is held only what will count in the end."""
        touched, values = self._join()
        self._parts = [_Part(touched, slice(None), Here(values), None)]
        if self.coefficients:
            self.coefficients = [Here(np.min([array.read() for array in self.coefficients], axis=0))]
        if self.found_inf:
            self.found_inf = [Here(np.max([array.read() for array in self.found_inf], axis=0))]

    def _join(self) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        first = self._parts[0].positions
        if all(np.array_equal(part.positions, first) for part in self._parts):
            touched, places = first, slice(None)  # the usual case, and several times faster
        else:
            touched = np.unique(np.concatenate([part.positions for part in self._parts]))
            places = None
        values = np.zeros((len(touched), len(STATISTICS)))
        worst = np.zeros(len(touched))
        for part in self._parts:
            array = part.array.read()
            array = array.reshape(len(array), -1)
            at = np.searchsorted(touched, part.positions) if places is None else places
            values[at, part.columns] = array if part.rows is None else array[part.rows]
            np.maximum(worst, values[:, _NONFINITE], out=worst)
        values[:, _NONFINITE] = worst
        return touched, values


class _PendingTensor:
    """A number on its way from a device."""

    def __init__(self, array: HostArray) -> None:
        self._array = array

    def read(self) -> float:
        return float(self._array.read()[0])


def _models_of(model: nn.Module | Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    models = dict(model) if isinstance(model, Mapping) else {"": model}
    for each in models.values():
        if not isinstance(each, nn.Module):
            raise ConfigurationError(f"model must be a torch.nn.Module or a mapping to some, not {type(each).__name__}")
    return models


def _optimizers_of(optimizer: Any) -> list[torch.optim.Optimizer]:
    is_one = isinstance(optimizer, torch.optim.Optimizer) or not isinstance(optimizer, Iterable)
    optimizers = [optimizer] if is_one else list(optimizer)
    for each in optimizers:
        if not isinstance(each, torch.optim.Optimizer):
            raise ConfigurationError(
                f"optimizer must be a torch.optim.Optimizer or a list of them, not {type(each).__name__}"
            )
    return optimizers


def _by_device(slots: Sequence[_Slot]) -> Iterable[list[_Slot]]:
    groups: dict[torch.device, list[_Slot]] = {}
    for slot in slots:
        groups.setdefault(slot.parameter.device, []).append(slot)
    return groups.values()


def _gradient_of(slot: _Slot) -> Tensor:
    gradient = slot.parameter.grad
    if gradient is None:
        raise RuntimeError("a gradient disappeared while it was measured")
    return gradient


def _tensor_or_none(optimizer: torch.optim.Optimizer, name: str) -> Tensor | None:
    """Return what a loss scaler tells a fused optimizer: `grad_scale` or `found_inf`."""
    value = getattr(optimizer, name, None)
    return value if isinstance(value, Tensor) else None


def _host(tensor: Tensor) -> HostArray:
    tensor = tensor.detach().reshape(-1)[:1]
    if tensor.device.type == "cpu":
        return Here(tensor.numpy().astype(np.float64))
    return UnderWay(tensor)


def _scale_of(scaler: torch.amp.GradScaler | None) -> HostArray | None:
    """Return a loss scaler's scale, without waiting for a device."""
    if scaler is None:
        return None
    tensor = getattr(scaler, "_scale", None)
    if isinstance(tensor, Tensor):
        return _host(tensor)
    return Here(np.array([scaler.get_scale()]))
