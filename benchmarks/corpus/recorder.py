"""Measures seven statistics per tensor and step in float64, by their definitions.

It is a plain, slow reference. The corpus does not use the SDK's code, because it helps to judge that code.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.corpus.ledger import Entry
from benchmarks.corpus.recording import STATISTICS
from gradmedic.protocol.numbers import to_float32


def norm(tensor: Tensor) -> float:
    """Return the L2 norm in float64."""
    return float(tensor.detach().double().norm())


class Recorder:
    """Takes the statistics of each step. All statistics of an absent tensor are NaN."""

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = entries
        self._rows: list[NDArray[np.float64]] = []
        self._before: list[Tensor | None] = []

    def before_update(self, group: int | None) -> bool:
        """Take the statistics of gradients and weights; return whether all gradients are finite.

        `group` is the optimizer that updates in this step, None for all of them.
        """
        row = np.full((len(self._entries), len(STATISTICS)), np.nan)
        self._before = []
        all_finite = True
        for index, entry in enumerate(self._entries):
            gradient = entry.parameter.grad
            absent = entry.group < 0 or gradient is None or (group is not None and entry.group != group)
            if absent or gradient is None:
                self._before.append(None)
                continue
            dense = (gradient.to_dense() if gradient.is_sparse else gradient).detach().double()
            nonfinite = int(torch.count_nonzero(~torch.isfinite(dense)))
            all_finite = all_finite and nonfinite == 0
            row[index, :6] = (
                float(dense.norm()),
                float(dense.mean()),
                float(dense.abs().max()),
                float((dense == 0).double().mean()),
                nonfinite,
                norm(entry.parameter),
            )
            self._before.append(entry.parameter.detach().clone())
        self._rows.append(row)
        return all_finite

    def after_update(self) -> bool:
        """Take the statistics of the update; return whether all weights are finite."""
        row = self._rows[-1]
        all_finite = True
        for index, (entry, before) in enumerate(zip(self._entries, self._before, strict=True)):
            if before is not None:
                change = entry.parameter.detach().double() - before.double()
                row[index, 6] = norm(change)
                all_finite = all_finite and bool(torch.isfinite(entry.parameter).all())
        return all_finite

    def forget_last(self) -> None:
        """Make every tensor absent in the last step."""
        self._rows[-1][:] = np.nan

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the statistics by name, each as `[step, layer]`."""
        stacked = to_float32(np.stack(self._rows))
        return {name: np.ascontiguousarray(stacked[:, :, i]) for i, name in enumerate(STATISTICS)}
