"""Observes torch models whenever their optimizers step.

Hooks of the optimizer run before and after every update, whatever code causes it. Before the update, gradients are as
the optimizer will use them, and weights are as they were. After it, the optimizer's state or a copy of the weights
shows the update. Gradients that the script clips are measured when it clips. These statistics count if nothing but
clipping has changed the gradients since, as their version counters show.

Only sampled steps are measured. Nothing here draws random numbers, or changes a tensor of the training. An error of the
observation ends the observation, not the training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gradmedic.protocol.runs import Optimizer, Training
from gradmedic.recording.instrumentation import PendingNumber
from gradmedic.recording.layers import LayerRegistry
from gradmedic.recording.sampler import Sampler
from gradmedic.torch.activations import ActivationMeter
from gradmedic.torch.agreement import identify_model
from gradmedic.torch.carried_gradients import CarriedGradients
from gradmedic.torch.clipping import add_clipping_observer, remove_clipping_observer
from gradmedic.torch.clipping_meter import ClippingMeter
from gradmedic.torch.columns import (
    ACTIVATION_COLUMNS,
    ACTIVATION_STATISTICS,
    GRADIENT_COLUMNS,
    UPDATE_COLUMNS,
    WATCHED_STATISTICS,
    WEIGHT_COLUMNS,
)
from gradmedic.torch.distributed import Sharding, get_group_rank, get_group_size
from gradmedic.torch.first_batch import FirstBatch
from gradmedic.torch.lockstep import Lockstep, list_all_parameters
from gradmedic.torch.loss_observer import LossObserver
from gradmedic.torch.loss_scaler import find_scaler, read_scale
from gradmedic.torch.nonfinite_check import GradientCheck, add_flags
from gradmedic.torch.optimizer_hooks import OptimizerHooks
from gradmedic.torch.optimizers import describe_optimizer, read_tensor_attribute
from gradmedic.torch.origin.locator import Locator
from gradmedic.torch.output_gradient import OutputGradientMeter
from gradmedic.torch.probes import Probing
from gradmedic.torch.statistics import (
    copy_first_element,
    is_measured_on_host,
    is_nonfinite_on_host,
    local_part,
    measure_gradients,
    start_reading,
)
from gradmedic.torch.step_measurement import OptimizerUpdate, StepMeasurement
from gradmedic.torch.structure import unwrap_model
from gradmedic.torch.training_facts import TrainingFacts
from gradmedic.torch.unwatched_steps import UnwatchedSteps
from gradmedic.torch.update_rules import UnknownUpdate
from gradmedic.torch.updates import UpdateMeasurement
from gradmedic.torch.watch_arguments import check_models, check_optimizers, check_sharding, unwrap_optimizer
from gradmedic.torch.watched_layers import WatchedLayers, WatchedParameter, group_by_device

if TYPE_CHECKING:
    from gradmedic.torch.guards.step_guard import StepGuard

logger = logging.getLogger("gradmedic")


class Watch:
    """Observes models and their optimizers. It is an `Instrumentation` of a run.

    Args:
        model: one model, or several by name.
        optimizer: one optimizer, or several.
        scaler: loss scaler, if there is one.
        prefix: text in front of the names of the layers.
        activations: whether to measure activations too.

    Raises:
        ConfigurationError: an argument cannot be watched.
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
        self.models = check_models(model)
        self.given_optimizers = check_optimizers(optimizer)
        """The optimizers as they were given, perhaps inside wrappers."""
        self.optimizers: list[torch.optim.Optimizer] = [unwrap_optimizer(given) for given in self.given_optimizers]
        """The optimizers that do the work."""
        self.scaler = find_scaler(scaler, self.given_optimizers)
        self._layers = WatchedLayers(self.models, self.optimizers, prefix)
        check_sharding(self.models.values())
        self.sharding = Sharding.from_parameters([owned.parameter for owned in self._layers.owned])
        """How the parameters are sharded over processes; None if each process holds all of them."""
        self._lockstep: Lockstep | None = None
        self._rank = get_group_rank()
        self._measures_activations = activations
        self.statistics = (*WATCHED_STATISTICS, *ACTIVATION_STATISTICS) if activations else WATCHED_STATISTICS
        self._described_optimizers: list[Optimizer] = []
        self._training: Training | None = None
        self._guard: StepGuard | None = None
        self._is_described = False
        self._is_waiting_for_graph = False
        self._measurement = StepMeasurement(self.statistics, self._update_training)
        self._update: OptimizerUpdate | None = None
        self._measured_by_copies: set[int] = set()  # ids of optimizers
        self._update_count = 0
        self._scale = read_scale(self.scaler)
        self._activation_meter: ActivationMeter | None = None
        self._locator: Locator | None = None

    @property
    def is_follower(self) -> bool:
        """Whether this process is not the first of those that train together. The first process sends for all."""
        return self._rank > 0

    @property
    def has_others(self) -> bool:
        """Whether other processes train with this one."""
        return get_group_size() > 1

    @property
    def is_needed(self) -> bool:
        """Whether this process must measure: a follower must only if it holds a part of sharded parameters."""
        return not self.is_follower or self.sharding is not None

    def begin(self, *, layer_registry: LayerRegistry, sampler: Sampler, before_first_step: Callable[[], None]) -> None:
        """Begin to observe.

        Args:
            layer_registry: registry of the run; the layers are added to it.
            sampler: decides which steps are measured.
            before_first_step: function that is called before the first update.

        Raises:
            ConfigurationError: another watched model has layers of these names.
        """
        self._layers.begin(layer_registry, self._describe_if_waiting)
        self._sampler, self._before_first_step = sampler, before_first_step
        self._clock = sampler.clock
        self._sampling: Sampler | Lockstep = sampler
        if self.sharding is not None:
            layers = [(owned.name, owned.parameter.shape) for owned in self._layers.owned]
            self._lockstep = Lockstep(self.sharding, sampler, identify_model(layers, self.statistics))
            self._sampling = self._lockstep
            self._lockstep.begin(self.optimizers)
        self._first_batch = FirstBatch(next(iter(self.models.values())))
        self._loss_observer = LossObserver(self.models.values(), len(self.optimizers))
        self._output_meter = OutputGradientMeter(list(self.models.values()), self._sampling, self._call_safely)
        self._probing = Probing(
            list(self.models.values()),
            self.optimizers,
            self._layers.owned,
            self._layers.list_unregistered,
            self._sampling,
            sampler,
        )
        if self._measures_activations:
            self._activation_meter = ActivationMeter(
                list(self.models.values()), self._layers.owned, self._sampling, self._layers.find_follower,
                self._call_safely,
            )  # fmt: skip
        self._check = None if self._lockstep is not None else GradientCheck(self._layers.owned)
        self._clipping = ClippingMeter(
            self._layers,
            self._sampling,
            self._check,
            sampler,
            before_first_step,
            self._call_safely,
            lambda coefficient: self._measurement.add_clip_coefficient(coefficient),
            lambda watched: add_flags(self._measurement, watched),
        )
        self._carried = CarriedGradients()
        self._facts = TrainingFacts(self._first_batch, self._loss_observer, self._clipping, self._carried, self._layers)
        self._hooks: list[OptimizerHooks | Locator] = []
        self._hooks.append(OptimizerHooks(self.optimizers, self._before_step, self._after_step))
        if self._lockstep is not None:
            self._lockstep.follow_steps(self.optimizers)
            self._hooks.append(OptimizerHooks(self.optimizers, after=self._account_for_step))
        self._unwatched_steps = UnwatchedSteps(
            self.given_optimizers, self.optimizers, self._layers.by_id, [each.parameter for each in self._layers.owned]
        )
        add_clipping_observer(self._clipping)

    def locate_origin(self, find_step: Callable[[], int]) -> None:
        """Find the origin of the first non-finite number. `find_step` returns the number of the step that runs."""
        self._locator = Locator(self.models, self.optimizers, find_step)
        self._hooks.append(self._locator)

    def list_layers(self) -> list[tuple[str, Tensor]]:
        """Return name and parameter of each layer, in the order of the models."""
        return [(owned.name, owned.parameter) for owned in self._layers.owned]

    def guard_steps(self, guard: StepGuard) -> None:
        """Take note of the guard of the optimizers, which runs after the measurement."""
        if self._guard is not None:  # of the watch that this one replaces
            guard.continue_from(self._guard)
        self._guard = guard

    def find_replaced(self, instrumentations: Iterable[object]) -> list[Watch]:
        """Return the watches among some instrumentations that observe one of these models."""
        watches = [each for each in instrumentations if isinstance(each, Watch)]
        mine = {id(unwrap_model(model)[0]) for model in self.models.values()}
        return [watch for watch in watches if mine & {id(unwrap_model(model)[0]) for model in watch.models.values()}]

    def observes(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether this optimizer is watched."""
        return any(own is optimizer for own in self.optimizers)

    def continue_from(self, other: Watch, *, is_same_run: bool) -> None:
        """End another watch; of the same run, take over what it measured since the last `log()`. Called at first."""
        measurement = other.finish_step()
        other.close()
        if other._guard is not None:
            other._guard.close()
        if is_same_run:
            self._guard = other._guard
            if other.statistics == self.statistics:
                self._measurement = measurement

    def close(self) -> None:
        """Stop observing, and leave nothing in models, optimizers and torch."""
        for hooks in self._hooks:
            hooks.close()
        if self._lockstep is not None:
            self._lockstep.leave()
        self._unwatched_steps.close()
        self._carried.close()
        self._layers.release()
        self._first_batch.close()
        self._loss_observer.close()
        self._output_meter.close()
        self._probing.close()
        if self._activation_meter is not None:
            self._activation_meter.close()
        remove_clipping_observer(self._clipping)
        self._measurement, self._update = StepMeasurement(self.statistics, self._update_training), None
        for watched in self._layers.by_id.values():
            watched.unclipped = None

    # --- called by the run --------------------------------------------------------------------------------------------

    def describe(self) -> None:
        """Add the layers to the registry, as they are before the first update."""
        if self._is_described:
            return
        self._is_described = True
        try:
            self._layers.describe()
            self._described_optimizers = [describe_optimizer(optimizer) for optimizer in self.optimizers]
        except Exception as error:
            self._give_up("the model could not be described", error)

    def training(self) -> Training | None:
        """Return what is known of how the models train."""
        return self._training if self._locator is None else self._locator.add_origin(self._training)

    def finish_step(self, loss: Any = None) -> StepMeasurement:
        """Return what was measured since the last call, and begin the next step."""
        measurement, self._measurement = self._measurement, StepMeasurement(self.statistics, self._update_training)
        try:
            if not self._is_described:
                self.describe()
            has_unwatched_step = self._unwatched_steps.finish_log(has_stepped=measurement.has_stepped)
            measurement.is_unwatched = has_unwatched_step and self._sampler.is_sampling
            if not self._loss_observer.is_over:
                self._loss_observer.finish_step(loss)
            if self._locator is not None:
                self._locator.finish_step(loss)
            self._clipping.clear()
            measurement.output_gradient_norms = self._output_meter.finish_step()
            if measurement.may_need_evidence or is_nonfinite_on_host(loss):
                measurement.evidence = self._probing.examine()
            measurement.probes = self._probing.finish_step()
            if self._activation_meter is not None:
                self._activation_meter.clear()
            if self._guard is not None:
                measurement.guard_actions = self._guard.take_actions()
            if self.scaler is not None:
                scale_before, self._scale = self._scale, read_scale(self.scaler)
                measurement.scale_before, measurement.scale_after = scale_before, self._scale
        except Exception as error:
            self._give_up("a step could not be finished", error)
        return measurement

    def start_reading(self, number: Any) -> PendingNumber | float | None:
        """Return a tensor with one element as a number, or start to copy it; None if it is no such tensor."""
        return start_reading(number)

    def measure_updates_by_copies(self, optimizer: torch.optim.Optimizer) -> None:
        """Do not compute the updates of an optimizer from its state: something else moves the weights too."""
        self._measured_by_copies.add(id(optimizer))

    def after_clipping(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:
        """Record that a remedy or a guard clipped gradients, and by how much."""
        self._clipping.after_clipping(parameters, coefficient)

    # --- hooks of the optimizers --------------------------------------------------------------------------------------

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._unwatched_steps.begin_step()
        self._carried.before_step(optimizer)
        self._call_safely("a step could not be measured", self._measure_before_step, optimizer, args, kwargs)

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        is_skipped = self._guard is not None and self._guard.has_skipped(optimizer)
        if self._update is not None or not self._is_described:
            self._call_safely("a step could not be measured", self._measure_after_step, optimizer, is_skipped)
        if is_skipped:
            self._measurement.drop_optimizer_step()
        else:
            self._probing.after_update(optimizer)
        self._carried.after_step(optimizer)
        self._clipping.end_optimizer_step()
        self._unwatched_steps.end_step()
        if self._lockstep is None:
            self._account_for_step(optimizer)

    def _account_for_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the sampler decide on the next step. A lockstep has decided before."""
        if self._sampler.end_optimizer_step((id(self), id(optimizer))) and self._activation_meter is not None:
            self._activation_meter.clear()

    def _is_sampled(self, optimizer: torch.optim.Optimizer) -> bool:
        return self._sampler.is_sampling or self._sampler.completes_sample((id(self), id(optimizer)))

    def _measure_before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        # A closure computes the gradients during the step, so that they are there only after it.
        has_closure = any(callable(value) for value in (*args[1:], *kwargs.values()))
        if not self._is_described:
            if has_closure:
                self._is_waiting_for_graph = True  # the closure calls the model, which shows more of it
            else:
                self._before_first_step()
        self._measurement.add_optimizer_step(optimizer)
        self._probing.before_update(optimizer)
        self._update = None
        if self._check is not None and not has_closure and not self._sampler.is_sampling:
            self._look_for_nonfinite(self._check, optimizer)
        is_sampled = self._is_sampled(optimizer) if self._lockstep is None else self._lockstep.is_due
        if not is_sampled:
            return
        with torch.no_grad():
            touched, groups = self._layers.list_touched(optimizer, needs_gradient=not has_closure)
            update = OptimizerUpdate(
                has_closure,
                self._measurement
                if self._lockstep is None
                else StepMeasurement(self.statistics, self._update_training),
            )
            if not has_closure:
                scale = read_tensor_attribute(optimizer, "grad_scale")
                self._add_gradient_statistics(update.measurement, touched, scale)
            self._update_count += 1
            trusts_state = id(optimizer) not in self._measured_by_copies
            for group in group_by_device(touched):
                update_measurement = UpdateMeasurement(
                    optimizer,
                    [groups[id(watched)] for watched in group],
                    [watched.parameter for watched in group],
                    has_gradients=not has_closure,
                    trusts_state=trusts_state,
                    number=self._update_count,
                )
                update.by_device.append((group, update_measurement))
            self._update = update

    def _measure_after_step(self, optimizer: torch.optim.Optimizer, is_skipped: bool) -> None:
        self._before_first_step()
        update, self._update = self._update, None
        if update is None or (is_skipped and self._lockstep is None):
            return
        is_known = not is_skipped
        with torch.no_grad():
            try:
                if not is_skipped:
                    self._add_update_statistics(update)
            except UnknownUpdate as error:
                is_known = False
                self._measured_by_copies.add(id(optimizer))
                logger.info("gradmedic: %s is measured by copies of the weights: %s", type(optimizer).__name__, error)
            if self._lockstep is not None:
                self._add_reduced_statistics(self._lockstep, optimizer, update, is_known=is_known)
            elif not is_known:
                self._measurement.discard_statistics()
            found_inf = read_tensor_attribute(optimizer, "found_inf")
            if found_inf is not None:
                self._measurement.found_inf.append(copy_first_element(found_inf))

    # --- measuring ----------------------------------------------------------------------------------------------------

    def _look_for_nonfinite(self, check: GradientCheck, optimizer: torch.optim.Optimizer) -> None:
        """Sample this step, although it is not due, if a gradient is found to be non-finite."""
        if self._clipping.is_checked:
            return
        if self._guard is not None and self._guard.reads_norms:
            begun = self._clock()
            is_finite = self._guard.is_finite(optimizer)
            self._sampler.add_cost(begun - self._clock())  # a guard's time is not what sampling costs
            if not is_finite:
                self._sampler.sample_this_step()
            return
        parameters = list_all_parameters(optimizer)
        if not check.is_finite(parameters):
            self._sampler.sample_this_step()
        elif not is_measured_on_host(local_part(parameters[0])):
            watched = [watched for p in parameters if (watched := self._layers.by_id.get(id(p))) is not None]
            add_flags(self._measurement, watched)

    def _add_gradient_statistics(
        self, measurement: StepMeasurement, touched: Sequence[WatchedParameter], scale: Tensor | None
    ) -> None:
        """Add the statistics of gradients: those from before clipping, or else those of now, divided by a scale."""
        unmeasured = []
        by_array: dict[int, list[WatchedParameter]] = {}
        for watched in touched:
            if watched.unclipped is not None and watched.has_valid_unclipped():
                by_array.setdefault(id(watched.unclipped.array), []).append(watched)
            else:
                unmeasured.append(watched)
        for group in by_array.values():
            unclipped = [watched.unclipped for watched in group if watched.unclipped is not None]
            rows = np.array([gradient.row for gradient in unclipped])
            measurement.add(group, GRADIENT_COLUMNS, unclipped[0].array, rows)
            for watched in group:
                watched.unclipped = None
        for group in group_by_device(unmeasured):
            gradients = [watched.gradient() for watched in group]
            measurement.add(group, GRADIENT_COLUMNS, measure_gradients(gradients, scale))

    def _add_update_statistics(self, update: OptimizerUpdate) -> None:
        """Add what can be measured only after a step.

        Raises:
            UnknownUpdate: the optimizer's state does not show the update.
        """
        for group, update_measurement in update.by_device:
            rows = list(range(len(group)))
            if update.has_closure:
                rows = [row for row in rows if group[row].parameter.grad is not None]
                self._add_gradient_statistics(update.measurement, [group[row] for row in rows], None)
            if not rows:
                continue
            touched = [group[row] for row in rows]
            update.measurement.add(touched, WEIGHT_COLUMNS, update_measurement.weight_norms, np.array(rows))
            if self._activation_meter is not None:
                shares = self._activation_meter.read([watched.parameter for watched in touched])
                update.measurement.add(touched, ACTIVATION_COLUMNS, shares)
            for measured_rows, norms in update_measurement.finish(rows):
                update.measurement.add([group[row] for row in measured_rows], UPDATE_COLUMNS, norms)

    def _add_reduced_statistics(
        self, lockstep: Lockstep, optimizer: torch.optim.Optimizer, update: OptimizerUpdate, *, is_known: bool
    ) -> None:
        """Compute the statistics of whole layers, together with the other processes, and add them."""
        touched = [watched for group, _ in update.by_device for watched in group]
        touched = [watched for watched in touched if watched.parameter.grad is not None]
        parameters = list_all_parameters(optimizer)
        place_of = {id(parameter): place for place, parameter in enumerate(parameters)}
        rows = [place_of[id(watched.parameter)] for watched in touched]
        reduced = lockstep.reduce(update.measurement.join_on_device(touched), rows, parameters, is_known=is_known)
        if not self.is_follower:
            self._measurement.add(touched, slice(None), reduced)

    # --- describing ---------------------------------------------------------------------------------------------------

    def _describe_if_waiting(self) -> None:
        if self._is_waiting_for_graph:
            self._before_first_step()

    def _update_training(self) -> None:
        self._training = self._facts.read(self._described_optimizers)

    # --- errors of the observation ------------------------------------------------------------------------------------

    def _call_safely(self, failure: str, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function, add the time that it takes to what sampling costs, and turn its error into a warning."""
        begun = self._clock()
        try:
            function(*arguments)
        except Exception as error:
            self._give_up(failure, error)
        finally:
            self._sampler.add_cost(self._clock() - begun)

    def _give_up(self, failure: str, error: Exception) -> None:
        """Stop observing."""
        self.close()
        logger.warning("gradmedic: %s, so this model is no longer watched: %r", failure, error)
