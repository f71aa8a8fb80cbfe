"""Keeps the running statistics of normalizations, so that a step that is not taken leaves nothing of its batch in them.

The forward pass has added the batch to them already when the gradient shows that it is bad. A single NaN would stay in
them for ever: the training goes on, because it normalizes by the batch, and the evaluation is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

_NAMES = ("running_mean", "running_var", "num_batches_tracked")


class RunningStatistics:
    """The running statistics of some models.

    Args:
        models: the models. Statistics of modules that are added to them later are not kept.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        modules = {module: None for model in models for module in model.modules() if isinstance(module, _NormBase)}
        self._modules = list(modules)
        self._kept: list[Tensor] = []
        self.keep()

    def keep(self) -> None:
        """Remember the statistics as they are now."""
        tensors = self._list()
        if [each.shape for each in tensors] != [each.shape for each in self._kept]:
            self._kept = [tensor.clone() for tensor in tensors]
        elif tensors:
            torch._foreach_copy_(self._kept, tensors)

    def restore(self) -> None:
        """Write back what was remembered. Nothing changes if other statistics are there by now."""
        tensors = self._list()
        if tensors and [each.shape for each in tensors] == [each.shape for each in self._kept]:
            torch._foreach_copy_(tensors, self._kept)

    def _list(self) -> list[Tensor]:
        """Return the statistics, without their versions: a backward pass to come sees no change (`Tensor.data`)."""
        found = (getattr(module, name, None) for module in self._modules for name in _NAMES)
        return [tensor.data for tensor in found if tensor is not None]
