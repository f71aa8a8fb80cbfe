"""What one row of the catalogue of remedies contains: what the remedy changes, its parameters, and code to paste."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from gradmedic.protocol.numbers import is_finite


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberRange:
    """The values of a numeric parameter: numbers between two bounds, both included."""

    minimum: float
    maximum: float
    is_whole: bool = False
    """True if only whole numbers are allowed."""

    def error(self, value: Any) -> str | None:
        """Return why a value is not allowed, None if it is."""
        kinds = (int,) if self.is_whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return f"must be {'a whole number' if self.is_whole else 'a number'}, not {value!r}"
        if not is_finite(value) or not self.minimum <= value <= self.maximum:
            return f"must be from {self.minimum:g} to {self.maximum:g}, not {value!r}"
        return None


@dataclass(frozen=True, slots=True)
class Choice:
    """The values of a parameter that is one of several words."""

    values: tuple[str, ...]

    def error(self, value: Any) -> str | None:
        """Return why a value is not allowed, None if it is."""
        return None if value in self.values else f"must be one of {', '.join(self.values)}, not {value!r}"


class Target(StrEnum):
    """A part of the training that a remedy changes."""

    LEARNING_RATE = "learning_rate"
    """The optimizer's learning rate. The optimizer must have one."""
    WEIGHT_DECAY = "weight_decay"
    """The optimizer's own weight decay."""
    SECOND_MOMENT = "second_moment"
    """The optimizer's average of squared gradients, and the number that is added to its root."""
    GRADIENTS = "gradients"
    """The gradients of a step, before the optimizer uses them."""
    WEIGHTS = "weights"
    """The weights, by another update than the optimizer's own."""
    BACKWARD = "backward"
    """The gradients of signals between modules, on their way back."""
    PARAMETERS = "parameters"
    """The values or the number of a module's parameters, once, before training."""
    SIGNALS = "signals"
    """The signals between modules. They are found during the first forward pass."""
    INPUTS_AND_TARGETS = "inputs_and_targets"
    """The inputs of the model or the targets of the loss."""
    FUNCTIONS = "functions"
    """Functions that the script calls, in the model and outside of it."""
    LOSS = "loss"
    """The loss, before the backward pass."""
    SCRIPT = "script"
    """The training script itself."""


_STEP_TARGETS = frozenset(
    {Target.LEARNING_RATE, Target.WEIGHT_DECAY, Target.SECOND_MOMENT, Target.GRADIENTS, Target.WEIGHTS}
)
"""The targets that an optimizer uses at every step."""


@dataclass(frozen=True, slots=True)
class Code:
    """Code of one framework that applies a remedy. `{name}` stands for the value of a parameter."""

    default: str
    by_value: Mapping[str, str] = field(default_factory=dict)
    """Code for single values of a parameter that is a choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemedyKind:
    """One row of the catalogue."""

    targets: frozenset[Target]
    """The parts of the training that the remedy changes."""
    parameters: Mapping[str, NumberRange | Choice]
    """The allowed values of each parameter, by name."""
    code: Mapping[str, Code]
    """Code to paste, by framework: `torch` always, `keras` and `jax` where they have code of their own."""

    @property
    def works_on_any_optimizer(self) -> bool:
        """Whether the remedy changes only what an optimizer uses at its steps, so that it works on any model."""
        return self.targets <= _STEP_TARGETS

    @property
    def needs_script(self) -> bool:
        """Whether only the script itself can apply the remedy."""
        return Target.SCRIPT in self.targets
