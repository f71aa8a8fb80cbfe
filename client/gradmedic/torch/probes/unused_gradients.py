"""Measures how much of a model has gradients that no optimizer uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gradmedic.protocol.probes import name_metric
from gradmedic.torch.probes.meter import ProbeContext, ProbeMeter, ProbeValues
from gradmedic.torch.statistics import HostArray

NAMES = (name_metric("unused_gradient_share"), name_metric("unregistered_gradient_share"))


class UnusedGradientMeter(ProbeMeter):
    """Measures `unused_gradient_share` and `unregistered_gradient_share`, each from the first such gradient on.

    It looks at no element of a tensor. A target network, whose parameters want gradients and never get any, does not
    count, nor does an unregistered parameter that an optimizer which is not watched changes.
    """

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self._shares: tuple[float, float] | None = None
        self._were_found = [False, False]
        self._versions: dict[int, int] = {}
        """Version of each unregistered parameter at the last probe: whatever writes to the parameter raises it."""

    def after_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the elements that have a gradient, and those of them that no optimizer changes."""
        del optimizer
        held = {
            id(parameter)
            for each in self.context.optimizers
            for group in each.param_groups
            for parameter in group["params"]
        }
        unused, unregistered, total = 0, 0, 0
        for owned in self.context.owned:
            if owned.parameter.grad is not None:
                size = owned.parameter.numel()
                total += size
                unused += 0 if id(owned.parameter) in held else size
        for parameter in self.context.list_unregistered():
            if parameter.grad is not None and id(parameter) not in held:
                version = parameter._version
                is_trained = self._versions.get(id(parameter), version) != version
                self._versions[id(parameter)] = version
                total += parameter.numel()
                unregistered += 0 if is_trained else parameter.numel()
        if total:
            self._shares = unused / total, unregistered / total

    def finish_step(self) -> Sequence[ProbeValues]:
        """Return the shares of the step."""
        shares, self._shares = self._shares, None
        if shares is None:
            return ()
        self._were_found = [found or share > 0 for found, share in zip(self._were_found, shares, strict=True)]
        return [
            ProbeValues((name,), HostArray(np.array([share])))
            for name, share, found in zip(NAMES, shares, self._were_found, strict=True)
            if found
        ]

    def close(self) -> None:
        """Measure nothing more."""
        self._shares = None
