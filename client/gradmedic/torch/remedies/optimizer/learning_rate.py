"""Remedies that change the learning rate of each step. Schedulers of the script see their own rates."""

from __future__ import annotations

from gradmedic.torch.remedies.step_remedy import StepRemedy


class ScaleLearningRate(StepRemedy):
    """Multiplies the learning rate by `factor`."""

    id = "scale_learning_rate"
    order = 10

    def learning_rate_factor(self, steps_taken: int) -> float:  # noqa: ARG002
        """Return the factor."""
        return float(self.parameters["factor"])


class WarmUp(StepRemedy):
    """Raises the learning rate linearly over the first `steps` steps."""

    id = "warm_up"
    order = 20

    def learning_rate_factor(self, steps_taken: int) -> float:
        """Return the fraction of the learning rate that this step has."""
        return float(min(1.0, (steps_taken + 1) / self.parameters["steps"]))
