"""Measures how large the targets of a regression are, which are arguments of the loss function only.

The regression losses of `torch.nn.functional` are wrapped while there are instances. The wrappers call the originals
with the same arguments, and measure the first target. A loss that a script writes itself is not measured. The wrappers
stay when the first step is over: `torch.compile` would compile again whatever calls a loss that changes.
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

from gradmedic.torch.recorded_code import is_recorded
from gradmedic.torch.statistics import measure_norms

logger = logging.getLogger("gradmedic")

_LOSSES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")

_open: list[FirstTarget] = []
"""The instances that are not closed."""
_waiting: list[FirstTarget] = []
"""Those that have seen no target yet."""
_originals: dict[str, Callable[..., Any]] = {}


class FirstTarget:
    """Measures the first target of a regression; `rms` is None until there was one."""

    def __init__(self) -> None:
        self.rms: float | None = None
        _open.append(self)
        _waiting.append(self)
        if not _originals:
            for name in _LOSSES:
                _originals[name] = getattr(functional, name)
                setattr(functional, name, _wrap(_originals[name]))

    def stop_waiting(self) -> None:
        """Measure no later target."""
        if self in _waiting:
            _waiting.remove(self)

    def close(self) -> None:
        """Stop waiting. After the last instance, torch's functions are the originals again."""
        self.stop_waiting()
        if self in _open:
            _open.remove(self)
        if not _open:
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
        if not is_recorded() and _waiting and torch.is_grad_enabled():
            _measure(target)
        return original(input, target, *args, **kwargs)

    return loss


def _measure(target: Tensor) -> None:
    try:
        if target.is_floating_point() and target.numel():
            with torch.no_grad():
                rms = float(measure_norms([target]).read()[0]) / math.sqrt(target.numel())
            for first in _waiting.copy():  # stop_waiting() removes it
                first.rms = rms
                first.stop_waiting()
    except Exception as error:  # must not reach the script
        logger.warning("gradmedic: the first targets could not be measured: %r", error)
        for first in _waiting.copy():
            first.stop_waiting()
