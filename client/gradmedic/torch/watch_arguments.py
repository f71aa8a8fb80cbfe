"""Checks the arguments of `Run.watch()`. The message of an error names what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from gradmedic.exceptions import ConfigurationError

_LONGEST_CHAIN = 16
"""Wrappers around an optimizer that are opened at most."""


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


def check_optimizers(optimizer: Any) -> list[Any]:
    """Return the optimizers, as they were given.

    Raises:
        ConfigurationError: there is something that is no optimizer and wraps none.
    """
    if isinstance(optimizer, Mapping):
        optimizer = list(optimizer.values())
    is_single = isinstance(optimizer, torch.optim.Optimizer) or not isinstance(optimizer, Iterable)
    optimizers = [optimizer] if is_single or isinstance(optimizer, str) else list(optimizer)
    if not optimizers:
        raise ConfigurationError("optimizer is empty: give watch() the optimizer that updates the model")
    for candidate in optimizers:
        inner = unwrap_optimizer(candidate)
        if not isinstance(inner, torch.optim.Optimizer):
            raise ConfigurationError(
                f"optimizer must be a torch.optim.Optimizer or a list of them, not {type(candidate).__name__}: "
                f"{_propose(candidate)}"
            )
        if not hasattr(inner, "_optimizer_step_pre_hooks"):
            raise ConfigurationError(
                f"the steps of {type(inner).__name__} cannot be observed, because it does not call "
                f"Optimizer.__init__: {_propose(inner)}"
            )
    return optimizers


def unwrap_optimizer(optimizer: Any) -> Any:
    """Return the optimizer that does the work, if `accelerate`, Lightning or another wrapper has it as `.optimizer`."""
    for _ in range(_LONGEST_CHAIN):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None or inner is optimizer:
            return optimizer
        if isinstance(optimizer, torch.optim.Optimizer) and not isinstance(inner, torch.optim.Optimizer):
            return optimizer
        optimizer = inner
    return optimizer


def _propose(candidate: Any) -> str:
    """Return what to give to `watch()` in place of something that cannot be watched."""
    if candidate is None:
        return "create the optimizer first, and give it to watch(model, optimizer)"
    if isinstance(candidate, type):
        return f"give an optimizer, for example {candidate.__name__}(model.parameters(), ...), and not its class"
    if isinstance(candidate, torch.Tensor):
        return "give the optimizer that was made with these parameters"
    if isinstance(candidate, nn.Module):
        return "the model comes first, as in watch(model, optimizer)"
    inside = [name for name, value in _attributes(candidate) if isinstance(value, torch.optim.Optimizer)]
    if inside:
        return f"give the one inside it, as in watch(model, optimizer.{inside[0]})"
    return (
        "give the optimizer whose step() the loop calls. A loop without one gives its gradients to "
        "run.log(gradients=...), without watch()"
    )


def _attributes(candidate: Any) -> Iterable[tuple[str, Any]]:
    return getattr(candidate, "__dict__", {}).items()


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
