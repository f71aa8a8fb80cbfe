"""How large the targets of a regression are, which only the loss function is told.

One idea: the regression losses of `torch.nn.functional` are wrapped until the first step is over. They call the
originals with the same arguments; the first target that passes by is measured. A loss that a script writes itself is
not seen.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradmedic.torch.statistics import measure_norms

logger = logging.getLogger("gradmedic")

_LOSSES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")

_waiting: list[FirstTarget] = []
_originals: dict[str, Callable[..., Any]] = {}


class FirstTarget:
    """Waits for the first target of a regression; `rms` is None until there was one."""

    def __init__(self) -> None:
        self.rms: float | None = None
        _waiting.append(self)
        if not _originals:
            for name in _LOSSES:
                _originals[name] = getattr(functional, name)
                setattr(functional, name, _wrap(_originals[name]))

    def close(self) -> None:
        """Wait no longer; with the last that waits, torch is as it was."""
        if self in _waiting:
            _waiting.remove(self)
        if not _waiting:
            for name, original in _originals.items():
                setattr(functional, name, original)
            _originals.clear()


def _wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def loss(
        input: Tensor,  # noqa: A002  # torch's name, by which it may be given
        target: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():
            _look_at(target)
        return original(input, target, *args, **kwargs)

    return loss


def _look_at(target: Tensor) -> None:
    try:
        if target.is_floating_point() and target.numel():
            with torch.no_grad():
                rms = float(measure_norms([target]).read()[0]) / math.sqrt(target.numel())
            for first in _waiting:
                first.rms = rms
                first.close()
    except Exception as error:  # a loss must not fail because of us
        logger.warning("gradmedic: the first targets could not be looked at: %r", error)
        for first in _waiting:
            first.close()
