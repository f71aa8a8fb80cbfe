"""Reads the loss scaler of a script."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from gradmedic.exceptions import ConfigurationError
from gradmedic.torch.statistics import HostArray, MeasuredArray, copy_first_element


def find_scaler(
    scaler: torch.amp.GradScaler | None, optimizers: Iterable[torch.optim.Optimizer]
) -> torch.amp.GradScaler | None:
    """Return the loss scaler that is given, or else the one of a wrapped optimizer; None if it is disabled.

    Raises:
        ConfigurationError: it is something else.
    """
    scaler = scaler or next((own for optimizer in optimizers if (own := getattr(optimizer, "scaler", None))), None)
    if scaler is not None and not hasattr(scaler, "get_scale"):
        raise ConfigurationError(f"scaler must be a torch.amp.GradScaler, not {type(scaler).__name__}")
    return scaler if scaler is not None and scaler.is_enabled() else None


def read_scale(scaler: torch.amp.GradScaler | None) -> MeasuredArray | None:
    """Return the scale of a loss scaler, without waiting for a device; None if there is no loss scaler."""
    if scaler is None:
        return None
    scale = getattr(scaler, "_scale", None)
    if isinstance(scale, Tensor):
        return copy_first_element(scale)
    return HostArray(np.array([scaler.get_scale()]))
