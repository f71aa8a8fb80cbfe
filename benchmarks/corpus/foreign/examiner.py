"""The examiner: it follows a training beside the SDK and notes the outcome, from which the labels follow.

It reads whether losses, gradients and weights are finite, and the skill at a few steps. It measures no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

CHECKPOINTS: Final = 10
"""Number of steps at which the skill is measured before the end."""
STEPS_AFTER_DEATH: Final = 40
"""A training is stopped so many steps after a weight turned non-finite."""
LASTING: Final = 20
"""A training whose last so many losses are non-finite has died, even if its weights are finite."""


class TrainingEndedError(Exception):
    """The examiner has seen enough."""


class Examiner:
    """Notes the outcome of one training.

    Args:
        steps: number of steps of the training.
    """

    def __init__(self, steps: int) -> None:
        self.losses: list[float] = []
        self.skills: list[tuple[int, float]] = []
        """Skill by step, at the checkpoints."""
        self.measure_skill: Callable[[], float] = lambda: -math.inf
        self.first_nonfinite: int | None = None
        """First step with a non-finite loss, gradient that was used, or weight."""
        self.nonfinite_gradients: list[str] = []
        """Layers with a non-finite gradient in that step."""
        self.finite_gradients: list[str] = []
        """Layers with a finite gradient in that step, where another layer had a non-finite one."""
        self.weights_died_at: int | None = None
        self._every = max(1, steps // CHECKPOINTS)
        self._models: list[tuple[str, nn.Module]] = []
        self._hook = register_optimizer_step_pre_hook(self._before_update)
        self._before_clipping: tuple[list[str], list[str]] | None = None

    def watch(self, model: nn.Module, prefix: str = "") -> None:
        """Follow the weights of a model, whose layers have names with a prefix."""
        self._models.append((prefix, model))

    def close(self) -> None:
        """Stop following."""
        self._hook.remove()

    def log(self, loss: Any) -> None:
        """Note the loss of a step.

        Raises:
            TrainingEndedError: the weights have been non-finite for some steps.
        """
        value = float(loss.detach()) if isinstance(loss, Tensor) else float(loss)
        step = len(self.losses)
        self.losses.append(value)
        finite_weights = all(
            bool(torch.isfinite(parameter.detach().sum())) or bool(torch.isfinite(parameter.detach()).all())
            for parameter in self._parameters()
        )
        if self.first_nonfinite is None and not (math.isfinite(value) and finite_weights):
            self.first_nonfinite = step
            self._note_layers()
        if not finite_weights and self.weights_died_at is None:
            self.weights_died_at = step
        if finite_weights:
            self.weights_died_at = None
        if (step + 1) % self._every == 0 and finite_weights:
            self.skills.append((step, self.skill()))
        if self.weights_died_at is not None and step >= self.weights_died_at + STEPS_AFTER_DEATH:
            raise TrainingEndedError

    def see_gradients(self) -> None:
        """Note which gradients are finite before the script clips them: clipping makes all of them non-finite."""
        if self.first_nonfinite is None:
            nonfinite, finite = self._sort_layers()
            self._before_clipping = (nonfinite, finite) if nonfinite else None

    @property
    def died(self) -> bool:
        """Whether a weight is non-finite, or every loss of the last steps."""
        last = self.losses[-LASTING:]
        return self.weights_died_at is not None or not any(math.isfinite(loss) for loss in last)

    def skill(self) -> float:
        """Measure the skill; the training does not notice."""
        modes = [(module, module.training) for _, model in self._models for module in model.modules()]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            for _, model in self._models:
                model.eval()
            try:
                skill = float(self.measure_skill())
            except (ValueError, RuntimeError):  # distributions refuse the outputs of a destroyed model
                skill = -math.inf
        for module, mode in modes:
            module.training = mode
        return skill if math.isfinite(skill) else -math.inf

    def _parameters(self) -> list[Tensor]:
        return [parameter for _, model in self._models for parameter in model.parameters()]

    def _before_update(self, optimizer: Any, *_: Any) -> None:
        """Note the layers with a non-finite gradient, before an optimizer uses it."""
        if self.first_nonfinite is not None:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not _is_finite(parameter.grad):
                    self.first_nonfinite = len(self.losses)
                    self._note_layers()
                    return

    def _note_layers(self) -> None:
        nonfinite, finite = self._before_clipping or self._sort_layers()
        self.nonfinite_gradients, self.finite_gradients = nonfinite, finite if nonfinite else []

    def _sort_layers(self) -> tuple[list[str], list[str]]:
        """Return the layers with a non-finite gradient, and those with a finite one."""
        nonfinite: list[str] = []
        finite: list[str] = []
        for prefix, model in self._models:
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    (finite if _is_finite(parameter.grad) else nonfinite).append(prefix + name)
        return nonfinite, finite


def _is_finite(gradient: Tensor) -> bool:
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return bool(torch.isfinite(values.detach()).all())
