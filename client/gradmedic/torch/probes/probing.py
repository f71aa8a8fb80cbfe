"""Runs the meters of a watch: it decides when they measure, and keeps the account of what they cost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradmedic.recording.sampler import Sampler
from gradmedic.torch.lockstep import Lockstep
from gradmedic.torch.probes.attention import AttentionMeter
from gradmedic.torch.probes.batch import BatchMeter
from gradmedic.torch.probes.block_flow import BlockFlow
from gradmedic.torch.probes.meter import ProbeContext, ProbeMeter, ProbeValues
from gradmedic.torch.probes.missing_gradients import MissingGradientMeter
from gradmedic.torch.probes.part_hooks import PartHooks
from gradmedic.torch.probes.router_load import RouterLoad
from gradmedic.torch.probes.schedule import ProbeSchedule
from gradmedic.torch.probes.second_moment import SecondMomentMeter
from gradmedic.torch.probes.time_flow import TimeFlow
from gradmedic.torch.probes.unchanged import UnchangedMeter
from gradmedic.torch.probes.unused_gradients import UnusedGradientMeter
from gradmedic.torch.structure import OwnedParameter

logger = logging.getLogger("gradmedic")

PROBE_METERS: tuple[type[ProbeMeter], ...] = (
    AttentionMeter,
    BlockFlow,
    TimeFlow,
    RouterLoad,
    SecondMomentMeter,
    UnchangedMeter,
    UnusedGradientMeter,
    MissingGradientMeter,
    BatchMeter,
)
"""Every meter."""


class Probing:
    """The meters of one watch. An error of a meter ends the probes, neither the watch nor the training.

    Args:
        models: models to observe.
        optimizers: their optimizers.
        owned: the parameters of the models.
        list_unregistered: returns the parameters that the models compute with and do not register.
        sampling: decides which steps are sampled.
        sampler: sampler of the run, for its clock and its account.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        owned: Sequence[OwnedParameter],
        list_unregistered: Callable[[], Sequence[Tensor]],
        sampling: Sampler | Lockstep,
        sampler: Sampler,
    ) -> None:
        self._sampler = sampler
        self._schedule = ProbeSchedule(sampling, None if sampler.is_trial else sampler.clock)
        self._meters: list[ProbeMeter] = []
        self._part_hooks = PartHooks(models)
        context = ProbeContext(
            models, optimizers, owned, list_unregistered, self._schedule, self._part_hooks, self._call_safely
        )
        try:
            for meter in PROBE_METERS:
                self._meters.append(meter(context))
        except Exception as error:
            self._give_up(error)

    def before_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure before an optimizer steps, if the step is probed."""
        if self._schedule.is_probing:
            for meter in self._meters:
                self._call_safely(meter.before_update, optimizer)

    def after_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure after an optimizer has stepped, if the step is probed."""
        if self._schedule.is_probing:
            for meter in self._meters:
                self._call_safely(meter.after_update, optimizer)

    def examine(self) -> list[ProbeValues]:
        """Return numbers that explain a step that is, or may be, out of the ordinary."""
        values: list[ProbeValues] = []
        for meter in self._meters.copy():
            self._call_safely(lambda meter=meter: values.extend(meter.examine()))
        return values

    def finish_step(self) -> list[ProbeValues]:
        """Return what was measured since the last call, and begin the next step."""
        values: list[ProbeValues] = []
        if self._meters:
            self._call_safely(self._finish_meters, values)
        self._schedule.finish_step()
        self._part_hooks.follow_schedule(is_due=self._schedule.is_due)
        return values

    def _finish_meters(self, values: list[ProbeValues]) -> None:
        for meter in self._meters:
            values.extend(meter.finish_step())

    def close(self) -> None:
        """Remove all hooks."""
        meters, self._meters = self._meters, []
        for meter in meters:
            meter.close()
        self._part_hooks.close()

    def _call_safely(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function under `no_grad`, add its time to what probes cost, and turn its error into a warning."""
        clock = self._sampler.clock
        begun = clock()
        try:
            with torch.no_grad():
                function(*arguments)
        except Exception as error:
            self._give_up(error)
        finally:
            seconds = clock() - begun
            self._schedule.add_cost(seconds)
            self._sampler.add_cost(seconds)

    def _give_up(self, error: Exception) -> None:
        self.close()
        logger.warning("gradmedic: the inside of the model is no longer measured: %r", error)
