"""The base of remedies that act whenever an optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from gradmedic.protocol.remedy_kind import Target
from gradmedic.torch.remedies.base import TorchRemedy


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerContext:
    """The optimizer that a remedy is to be applied to."""

    optimizer: Optimizer
    models: Sequence[nn.Module]
    """Models whose parameters the optimizer updates."""
    new_optimizer: str | None
    """Class name of the optimizer that another remedy puts in its place."""

    @property
    def name(self) -> str:
        """Class name of the script's optimizer."""
        return type(self.optimizer).__name__


@dataclass(slots=True, kw_only=True)
class StepGradients:
    """The gradients of one optimizer step, which remedies change in place."""

    parameters: list[Tensor]
    """Parameters that have a gradient."""
    gradients: list[Tensor]
    """Gradient of each parameter, not scaled by any loss scaler."""
    is_first_step: bool
    """Whether the optimizer has made no step since the remedies were applied."""
    is_skipped: bool
    """Whether the weights stay as they are in this step. A remedy may set it in `prepare_gradients`."""
    report_clipping: Callable[[Tensor | None], None]
    """Reports that gradients were multiplied by a coefficient, or limited in another way (None)."""


class StepRemedy(TorchRemedy):
    """A remedy that acts at each step of one optimizer. There is one instance per optimizer.

    `OptimizerRemedies` calls the methods in the order in which they stand here. None of them does anything here. At the
    end of a step the remedies act in reverse order: those that began last end first.

    Args:
        parameters: parameters of the remedy, by name.
        optimizer: optimizer that the remedy is applied to.
    """

    needs_real_gradients: ClassVar[bool] = False
    """Whether it cannot be applied to complex parameters."""
    new_optimizer: str | None = None
    """Class name of the optimizer that steps in place of the script's."""

    def __init__(self, parameters: Mapping[str, Any], optimizer: Optimizer) -> None:  # noqa: ARG002  # subclasses read it
        super().__init__(parameters)
        self.failure: str | None = None
        """Reason why the remedy turned out not to be applicable after it was applied."""
        self.skipped_steps = 0
        """Number of steps that the remedy skipped."""

    def reason_against(self, context: OptimizerContext) -> str | None:
        """Return why the remedy cannot be applied to an optimizer, None if it can."""
        optimizer = context.optimizer
        groups = optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        if Target.LEARNING_RATE in self.targets and not all("lr" in group for group in groups):
            return f"{context.name} has no learning rate of its own"
        if any(group.get("capturable") for group in groups):
            return f"{context.name} is captured in a CUDA graph, which hooks do not reach"
        if Target.GRADIENTS in self.targets:  # they must be whole and dense
            if any(hasattr(parameter, "device_mesh") for parameter in parameters):
                return "the parameters are sharded, and a shard does not have the norm of the whole"
            if any(getattr(module, "sparse", False) is True for model in context.models for module in model.modules()):
                return "the model has sparse gradients"
        if self.needs_real_gradients and any(parameter.is_complex() for parameter in parameters):
            return "the model has complex parameters"
        return None

    def start_step(self, optimizer: Optimizer) -> None:
        """Act before anything else in a step, also before gradients are measured."""

    def choose_settings(self, group: Mapping[str, Any], steps_taken: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Return settings that a group of the optimizer has in this step, in place of the script's.

        Args:
            group: group as it is now, with the settings that remedies before this one chose.
            steps_taken: number of steps before this one.
        """
        return {}

    def receive_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Act as soon as the gradients of these parameters are there; a closure may compute them late."""

    def prepare_gradients(self, step: StepGradients) -> None:
        """Change the gradients before it is decided whether the step is skipped."""

    def change_gradients(self, step: StepGradients) -> None:
        """Change the gradients of a step that is not skipped."""

    def change_weights(self, optimizer: Optimizer) -> None:
        """Change the weights right before the optimizer does, in a step that is not skipped."""

    def step_instead(self, optimizer: Optimizer) -> None:
        """Update the weights in place of the script's optimizer, if `new_optimizer` is not None."""

    def finish_step(self, optimizer: Optimizer, *, is_skipped: bool) -> None:
        """Act after everything else in a step."""
