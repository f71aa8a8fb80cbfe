"""Keeps the running statistics of normalizations, so that a step that is not taken leaves nothing of its batch in them.

The forward pass has added the batch to them already when the gradient shows that it is bad. A single NaN would stay in
them for ever: the training goes on, because it normalizes by the batch, and the evaluation is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

_NAMES = (("running_mean", "running_var"), ("num_batches_tracked",))
"""Names of the statistics, those of one type together: only then is a copy of all of them one call of a device."""


class RunningStatistics:
    """The running statistics of some models.

    Args:
        models: the models. Statistics of modules that are added to them later are not kept.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        modules = {module: None for model in models for module in model.modules() if isinstance(module, _NormBase)}
        self._modules = list(modules)
        self._kept: list[list[Tensor]] = [[] for _ in _NAMES]
        self.keep()

    def keep(self) -> None:
        """Remember the statistics as they are now."""
        for index, names in enumerate(_NAMES):
            tensors = self._list(names)
            if not _fit(tensors, self._kept[index]):
                self._kept[index] = [tensor.clone() for tensor in tensors]
            elif tensors:
                torch._foreach_copy_(self._kept[index], tensors)

    def restore(self) -> None:
        """Write back what was remembered. Nothing changes if other statistics are there by now."""
        for names, kept in zip(_NAMES, self._kept, strict=True):
            tensors = self._list(names)
            if tensors and _fit(tensors, kept):
                torch._foreach_copy_(tensors, kept)

    def _list(self, names: Sequence[str]) -> list[Tensor]:
        """Return the statistics, without their versions: a backward pass to come sees no change (`Tensor.data`)."""
        found = (getattr(module, name, None) for module in self._modules for name in names)
        return [tensor.data for tensor in found if tensor is not None]


def _fit(tensors: Sequence[Tensor], kept: Sequence[Tensor]) -> bool:
    return [each.shape for each in tensors] == [each.shape for each in kept]
