"""Lowers the learning rate of optimizers for a while, by the remedy that reruns use."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from gradmedic.torch.remedies.base import NotApplicable
from gradmedic.torch.remedies.optimizer.learning_rate import ScaleLearningRate
from gradmedic.torch.remedies.optimizer_remedies import OptimizerRemedies

logger = logging.getLogger("gradmedic")


class LoweredRate:
    """Multiplies the learning rate of optimizers by a factor at each of their steps.

    The script and its schedulers see their own rates.
    """

    def __init__(self) -> None:
        self._applied: list[OptimizerRemedies] = []
        self.factor = 1.0
        """Factor of the learning rate."""

    def set(self, factor: float, optimizers: Sequence[Optimizer], models: Sequence[nn.Module]) -> bool:
        """Multiply the rates of some optimizers by `factor` from now on; return whether it works for any of them.

        Args:
            factor: factor of the script's own rate; 1 leaves the rate alone.
            optimizers: the optimizers.
            models: models whose parameters they update.
        """
        self.close()
        if factor == 1.0:
            return True
        for optimizer in optimizers:
            remedy = ScaleLearningRate({"factor": factor}, optimizer)
            try:
                remedies = OptimizerRemedies(optimizer, models, [remedy])
            except NotApplicable as reason:
                logger.warning("gradmedic: a guard cannot lower the learning rate: %s", reason)
                continue
            remedies.attach_before_measurement(is_measured=True)
            remedies.attach_after_measurement()
            self._applied.append(remedies)
        if self._applied:
            self.factor = factor
        return bool(self._applied)

    def close(self) -> None:
        """Leave the optimizers their own rates."""
        while self._applied:
            self._applied.pop().close()
        self.factor = 1.0
