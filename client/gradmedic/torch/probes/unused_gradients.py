"""Measures how much of a model has gradients that no optimizer uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gradmedic.protocol.probes import name_metric
from gradmedic.torch.probes.meter import ProbeContext, ProbeMeter, ProbeValues
from gradmedic.torch.statistics import HostArray


class UnusedGradientMeter(ProbeMeter):
    """Measures `unused_gradient_share`, from the first step on with such a gradient.

    It looks at no element of a tensor. A target network, whose parameters want gradients and never get any, does not
    count.
    """

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self._share: float | None = None
        self._was_found = False

    def after_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the elements that have a gradient, and those of them that an optimizer holds."""
        del optimizer
        held = {
            id(parameter)
            for each in self.context.optimizers
            for group in each.param_groups
            for parameter in group["params"]
        }
        unused, total = 0, 0
        for owned in self.context.owned:
            if owned.parameter.grad is not None:
                size = owned.parameter.numel()
                total += size
                unused += 0 if id(owned.parameter) in held else size
        if total:
            self._was_found = self._was_found or unused > 0
            self._share = unused / total

    def finish_step(self) -> Sequence[ProbeValues]:
        """Return the share of the step."""
        share, self._share = self._share, None
        if share is None or not self._was_found:
            return ()
        return (ProbeValues((name_metric("unused_gradient_share"),), HostArray(np.array([share]))),)

    def close(self) -> None:
        """Measure nothing more."""
        self._share = None
