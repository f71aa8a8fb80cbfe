"""Measures which weights in low precision no update changes.

A number in bfloat16 has 8 significant bits. An update of less than half of the last one rounds to nothing (Zamirai et
al. 2020, arXiv 2010.06192, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradmedic.protocol.probes import choose_subjects, name_metric
from gradmedic.torch.probes.meter import ProbeContext, ProbeMeter, ProbeValues
from gradmedic.torch.probes.sample import sample_elements
from gradmedic.torch.statistics import local_part, start_copy

LOW_PRECISION = (torch.bfloat16, torch.float16)


class UnchangedMeter(ProbeMeter):
    """Measures `unchanged_share`: what no update has changed from one probe to the next.

    One update alone would not show it. Stochastic rounding and the Kahan sum change few weights with each update, and
    all of them in the long run.
    """

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self._chosen: list[Tensor] | None = None
        self._copies: dict[int, Tensor] = {}  # by the parameter's id
        self._counts: list[Tensor] = []  # [unchanged, with a gradient] of each layer

    def before_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy what was not copied yet."""
        if self._chosen is None:
            self._choose_layers()
        for parameter in self._list_updated(optimizer):
            if id(parameter) not in self._copies:
                self._copies[id(parameter)] = _copy_elements(parameter)

    def after_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Compare with the copies, and copy again."""
        for parameter in self._list_updated(optimizer):
            gradient, before = parameter.grad, self._copies.get(id(parameter))
            after = _copy_elements(parameter)
            self._copies[id(parameter)] = after
            if gradient is None or gradient.layout != torch.strided or before is None or before.shape != after.shape:
                continue
            is_touched = sample_elements(gradient) != 0
            is_unchanged = is_touched & (before == after)
            self._counts.append(torch.stack([is_unchanged.sum(), is_touched.sum()]).float())

    def finish_step(self) -> Sequence[ProbeValues]:
        """Return the share of the step, over all layers on the first device."""
        if not self._counts:
            return ()
        counts, self._counts = self._counts, []
        unchanged, touched = torch.stack([each for each in counts if each.device == counts[0].device]).sum(dim=0)
        share = (unchanged / touched.clamp_min(1)).reshape(1)
        return (ProbeValues((name_metric("unchanged_share"),), start_copy(share)),)

    def close(self) -> None:
        """Forget the copies."""
        self._copies.clear()
        self._counts = []

    def _choose_layers(self) -> None:
        layers = [owned.parameter for owned in self.context.owned if owned.parameter.dtype in LOW_PRECISION]
        matrices = [parameter for parameter in layers if parameter.ndim >= 2]
        self._chosen = choose_subjects(matrices or layers)

    def _list_updated(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """Return the chosen layers that an optimizer updates."""
        if not self._chosen:
            return []
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        return [each for each in self._chosen if id(each) in held and local_part(each).numel()]


def _copy_elements(parameter: Tensor) -> Tensor:
    return sample_elements(parameter).clone()
