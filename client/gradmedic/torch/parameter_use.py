"""What the first forward passes of models show of each parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gradmedic.protocol.runs import LAYER_ORDERS
from gradmedic.torch.followers import Follower

EXECUTION, REGISTRATION = LAYER_ORDERS


@dataclass(frozen=True, slots=True)
class ParameterUse:
    """How a forward pass uses a parameter. None means that it is not known."""

    follower: Follower = field(default_factory=Follower)
    first_use: int = 0
    """Sequence number of the first operation that uses the parameter."""
    count: int = 1
    """Number of operations that use the parameter."""
    manner: str | None = None
    """How all operations use it: `summand` (added to a signal), `part` (one of several joined tensors) or `factor`
    (multiplied with a signal element by element); None for any other use, such as a matrix product."""
    input_normalized: bool | None = None
    """Whether a normalization directly precedes the operation."""
    branch: bool | None = None
    """Whether the operation lies on a branch beside an identity path."""
    block: int | None = None
    """Id of the smallest module that holds the branch and its join."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What the first forward passes of some models showed, all by the ids of parameters and modules."""

    uses: Mapping[int, ParameterUse] = field(default_factory=dict)
    """Use of each parameter that a graph holds."""
    depths: Mapping[int, int] = field(default_factory=dict)
    """Place of each parameter in the order of execution, from 0; empty if it is not known."""
    calls: Mapping[int, int] = field(default_factory=dict)
    """Number of calls of each module."""

    @property
    def layer_order(self) -> str:
        """Source of the layers' depth."""
        return EXECUTION if self.depths else REGISTRATION
