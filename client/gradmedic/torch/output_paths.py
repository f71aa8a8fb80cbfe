"""Finds what a script does between the output of its model and a loss function: by comparison of the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_TOLERANCE = 1e-4
"""Relative difference up to which two tensors are equal: the same operation on another layout rounds differently."""

Step = Callable[[Tensor], Tensor]

_PARTS: tuple[Step, ...] = (
    lambda output: output,
    lambda output: output[:, 0],
    lambda output: output[:, -1],
    lambda output: output[:, :-1],
    lambda output: output[:, 1:],
    lambda output: output[0],
    lambda output: output[-1],
    lambda output: output.movedim(1, -1),
    lambda output: output.movedim(-1, 1),
)
"""The whole output, a column, the first or last token, a shift by one token, channels in the last or second place."""
_FUNCTIONS: tuple[Step, ...] = (
    lambda output: output,
    lambda output: output.log_softmax(-1),
    lambda output: output.log_softmax(1),
    lambda output: output.softmax(-1),
    lambda output: output.sigmoid(),
    lambda output: output.log(),
    lambda output: output.exp(),
    lambda output: output.tanh(),
)
"""What turns a layer's output into probabilities, or into their logarithms."""


@dataclass(frozen=True, slots=True)
class OutputPath:
    """Operations that lead from the output of a model to the argument of a loss function."""

    tensor: int
    """Position of the tensor among those of the output."""
    part: int
    """Position of an operation in `_PARTS`."""
    function: int
    """Position of an operation in `_FUNCTIONS`."""
    dtype: torch.dtype
    """Type of the argument."""

    def follow(self, outputs: Sequence[Tensor], shape: torch.Size) -> Tensor | None:
        """Return the argument of this shape that belongs to an output; None if the operations do not fit the output."""
        if self.tensor >= len(outputs):
            return None
        try:
            chosen = _PARTS[self.part](outputs[self.tensor])
            if chosen.numel() != shape.numel():
                return None
            return _FUNCTIONS[self.function](chosen).reshape(shape).to(self.dtype)
        except (IndexError, RuntimeError):  # the output has too few dimensions, or numbers of another kind
            return None

    def leads_to(self, outputs: Sequence[Tensor], argument: Tensor) -> bool:
        """Whether it leads from an output to this argument."""
        reached = self.follow(outputs, argument.shape)
        if reached is None or reached.device != argument.device:
            return False
        return torch.allclose(reached, argument, rtol=_TOLERANCE, atol=0.0, equal_nan=True)


def find_paths(outputs: Sequence[Tensor], argument: Tensor) -> Iterator[OutputPath]:
    """Iterate over the paths from an output to an argument of a loss function."""
    for tensor in range(len(outputs)):
        for part in range(len(_PARTS)):
            for function in range(len(_FUNCTIONS)):
                path = OutputPath(tensor, part, function, argument.dtype)
                if path.leads_to(outputs, argument):
                    yield path
