"""A program: a model on its data, as a training loop sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True, kw_only=True)
class Program:
    """What a builder hands to the training loop, besides what it wrote into the ledger."""

    loss: Callable[[int], Tensor]
    """The loss of a step, on a batch that it draws itself."""
    skill: Callable[[], float]
    """On clean evaluation data: 0 for the constant predictor, 1 for a perfect one."""
    inputs: Tensor | None = None
    """A first batch; None where the input is not of floating point."""
    targets: Tensor | None = None
    turn: Callable[[int], int | None] = lambda step: None  # noqa: ARG005
    """Which optimizer steps; None: all of them at once."""
    after_step: Callable[[int], None] = lambda step: None  # noqa: ARG005
    """What the script does after an update: copy a target network, clamp weights."""
