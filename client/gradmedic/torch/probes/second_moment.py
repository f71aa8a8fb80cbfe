"""Measures how Adam's second moment stands to the gradient and to epsilon, layer by layer.

A second moment that lags behind makes updates too large or too small (Wortsman et al. 2023, arXiv 2304.13013, section
3.4). An epsilon above its root swallows updates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradmedic.protocol.probes import choose_subjects, name_metric
from gradmedic.torch.optimizers import read_number
from gradmedic.torch.probes.meter import ProbeContext, ProbeMeter, ProbeValues
from gradmedic.torch.probes.sample import sample_elements
from gradmedic.torch.statistics import local_part, start_copy

TINY = 1e-30
"""Lower bound of a root that is a divisor; far below the root of the smallest square in float32."""


class SecondMomentMeter(ProbeMeter):
    """Measures `second_moment_ratio` and `epsilon_share` of optimizers that keep Adam's second moment.

    It reads their state after the step, as it was used. So it is right for loops, `foreach`, fused and capturable
    steps, with `amsgrad` too. Fused steps have divided the gradient by a loss scaler's factor then.
    """

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self._names: dict[int, str] = {}  # of the chosen layers, by the parameter's id
        self._values: list[ProbeValues] = []

    def after_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure the chosen layers that the optimizer has updated."""
        if not any(_is_adam_like(group) for group in optimizer.param_groups):
            return
        if not self._names:
            self._choose_layers()
        by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
        for name, numbers in self._measure(optimizer):
            by_device.setdefault(numbers.device, []).append((name, numbers))
        for measured in by_device.values():
            names = [
                name_metric(probe, layer) for layer, _ in measured for probe in ("second_moment_ratio", "epsilon_share")
            ]
            self._values.append(ProbeValues(tuple(names), start_copy(torch.cat([numbers for _, numbers in measured]))))

    def finish_step(self) -> Sequence[ProbeValues]:
        """Return what was measured since the last call."""
        if not self._values:
            return ()
        values, self._values = self._values, []
        return values

    def close(self) -> None:
        """Forget what was measured."""
        self._values = []

    def _choose_layers(self) -> None:
        """Choose layers of the whole run: weight matrices, where there are any."""
        held = {
            id(parameter)
            for optimizer in self.context.optimizers
            for group in optimizer.param_groups
            if _is_adam_like(group)
            for parameter in group["params"]
        }
        layers = [owned for owned in self.context.owned if id(owned.parameter) in held]
        matrices = [owned for owned in layers if owned.parameter.ndim >= 2]
        self._names = {id(owned.parameter): owned.name for owned in choose_subjects(matrices or layers)}

    def _measure(self, optimizer: torch.optim.Optimizer) -> Iterable[tuple[str, Tensor]]:
        """Iterate over layers and their two numbers, on the device where they are."""
        for group in optimizer.param_groups:
            for parameter in group["params"] if _is_adam_like(group) else ():
                name, gradient = self._names.get(id(parameter)), parameter.grad
                state = optimizer.state.get(parameter)
                if name is None or gradient is None or gradient.layout != torch.strided or not state:
                    continue
                numbers = _measure_layer(group, state, gradient)
                if numbers is not None:
                    yield name, numbers


def _measure_layer(group: Mapping[str, Any], state: Mapping[str, Any], gradient: Tensor) -> Tensor | None:
    """Return ratio and share of one layer; None if the state does not show them."""
    second = state.get("max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq")
    beta, epsilon, step = read_number(group["betas"][1]), read_number(group["eps"]), state.get("step")
    step = step if (number := read_number(step)) is None else number  # a tensor only where it is on a device
    if not isinstance(second, Tensor) or second.shape != gradient.shape or beta is None or epsilon is None:
        return None
    if not isinstance(step, (float, Tensor)) or not local_part(gradient).numel():
        return None
    elements = sample_elements(gradient).float()
    root = (sample_elements(second).float() / (1.0 - beta**step)).sqrt()
    ratio = (elements / root.clamp_min(max(epsilon, TINY))).square().mean().sqrt()
    is_touched = elements != 0
    share = (is_touched & (root < epsilon)).sum() / is_touched.sum().clamp_min(1)
    return torch.stack([ratio, share])


def _is_adam_like(group: Mapping[str, Any]) -> bool:
    return len(group.get("betas") or ()) == 2 and "eps" in group
