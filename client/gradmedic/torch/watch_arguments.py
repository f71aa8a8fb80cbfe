"""Checks the arguments of `Run.watch()`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from gradmedic.exceptions import ConfigurationError


def check_models(model: Any) -> dict[str, nn.Module]:
    """Return the models by name. One model that is given alone has an empty name.

    Raises:
        ConfigurationError: there is something else than models.
    """
    models = dict(model) if isinstance(model, Mapping) else {"": model}
    for candidate in models.values():
        if not isinstance(candidate, nn.Module):
            raise ConfigurationError(
                f"model must be a torch.nn.Module or a mapping to some, not {type(candidate).__name__}"
            )
    return models


def check_optimizers(optimizer: Any) -> list[torch.optim.Optimizer]:
    """Return the optimizers.

    Raises:
        ConfigurationError: there is something else than optimizers.
    """
    is_single = isinstance(optimizer, torch.optim.Optimizer) or not isinstance(optimizer, Iterable)
    optimizers = [optimizer] if is_single else list(optimizer)
    for candidate in optimizers:
        if not isinstance(candidate, torch.optim.Optimizer):
            raise ConfigurationError(
                f"optimizer must be a torch.optim.Optimizer or a list of them, not {type(candidate).__name__}"
            )
    return optimizers


def unwrap_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer that does the work, if `accelerate` or Lightning wraps it."""
    inner = getattr(optimizer, "optimizer", None)
    return unwrap_optimizer(inner) if isinstance(inner, torch.optim.Optimizer) else optimizer


def check_sharding(models: Iterable[nn.Module]) -> None:
    """Refuse models that FSDP1 shards: a process holds parts of flat parameters there, which belong to no layer.

    Raises:
        ConfigurationError: one of the models is such a model.
    """
    for model in models:
        for module in model.modules():
            if any(base.__name__ == "FullyShardedDataParallel" for base in type(module).__mro__):
                raise ConfigurationError(
                    "watch() takes models that torch.distributed.fsdp.fully_shard shards, not FullyShardedDataParallel"
                )
