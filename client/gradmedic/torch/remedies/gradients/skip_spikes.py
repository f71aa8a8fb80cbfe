"""The remedy that does not take steps whose gradient is far larger than usual."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from gradmedic.torch.remedies.step_remedy import StepGradients, StepRemedy

WINDOW = 100
"""Norms of steps that were taken, of which the quantile is computed."""
FEWEST_NORMS = 20
"""Norms that must be known before a step is skipped: a twentieth of them is at least one."""
QUANTILE = 0.95
"""The usual largest norm: one step of twenty is above it."""
MOST_SKIPPED_IN_A_ROW = 5
"""After so many skipped steps in a row the next one is taken: larger gradients are no spike then, but the new level. A
spike comes from one batch, or lasts 1 to 8 steps (Wortsman et al. 2023, section 3.2)."""


class SkipSpikes(StepRemedy):
    """Skips a step if the norm of its gradients is not finite, or above `times_usual` times the usual largest norm.

    The usual largest norm is the 95 % quantile of the last steps that were taken.
    """

    id = "skip_spikes"
    order = 35

    def __init__(self, parameters: Mapping[str, Any], optimizer: Optimizer) -> None:
        super().__init__(parameters, optimizer)
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._skipped_norms: list[float] = []
        """Norms of the steps that were skipped in a row."""

    def prepare_gradients(self, step: StepGradients) -> None:
        """Decide whether the step is skipped."""
        if step.is_skipped:
            return
        norm = float(torch.nn.utils.get_total_norm(step.gradients))
        if self._is_spike(norm):
            if len(self._skipped_norms) < MOST_SKIPPED_IN_A_ROW:
                self._skipped_norms.append(norm)
                self.skipped_steps += 1
                step.is_skipped = True
                return
            self._norms.clear()
            self._norms.extend(value for value in self._skipped_norms if math.isfinite(value))
        self._skipped_norms.clear()
        if math.isfinite(norm):
            self._norms.append(norm)

    def _is_spike(self, norm: float) -> bool:
        if len(self._norms) < FEWEST_NORMS:
            return False
        return not norm <= self.parameters["times_usual"] * float(np.quantile(self._norms, QUANTILE))
