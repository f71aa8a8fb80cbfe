"""Measures how large the targets of a regression are, which are arguments of the loss function only.

The regression losses of `torch.nn.functional` are wrapped until the first step is over. The wrappers call the originals
with the same arguments, and measure the first target. A loss that a script writes itself is not measured.
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
from gradmedic.torch.tracing import is_traced

logger = logging.getLogger("gradmedic")

_LOSSES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")

_waiting: list[FirstTarget] = []
"""The instances that have seen no target yet."""
_originals: dict[str, Callable[..., Any]] = {}


class FirstTarget:
    """Measures the first target of a regression; `rms` is None until there was one."""

    def __init__(self) -> None:
        self.rms: float | None = None
        _waiting.append(self)
        if not _originals:
            for name in _LOSSES:
                _originals[name] = getattr(functional, name)
                setattr(functional, name, _wrap(_originals[name]))

    def close(self) -> None:
        """Stop waiting. When none waits any more, torch's functions are the originals again."""
        if self in _waiting:
            _waiting.remove(self)
        if not _waiting:
            for name, original in _originals.items():
                setattr(functional, name, original)
            _originals.clear()


def _wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def loss(
        input: Tensor,  # noqa: A002  # torch's name
        target: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if not is_traced() and torch.is_grad_enabled():
            _measure(target)
        return original(input, target, *args, **kwargs)

    return loss


def _measure(target: Tensor) -> None:
    try:
        if target.is_floating_point() and target.numel():
            with torch.no_grad():
                rms = float(measure_norms([target]).read()[0]) / math.sqrt(target.numel())
            for first in _waiting.copy():  # close() removes it
                first.rms = rms
                first.close()
    except Exception as error:  # must not reach the script
        logger.warning("gradmedic: the first targets could not be measured: %r", error)
        for first in _waiting.copy():
            first.close()
