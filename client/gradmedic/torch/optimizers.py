"""Reads the settings of optimizers, without waiting for a device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gradmedic.protocol.runs import Optimizer


def describe_optimizer(optimizer: torch.optim.Optimizer) -> Optimizer:
    """Return name and settings of an optimizer.

    Of several groups, the one with the largest learning rate counts. Of those with this rate, it is the one with the
    largest weight decay: biases and gains often are a group without any.
    """
    group = max(optimizer.param_groups, key=_rank_group, default={})
    betas: tuple[object, ...] = group.get("betas") or ()
    momentum = betas[0] if betas and group.get("momentum") is None else group.get("momentum")
    return Optimizer(
        name=type(optimizer).__name__,
        learning_rate=read_number(group.get("lr")),
        momentum=read_number(momentum),
        weight_decay=read_number(group.get("weight_decay")),
        beta2=read_number(betas[1] if len(betas) > 1 else group.get("alpha")),
        epsilon=read_number(group.get("eps")),
    )


def _rank_group(group: Mapping[str, object]) -> tuple[float, float]:
    return read_number(group.get("lr")) or 0.0, read_number(group.get("weight_decay")) or 0.0


def read_number(setting: object) -> float | None:
    """Return a setting of an optimizer as a number; None if it is no number, or is a tensor on another device."""
    if isinstance(setting, Tensor) and (setting.device.type != "cpu" or setting.numel() != 1):
        return None
    if isinstance(setting, (int, float, Tensor)):
        return float(setting)
    return None


def read_tensor_attribute(optimizer: torch.optim.Optimizer, name: str) -> Tensor | None:
    """Return what a loss scaler sets on a fused optimizer: `grad_scale` or `found_inf`; None if it is not set."""
    value = getattr(optimizer, name, None)
    return value if isinstance(value, Tensor) else None
