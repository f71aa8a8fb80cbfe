"""The base class of the meters that measure probes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradmedic.protocol.probes import is_multiplied_by_loss_scale
from gradmedic.torch.probes.part_hooks import PartHooks
from gradmedic.torch.probes.schedule import ProbeSchedule
from gradmedic.torch.statistics import MeasuredArray
from gradmedic.torch.structure import OwnedParameter


@dataclass(frozen=True, slots=True)
class ProbeValues:
    """Some probes of one step. They may still be computed on a device."""

    names: tuple[str, ...]
    """Names of the metrics, from `protocol.probes.name_metric`."""
    array: MeasuredArray
    """The numbers, `[name]`. NaN means that the training computed a NaN."""
    skips_zero: bool = False
    """Whether a zero is no number, because other processes may have measured another one."""

    def read(self, loss_scale: float = 1.0) -> Iterator[tuple[str, float]]:
        """Iterate over names and numbers, waiting for a device if need be. What a loss scaler multiplied is divided."""
        for name, number in zip(self.names, self.array.read().tolist(), strict=True):
            if number or not self.skips_zero:
                yield name, number / loss_scale if is_multiplied_by_loss_scale(name) else number


@dataclass(frozen=True, slots=True)
class ProbeContext:
    """What a meter may read."""

    models: Sequence[nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]
    owned: Sequence[OwnedParameter]
    """The parameters of the models, with their modules and the names of their layers."""
    list_unregistered: Callable[[], Sequence[Tensor]]
    """Returns the parameters that the models compute with and do not register."""
    schedule: ProbeSchedule
    part_hooks: PartHooks
    """Attaches forward hooks to parts of the models."""
    call_safely: Callable[..., None]
    """Calls a function under `no_grad`, counts its time as the cost of probes, and reports its error, which must not
    reach the training. It takes the function and the arguments."""


class ProbeMeter(ABC):
    """Measures some probes.

    A meter may attach hooks to models, and to their parts by `context.part_hooks`. They act only while
    `context.schedule.is_probing` is true, call what they do through `context.call_safely`, and do nothing in code that
    a compiler or tracer records (`is_recorded`). A meter changes no tensor, draws no random number and keeps no graph
    alive.
    """

    def __init__(self, context: ProbeContext) -> None:
        self.context = context

    def before_update(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: B027 (for subclasses that need it)
        """Measure before an optimizer steps. Called on probed steps, under `no_grad`."""

    def after_update(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: B027 (for subclasses that need it)
        """Measure after an optimizer has stepped. Called on probed steps, under `no_grad`."""

    def examine(self) -> Sequence[ProbeValues]:
        """Return numbers that explain a step with a non-finite number, or without any gradient.

        Called at the end of such a step, before `finish_step`, and where the numbers are on a device, at the end of
        every step: the recorder's thread drops what was measured of an ordinary one. So it must be cheap, and must not
        wait for a device. It is called whether the step is probed or not, under `no_grad`.
        """
        return ()

    @abstractmethod
    def finish_step(self) -> Sequence[ProbeValues]:
        """Return what was measured since the last call, and forget it.

        Called at the end of every step, also of those that are not probed: it must be cheap then.
        """

    @abstractmethod
    def close(self) -> None:
        """Remove all hooks."""
