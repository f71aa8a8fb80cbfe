"""The state of the random generators of python, numpy and torch."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class GeneratorState:
    """The state of all generators at one moment."""

    python: Any
    numpy: Any
    torch: Tensor
    devices: list[Tensor]
    """Those of the CUDA devices, empty if none is in use."""

    @classmethod
    def capture(cls) -> GeneratorState:
        """Return the state now. Nothing is drawn."""
        numpy = sys.modules.get("numpy.random")
        is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return cls(
            python=random.getstate(),
            numpy=None if numpy is None else numpy.get_state(),
            torch=torch.get_rng_state(),
            devices=torch.cuda.get_rng_state_all() if is_used else [],
        )

    def restore(self) -> None:
        """Let all generators go on from this state."""
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy.random"].set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.devices:
            torch.cuda.set_rng_state_all(self.devices)
