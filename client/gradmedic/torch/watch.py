"""Observes a torch model at the moments when its optimizers step.

One idea: hooks of the optimizer frame every update, whoever causes it. Before it, gradients are as the optimizer will
use them and weights as they were; after it, the optimizer's state or a copy tells the update. Gradients that the script
clips are measured when it clips, and count if nothing but clipping touched them since, which their version counters
tell.

Only sampled steps are measured. Nothing here draws random numbers or changes a tensor of the training, unless it was
asked to clip; and an error of its own ends the observation, not the training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.numbers import CLIP_EPSILON, to_float32
from gradmedic.protocol.runs import Layer, Optimizer, Training
from gradmedic.recording.instrumentation import Measurement, PendingNumber
from gradmedic.recording.layers import LayerRegistry
from gradmedic.recording.sampler import Sampler
from gradmedic.recording.step import Row
from gradmedic.torch import clipping
from gradmedic.torch.activations import ACTIVATION_STATISTICS, ActivationMeter
from gradmedic.torch.distributed import Reduced, Sharding, process_count, process_rank
from gradmedic.torch.first_batch import FirstBatch, describe_training, precision_of
from gradmedic.torch.graph import FirstGraph, Follower
from gradmedic.torch.statistics import (
    GRADIENT_STATISTICS,
    HostArray,
    MeasuredArray,
    PendingArray,
    local_part,
    measure_gradients,
)
from gradmedic.torch.targets import FirstTarget
from gradmedic.torch.topology import Owned, describe_layers, describe_optimizer, list_parameters, number_at_hand
from gradmedic.torch.updates import UnknownUpdate, UpdateMeasurement

logger = logging.getLogger("gradmedic")

STATISTICS = (*GRADIENT_STATISTICS, "weight_norm", "update_norm")
"""What a watched run carries, in order; `ACTIVATION_STATISTICS` follow where they are asked for."""

_MOST_HELD = 300
"""Arrays of one step: a hundred optimizer steps between two `log()`. More are folded into one, so that a script that
seldom or never logs does not fill the memory."""

_GRADIENT = slice(0, len(GRADIENT_STATISTICS))
_NONFINITE = STATISTICS.index("nonfinite_count")
_WEIGHT = slice(5, 6)
_UPDATE = slice(6, 7)
_ACTIVATION = slice(7, 9)


class Watch:
    """Observes models and their optimizers; a `Source` of a run.

    Args:
        model: one, or several by name.
        optimizer: one or several.
        scaler: loss scaler, if any.
        prefix: goes before the names of the layers.
        activations: whether to measure activations too.

    Raises:
        ConfigurationError: the arguments are not what they should be.
    """

    framework = f"torch {torch.__version__}"

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
        *,
        scaler: torch.amp.GradScaler | None = None,
        prefix: str = "",
        activations: bool = False,
    ) -> None:
        self._models = _models_of(model)
        given = _optimizers_of(optimizer)
        self._optimizers = [_unwrapped(each) for each in given]
        scaler = scaler or next((found for each in given if (found := getattr(each, "scaler", None))), None)
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
        if any(_is_flat_sharded(module) for each in self._models.values() for module in each.modules()):
            raise ConfigurationError(
                "watch() takes models that torch.distributed.fsdp.fully_shard shards, not FullyShardedDataParallel"
            )
        self._sharding = Sharding.of([owned.parameter for owned in self._owned])
        self._rank = process_rank()
        self._with_activations = activations
        self.statistics = (*STATISTICS, *ACTIVATION_STATISTICS) if activations else STATISTICS
        self._described_optimizers: list[Optimizer] = []
        self._training: Training | None = None
        self._training_is_of: object = None
        self._clips_gradients: bool | None = None
        self._max_norm: float | None = None
        self._is_described = False
        self._is_first_step = True
        self._has_early = False
        self._is_waiting_for_graph = False
        self._steps = _Steps(self)
        self._update: _Update | None = None
        self._untold: set[int] = set()  # ids of optimizers whose state does not tell their updates
        self._turn = 0
        self._scale = _scale_of(self._scaler)
        self._handles: list[RemovableHandle] = []
        self._activations: ActivationMeter | None = None

    @property
    def is_follower(self) -> bool:
        """Whether another process speaks for this one too: it is not the first of those that train together."""
        return self._rank > 0

    @property
    def has_others(self) -> bool:
        """Whether other processes train with this one."""
        return process_count() > 1

    @property
    def is_needed(self) -> bool:
        """Whether this process has to measure at all: a follower only where the first process needs its part."""
        return not self.is_follower or self._sharding is not None

    def begin(self, *, book: LayerRegistry, sampler: Sampler, before_first_step: Callable[[], None]) -> None:
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
        self._clock = sampler.clock
        if self._sharding is not None:
            sampler.follow_first_process()
        self._first_batch = FirstBatch(next(iter(self._models.values())))
        self._first_target = FirstTarget()
        self._first_graphs = [FirstGraph(model, self._take_graph) for model in self._models.values()]
        if self._with_activations:
            self._activations = ActivationMeter(
                list(self._models.values()), self._owned, sampler, self._seen_followers, self._guard
            )
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
        self._first_target.close()
        for graph in self._first_graphs:
            graph.close()
        if self._activations is not None:
            self._activations.close()
        clipping.ignore(self)
        self._steps, self._update = _Steps(self), None
        for slot in self._slots.values():
            slot.early = None

    # --- what the run asks --------------------------------------------------------------------------------------------

    def describe(self) -> None:
        """Add the layers to the book, as they are before the first update."""
        if self._is_described:
            return
        self._is_described = True
        try:
            self._describe_all()
        except Exception as error:
            self._give_up("the model could not be described", error)

    def training(self) -> Training | None:
        """Return what is known of how the models train."""
        return self._training

    def finish_step(self) -> _Steps:
        """Return what was measured since the last call."""
        taken, self._steps = self._steps, _Steps(self)
        try:
            if not self._is_described:
                self.describe()
            if self._is_first_step:
                self._is_first_step = False
                self._first_target.close()
            if self._has_early:
                self._has_early = False
                for slot in self._slots.values():
                    slot.early = None
            if self._activations is not None:
                self._activations.forget()
            if self._scaler is not None:
                scale_before, self._scale = self._scale, _scale_of(self._scaler)
                taken.scale_before, taken.scale_after = scale_before, self._scale
        except Exception as error:
            self._give_up("a step could not be taken", error)
        return taken

    def start_reading(self, number: Any) -> PendingNumber | float | None:
        """Return a tensor with one element as a number, or start copying it to the host."""
        if type(number) is Tensor and number.is_cpu and number.ndim == 0:
            value: object = number.item()  # not tolist(): its code is colder, optimizers themselves call item()
            return value if isinstance(value, float) else None
        if not isinstance(number, Tensor) or number.is_cpu or number.numel() != 1:
            return None
        return _PendingTensor(PendingArray(number.detach().reshape(1)))

    def clip(self, max_norm: float) -> None:
        """Limit the norm of each optimizer's gradients from its next step on, after they were measured."""
        self._max_norm = max_norm

    def distrust_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure the updates of an optimizer by copies of the weights from now on: something else does its work."""
        self._untold.add(id(optimizer))

    # --- what the training does ---------------------------------------------------------------------------------------

    def before_clipping(self, parameters: list[Tensor]) -> None:
        """Measure gradients that are about to be clipped."""
        self._guard("clipping could not be observed", self._look_before_clipping, parameters)

    def after_clipping(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:
        """Remember that what changed the gradients was clipping, and by how much."""
        self._guard("clipping could not be observed", self._look_after_clipping, parameters, coefficient)

    def _look_before_clipping(self, parameters: list[Tensor]) -> None:
        if not self._sampler.is_sampling and self._clips_gradients:
            return
        slots = [slot for p in parameters if (slot := self._slots.get(id(p))) is not None]
        if not slots:
            return
        self._clips_gradients = True
        if not self._sampler.is_sampling:
            return
        self._before_first_step()
        with torch.no_grad():
            fresh = [slot for slot in slots if slot.parameter.grad is not None and not slot.is_early_valid()]
            for group in _by_device(fresh):
                array = measure_gradients([_gradient_of(slot) for slot in group])
                for row, slot in enumerate(group):
                    slot.early = _Early(array, row, _gradient_of(slot))
                    self._has_early = True

    def _look_after_clipping(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:
        slots = [slot for p in parameters if (slot := self._slots.get(id(p))) is not None]
        for slot in slots:
            if slot.early is not None:
                slot.early.version = slot.early.gradient._version
        if slots and coefficient is not None and (self._sampler.is_sampling or coefficient.device.type == "cpu"):
            self._steps.note_coefficient(_host(coefficient))

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._guard("a step could not be measured", self._look_before_step, optimizer, args, kwargs)

    def _after_step(self, optimizer: torch.optim.Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        if self._update is not None or not self._is_described:
            self._guard("a step could not be measured", self._look_after_step, optimizer)

    def _look_before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        # A closure computes the gradients during the step: then they are there afterwards only.
        has_closure = any(callable(value) for value in (*args[1:], *kwargs.values()))
        if not self._is_described:
            if has_closure:
                self._is_waiting_for_graph = True  # the closure calls the model: a moment when more is known
            else:
                self._before_first_step()
        if self._clips_gradients is None:
            self._clips_gradients = False
        self._steps.note(optimizer)
        self._update = None
        if not self._sampler.is_sampling and self._max_norm is None:
            return
        with torch.no_grad():
            if self._sampler.is_sampling:
                slots, groups = self._slots_of(optimizer, needs_gradient=not has_closure)
                update = _Update(has_closure, _Steps(self) if self._sharding is not None else self._steps)
                if not has_closure:
                    self._take_gradients(update.steps, slots, _tensor_or_none(optimizer, "grad_scale"))
                self._turn += 1
                trusts_state = id(optimizer) not in self._untold
                for at in _by_device(slots):
                    measurement = UpdateMeasurement(
                        optimizer,
                        [groups[id(slot)] for slot in at],
                        [slot.parameter for slot in at],
                        has_gradients=not has_closure,
                        trusts_state=trusts_state,
                        turn=self._turn,
                    )
                    update.measurements.append((at, measurement))
                self._update = update
            if self._max_norm is not None and not has_closure:
                self._clip(optimizer, self._max_norm)

    def _look_after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._before_first_step()
        update, self._update = self._update, None
        if update is None:
            return
        is_told = True
        with torch.no_grad():
            try:
                self._take_update(update)
            except UnknownUpdate as error:
                is_told = False
                self._untold.add(id(optimizer))
                logger.info("gradmedic: %s is measured by copies of the weights: %s", type(optimizer).__name__, error)
            if self._sharding is not None:
                self._reduce(self._sharding, update, is_told=is_told)
            elif not is_told:
                self._steps.discard()
            found_inf = _tensor_or_none(optimizer, "found_inf")
            if found_inf is not None:
                self._steps.found_inf.append(_host(found_inf))

    # --- measuring ----------------------------------------------------------------------------------------------------

    def _take_gradients(self, steps: _Steps, slots: Sequence[_Slot], scale: Tensor | None) -> None:
        fresh = []
        early: dict[int, list[_Slot]] = {}
        for slot in slots:
            if slot.early is not None and slot.is_early_valid():
                early.setdefault(id(slot.early.array), []).append(slot)
            else:
                fresh.append(slot)
        for group in early.values():
            measured = [slot.early for slot in group if slot.early is not None]
            steps.add(group, _GRADIENT, measured[0].array, np.array([each.row for each in measured]))
            for slot in group:
                slot.early = None
        for group in _by_device(fresh):
            steps.add(group, _GRADIENT, measure_gradients([_gradient_of(slot) for slot in group], scale))

    def _take_update(self, update: _Update) -> None:
        for group, measurement in update.measurements:
            rows = list(range(len(group)))
            if update.has_closure:
                rows = [row for row in rows if group[row].parameter.grad is not None]
                self._take_gradients(update.steps, [group[row] for row in rows], None)
            if not rows:
                continue
            touched = [group[row] for row in rows]
            update.steps.add(touched, _WEIGHT, measurement.weight_norms, np.array(rows))
            if self._activations is not None:
                update.steps.add(touched, _ACTIVATION, self._activations.read([slot.parameter for slot in touched]))
            for measured, norms in measurement.finish(rows):
                update.steps.add([group[row] for row in measured], _UPDATE, norms)

    def _reduce(self, sharding: Sharding, update: _Update, *, is_told: bool) -> None:
        """Make whole statistics of those that each process has, together with the other processes."""
        slots = [slot for group, _ in update.measurements for slot in group]
        slots = [slot for slot in slots if slot.parameter.grad is not None]
        table = update.steps.table(slots)
        reduced = sharding.reduce(
            table, [slot.parameter for slot in slots], interval=self._sampler.choose_interval(), has_failed=not is_told
        )
        whole = _Whole(reduced)
        self._sampler.receive_interval(whole.read_interval)
        self._steps.add(slots, slice(None), whole)

    def _clip(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return
        total = torch.nn.utils.get_total_norm(gradients)
        scale = _tensor_or_none(optimizer, "grad_scale")
        limit = max_norm if scale is None else max_norm * scale.to(total.device)
        coefficient = torch.clamp(limit / (total + CLIP_EPSILON), max=1.0).nan_to_num(0.0)
        for gradient in gradients:
            if gradient.layout == torch.strided:
                gradient.mul_(coefficient.to(gradient.device)).nan_to_num_(0.0, 0.0, 0.0)
            else:
                gradient.mul_(coefficient.to(gradient.device))
        if self._sampler.is_sampling or coefficient.device.type == "cpu":
            self._steps.note_coefficient(_host(coefficient))

    def _slots_of(
        self, optimizer: torch.optim.Optimizer, *, needs_gradient: bool
    ) -> tuple[list[_Slot], dict[int, Mapping[str, Any]]]:
        found: list[_Slot] = []
        groups: dict[int, Mapping[str, Any]] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                slot = self._slots.get(id(parameter)) or self._add_slot(parameter)
                if parameter.grad is not None or (parameter.requires_grad and not needs_gradient):
                    found.append(slot)
                    groups[id(slot)] = group
        return found, groups

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

    # --- describing ---------------------------------------------------------------------------------------------------

    def _describe_all(self) -> None:
        updated = {id(p) for p in self._updated_parameters()}
        layers = self._describe_layers(self._owned, updated)
        for owned, layer in zip(self._owned, layers, strict=True):
            self._slots[id(owned.parameter)].position = self._book.add(layer)
        self._described_optimizers = [describe_optimizer(optimizer) for optimizer in self._optimizers]

    def _describe_layers(self, owned: list[Owned], updated: set[int]) -> list[Layer]:
        return describe_layers(owned, list(self._models.values()), updated, self._seen_followers())

    def _seen_followers(self) -> dict[int, Follower]:
        if len(self._first_graphs) == 1:
            return self._first_graphs[0].followers
        seen: dict[int, Follower] = {}
        for graph in self._first_graphs:
            seen.update(graph.followers)
        return seen

    def _take_graph(self) -> None:
        if self._is_waiting_for_graph:
            self._before_first_step()

    def _updated_parameters(self) -> Iterator[Tensor]:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                yield from group["params"]

    def _update_training(self) -> None:
        is_of = (self._clips_gradients, self._first_batch.is_over, self._first_target.rms)
        if is_of != self._training_is_of:
            self._training_is_of = is_of
            self._training = describe_training(
                self._described_optimizers,
                precision_of([o.parameter for o in self._owned if not is_lazy(o.parameter)], self._first_batch),
                self._first_batch,
                target_rms=self._first_target.rms,
                clips_gradients=self._clips_gradients,
            )

    # --- safety -------------------------------------------------------------------------------------------------------

    def _guard(self, what: str, look: Callable[..., None], *arguments: Any) -> None:
        """Account for the time that looking takes; turn an error of ours into a warning."""
        begun = self._clock()
        try:
            look(*arguments)
        except Exception as error:
            self._give_up(what, error)
        finally:
            self._sampler.add_cost(self._clock() - begun)

    def _give_up(self, what: str, error: Exception) -> None:
        """Observe nothing more."""
        self.close()
        logger.warning("gradmedic: %s, so this model is no longer watched: %r", what, error)


class _Early:
    """Statistics of a gradient that was measured before it was clipped."""

    __slots__ = ("array", "gradient", "row", "version")

    def __init__(self, array: MeasuredArray, row: int, gradient: Tensor) -> None:
        self.array = array
        self.row = row
        self.gradient = gradient
        self.version = gradient._version


class _Slot:
    """A parameter under observation."""

    __slots__ = ("early", "parameter", "position")

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.position = -1
        self.early: _Early | None = None

    def is_early_valid(self) -> bool:
        """Whether nothing but clipping changed the gradient since it was measured."""
        early = self.early
        return early is not None and early.gradient is self.parameter.grad and early.version == early.gradient._version


class _Update:
    """An optimizer's step that is under way."""

    def __init__(self, has_closure: bool, steps: _Steps) -> None:
        self.has_closure = has_closure
        self.steps = steps
        """What takes its statistics."""
        self.measurements: list[tuple[list[_Slot], UpdateMeasurement]] = []


@dataclass(frozen=True, slots=True)
class _Part:
    """Some statistics of some layers."""

    positions: NDArray[np.int32]
    columns: slice
    array: MeasuredArray
    rows: NDArray[np.int_] | None


class _Steps:
    """What happened since the last `log()`, usually one optimizer step; what is measured may still be on its way."""

    __slots__ = (
        "_parts", "_watch", "coefficients", "found_inf", "has_stepped", "learning_rate", "scale_after", "scale_before",
    )  # fmt: skip

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._parts: list[_Part] = []
        self.has_stepped = False
        self.learning_rate: float | None = None
        self.coefficients: list[MeasuredArray] = []
        self.found_inf: list[MeasuredArray] = []
        self.scale_before: MeasuredArray | None = None
        self.scale_after: MeasuredArray | None = None

    def note(self, optimizer: torch.optim.Optimizer) -> None:
        """Take in that an optimizer steps."""
        self.has_stepped = True
        rates = [rate for group in optimizer.param_groups if (rate := number_at_hand(group.get("lr"))) is not None]
        if self.learning_rate is not None:
            rates.append(self.learning_rate)
        self.learning_rate = max(rates, default=None)

    def note_coefficient(self, coefficient: MeasuredArray) -> None:
        """Take in by how much gradients were clipped."""
        if len(self.coefficients) >= _MOST_HELD:
            self._fold_coefficients()
        self.coefficients.append(coefficient)

    def add(
        self, slots: Sequence[_Slot], columns: slice, array: MeasuredArray, rows: NDArray[np.int_] | None = None
    ) -> None:
        """Take in some statistics of some layers, in these rows of an array; later ones replace earlier ones."""
        if len(self._parts) >= _MOST_HELD:
            self._fold()
        positions = np.fromiter((slot.position for slot in slots), dtype=np.int32, count=len(slots))
        self._parts.append(_Part(positions, columns, array, rows))

    def discard(self) -> None:
        """Forget the statistics: they cannot be trusted."""
        self._parts.clear()

    def table(self, slots: Sequence[_Slot]) -> Tensor:
        """Return `[slot, statistic]` on the device where it was measured; each part lies in the order of its slots."""
        places = {slot.position: row for row, slot in enumerate(slots)}
        table: Tensor | None = None
        for part in self._parts:
            measured = part.array.tensor()
            measured = measured.reshape(len(measured), -1)
            if part.rows is not None:
                measured = measured[torch.from_numpy(part.rows).to(measured.device)]
            if table is None:
                table = measured.new_zeros((len(slots), len(self._watch.statistics)))
            rows = torch.tensor([places[position] for position in part.positions.tolist()], device=table.device)
            table[rows, part.columns] = measured.to(table)
        return torch.zeros((len(slots), len(self._watch.statistics))) if table is None else table

    def read(self) -> Measurement:
        """Return the measurement; see `gradmedic.recording.instrumentation.PendingMeasurement`."""
        self._watch._update_training()
        skipped = any(array.read().max() > 0 for array in self.found_inf)
        scale = None
        if self.scale_before is not None and self.scale_after is not None:
            scale, scale_after = float(self.scale_before.read()[0]), float(self.scale_after.read()[0])
            skipped = skipped or (not self.has_stepped and scale_after < scale)
        coefficients = [float(array.read()[0]) for array in self.coefficients]
        return Measurement(
            row=None if skipped else self.row(),
            learning_rate=self.learning_rate,
            loss_scale=scale,
            clip_coefficient=float(np.min(coefficients)) if coefficients else None,  # NaN if any is
            skipped=skipped,
        )

    def row(self) -> Row | None:
        """Return the statistics of all layers that were touched; of several optimizer steps, the last.

        Only `nonfinite_count` is that of the worst one.
        """
        if not self._parts or any(part.array.read().size == 0 for part in self._parts):
            return None
        touched, values = self._join()
        return Row(self._watch.statistics, touched, to_float32(values))

    def _fold(self) -> None:
        """Keep of what is held only what will count in the end."""
        touched, values = self._join()
        self._parts = [_Part(touched, slice(None), HostArray(values), None)]
        self._fold_coefficients()
        if self.found_inf:
            self.found_inf = [HostArray(np.max([array.read() for array in self.found_inf], axis=0))]

    def _fold_coefficients(self) -> None:
        if self.coefficients:
            self.coefficients = [HostArray(np.min([array.read() for array in self.coefficients], axis=0))]

    def _join(self) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        first = self._parts[0].positions
        if all(np.array_equal(part.positions, first) for part in self._parts):
            touched, places = first, slice(None)  # the usual case, and several times faster
        else:
            touched = np.unique(np.concatenate([part.positions for part in self._parts]))
            places = None
        values = np.zeros((len(touched), len(self._watch.statistics)))
        worst = np.zeros(len(touched))
        for part in self._parts:
            array = part.array.read()
            array = array.reshape(len(array), -1)
            at = np.searchsorted(touched, part.positions) if places is None else places
            values[at, part.columns] = array if part.rows is None else array[part.rows]
            np.maximum(worst, values[:, _NONFINITE], out=worst)
        values[:, _NONFINITE] = worst
        return touched, values


class _Whole:
    """A table that was reduced over all processes, and what came with it; empty if the measurement failed somewhere."""

    def __init__(self, reduced: Reduced) -> None:
        self._table = _host_array(reduced.table)
        self._signals = _host_array(reduced.signals)
        self.is_ready = self._table.is_ready

    def read(self) -> NDArray[np.float64]:
        table = self._table.read()
        return table if self._signals.read()[1] == 0 else np.empty((0, table.shape[1]))

    def tensor(self) -> Tensor:
        return self._table.tensor()

    def read_interval(self) -> int:
        """Return the steps to the next sample, as the first process has it."""
        return round(float(self._signals.read()[0]))


class _PendingTensor:
    """A number on its way from a device."""

    def __init__(self, array: MeasuredArray) -> None:
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


def _unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer that does the work, as `accelerate` and Lightning wrap it."""
    inner = getattr(optimizer, "optimizer", None)
    return _unwrapped(inner) if isinstance(inner, torch.optim.Optimizer) else optimizer


def _is_flat_sharded(module: nn.Module) -> bool:
    """Whether FSDP1 made flat parameters of a module's, of which a process holds a part that no layer answers to."""
    return any(base.__name__ == "FullyShardedDataParallel" for base in type(module).__mro__)


def _by_device(slots: Sequence[_Slot]) -> Iterable[list[_Slot]]:
    groups: dict[torch.device, list[_Slot]] = {}
    for slot in slots:
        groups.setdefault(local_part(slot.parameter).device, []).append(slot)
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


def _host(tensor: Tensor) -> MeasuredArray:
    return _host_array(local_part(tensor.detach()).reshape(-1)[:1])


def _host_array(tensor: Tensor) -> MeasuredArray:
    return HostArray(tensor.numpy().astype(np.float64)) if tensor.device.type == "cpu" else PendingArray(tensor)


def _scale_of(scaler: torch.amp.GradScaler | None) -> MeasuredArray | None:
    """Return a loss scaler's scale, without waiting for a device."""
    if scaler is None:
        return None
    tensor = getattr(scaler, "_scale", None)
    if isinstance(tensor, Tensor):
        return _host(tensor)
    return HostArray(np.array([scaler.get_scale()]))
