"""Remedies that change the learning rate of each step. Schedulers of the script see their own rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gradmedic.torch.remedies.step_remedy import StepRemedy


class LimitLearningRate(StepRemedy):
    """Keeps the learning rate at or below `max_learning_rate`, also where the script's schedule is above it."""

    id = "limit_learning_rate"
    order = 5

    def choose_settings(self, group: Mapping[str, Any], steps_taken: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the script's rate, or the limit where that is lower."""
        rate, limit = group["lr"], float(self.parameters["max_learning_rate"])
        return {"lr": rate.clamp(max=limit) if isinstance(rate, Tensor) else min(rate, limit)}


class ScaleLearningRate(StepRemedy):
    """Multiplies the learning rate by `factor`."""

    id = "scale_learning_rate"
    order = 10

    def choose_settings(self, group: Mapping[str, Any], steps_taken: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the lower or higher rate."""
        return {"lr": group["lr"] * float(self.parameters["factor"])}


class WarmUp(StepRemedy):
    """Raises the learning rate linearly over the first `steps` steps."""

    id = "warm_up"
    order = 20

    def choose_settings(self, group: Mapping[str, Any], steps_taken: int) -> Mapping[str, Any]:
        """Return the fraction of the learning rate that this step has."""
        if steps_taken + 1 >= self.parameters["steps"]:
            return {}
        return {"lr": group["lr"] * float((steps_taken + 1) / self.parameters["steps"])}
