"""The remedy that skips steps whose gradients are not finite."""

from __future__ import annotations

from gradmedic.torch.remedies.step_remedy import StepGradients, StepRemedy


class SkipNonfiniteSteps(StepRemedy):
    """Skips a step if any element of its gradients is NaN or infinite."""

    id = "skip_nonfinite_steps"
    order = 30

    def prepare_gradients(self, step: StepGradients) -> None:
        """Decide whether the step is skipped."""
        if not step.is_skipped and not all(bool(gradient.isfinite().all()) for gradient in step.gradients):
            step.is_skipped = True
            self.skipped_steps += 1
