"""A program: a model on its data, as a training loop sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True, kw_only=True)
class Program:
    """The parts of a program that the training loop needs, besides the tensors in the ledger."""

    loss: Callable[[int], Tensor]
    """Returns the loss of a step, on a batch that it draws itself."""
    skill: Callable[[], float]
    """Returns the skill on clean evaluation data: 0 for the constant predictor, 1 for a perfect one."""
    inputs: Tensor | None = None
    """A first batch; None if the inputs are not floating-point numbers."""
    targets: Tensor | None = None
    turn: Callable[[int], int | None] = lambda step: None  # noqa: ARG005
    """Returns the optimizer that updates in a step; None if all of them do."""
    after_step: Callable[[int], None] = lambda step: None  # noqa: ARG005
    """Is called after an update, for example to copy a target network or to clamp weights."""
