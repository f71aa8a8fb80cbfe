"""The remedy that does not take steps whose gradient is far larger than usual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from gradmedic.guard.spike_rule import SpikeRule
from gradmedic.torch.remedies.step_remedy import StepGradients, StepRemedy


class SkipSpikes(StepRemedy):
    """Skips a step if the norm of its gradients is not finite, or far above the usual norms (`SpikeRule`)."""

    id = "skip_spikes"
    order = 35

    def __init__(self, parameters: Mapping[str, Any], optimizer: Optimizer) -> None:
        super().__init__(parameters, optimizer)
        self._rule = SpikeRule(parameters["times_usual"])

    def prepare_gradients(self, step: StepGradients) -> None:
        """Decide whether the step is skipped."""
        if step.is_skipped:
            return
        norm = float(torch.nn.utils.get_total_norm(step.gradients))
        if self._rule.is_spike(norm) and not self._rule.is_exhausted:
            self._rule.note_skipped(norm)
            self.skipped_steps += 1
            step.is_skipped = True
            return
        self._rule.note_taken(norm)
