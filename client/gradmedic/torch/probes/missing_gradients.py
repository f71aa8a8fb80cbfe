"""Counts optimizer steps on which no parameter has a gradient, so that nothing changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gradmedic.protocol.probes import name_metric
from gradmedic.torch.probes.meter import ProbeContext, ProbeMeter, ProbeValues
from gradmedic.torch.statistics import HostArray


class MissingGradientMeter(ProbeMeter):
    """Measures `steps_without_gradients`, from the first such step on.

    It looks at no element of a tensor. A step that something else changes the parameters in, as hooks of the backward
    pass do that update a parameter as soon as its gradient is there, does not count.
    """

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self._versions: dict[int, int] = {}
        """Version of each parameter of a probed step, by its id: whatever writes to the parameter raises it."""
        self._has_stepped = self._has_changed = False
        self._steps = 0
        self._was_found = False

    def after_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Look for a gradient, and for parameters that something has written to since the last probe.

        All parameters of the models count: an optimizer may hold copies of them, in another precision or joined.
        """
        del optimizer
        self._has_stepped = True
        for owned in self.context.owned:
            parameter = owned.parameter
            version = parameter._version
            was_written = self._versions.get(id(parameter), version) != version
            self._has_changed = self._has_changed or parameter.grad is not None or was_written
            self._versions[id(parameter)] = version

    def finish_step(self) -> Sequence[ProbeValues]:
        """Return the number of such steps in a row."""
        if not self._has_stepped:
            return ()
        self._steps = 0 if self._has_changed else self._steps + 1
        self._has_stepped = self._has_changed = False
        self._was_found = self._was_found or self._steps > 0
        if not self._was_found:
            return ()
        return (ProbeValues((name_metric("steps_without_gradients"),), HostArray(np.array([float(self._steps)]))),)

    def close(self) -> None:
        """Measure nothing more."""
        self._versions.clear()
