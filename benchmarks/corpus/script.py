"""Changes that a script makes to any program: another unit of the loss, frozen layers, rounded weights, noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.corpus.ledger import Ledger
from benchmarks.corpus.program import Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """The changes of a script to its program, besides the recipe."""

    loss_factor: float = 1.0
    """Factor of the loss's unit; -1 simulates a forgotten sign."""
    loss_offset: float = 0.0
    freeze_first: int = 0
    """Number of tensors, from the input on, that do not learn."""
    freeze_by: str = "flag"
    """`flag` (no gradient), `hook` (its gradient is set to zero) or `group` (an optimizer of its own, the second)."""
    weight_grid: float = 0.0
    """Weights are rounded to multiples of this after each update, up or down at random."""
    gradient_noise: float = 0.0
    """Standard deviation of the noise that is added to every gradient (private or distributed training)."""

    def apply(self, program: Program, ledger: Ledger) -> Program:
        """Change a program that has just been built."""
        self._freeze(ledger)
        if self.loss_factor != 1.0 or self.loss_offset:
            own_loss = program.loss
            program.loss = lambda step: own_loss(step) * self.loss_factor + self.loss_offset
        if self.weight_grid:
            own_after_step, parameters = program.after_step, ledger.parameters()

            def round_weights(step: int) -> None:
                own_after_step(step)
                with torch.no_grad():
                    for parameter in parameters:
                        steps = parameter / self.weight_grid
                        parameter.copy_((steps + torch.rand_like(steps)).floor() * self.weight_grid)

            program.after_step = round_weights
        if self.gradient_noise:
            for parameter in ledger.parameters():
                parameter.register_hook(self._with_noise)  # type: ignore[no-untyped-call]
        return program

    def _with_noise(self, gradient: Tensor) -> Tensor:
        return gradient + self.gradient_noise * torch.randn_like(gradient)

    def _freeze(self, ledger: Ledger) -> None:
        for entry in ledger.entries[: self.freeze_first]:
            match self.freeze_by:
                case "flag":
                    entry.parameter.requires_grad_(False)
                    entry.record.frozen, entry.group = True, -1
                case "hook":
                    entry.parameter.register_hook(torch.zeros_like)  # type: ignore[no-untyped-call]
                case "group":
                    entry.group = 1
                case name:
                    raise ValueError(f"unknown way to freeze {name!r}")
