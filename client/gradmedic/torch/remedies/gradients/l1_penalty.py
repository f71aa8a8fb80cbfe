"""The remedy that adds the gradient of an L1 penalty."""

from __future__ import annotations

from gradmedic.torch.remedies.step_remedy import StepGradients, StepRemedy


class L1Penalty(StepRemedy):
    """Adds `strength` times the sign of each weight to its gradient."""

    id = "l1_penalty"
    order = 80
    needs_real_gradients = True

    def change_gradients(self, step: StepGradients) -> None:
        """Add the penalty's gradient."""
        for parameter, gradient in zip(step.parameters, step.gradients, strict=True):
            gradient.add_(parameter.sign(), alpha=self.parameters["strength"])
