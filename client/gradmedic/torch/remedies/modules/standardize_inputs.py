"""The remedy that standardizes the inputs of models, by the moments of the first batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradmedic.torch.remedies.module_remedy import EdgeRemedy
from gradmedic.torch.remedies.modules.moments import Moments, compute_moments


class StandardizeInputs(EdgeRemedy["InputStandardizer"]):
    """Gives each model inputs of zero mean and unit variance."""

    id = "standardize_inputs"

    def add_hook(self, name: str, model: nn.Module) -> None:
        """Add the hook of a model."""
        self.hooks[name] = hook = InputStandardizer(channel=_find_channel(model))
        model.register_forward_pre_hook(hook, with_kwargs=True)


class InputStandardizer:
    """Forward pre-hook of a model: standardizes its first floating-point argument by the moments of the first batch.

    Args:
        channel: dimension of the features, if it is not the usual one.
    """

    def __init__(self, channel: int | None = None) -> None:
        self._channel = channel
        self._argument: int | str | None = None  # position or name
        self._moments: Moments | None = None
        self.reason: str | None = None
        """Why nothing is standardized."""

    @property
    def is_applied(self) -> bool:
        """Whether inputs are standardized."""
        return self._moments is not None and self.reason is None

    def finish_step(self) -> None:
        """Do nothing: the reason is known since the first call."""

    def __deepcopy__(self, memo: dict[int, Any]) -> InputStandardizer:
        return self  # a copy of the model has the same moments, even if it is made before they are known

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the arguments with the standardized one."""
        arguments: dict[int | str, Any] = dict([*enumerate(args), *kwargs.items()])
        if self._moments is None and self.reason is None:
            self._measure(arguments)
        if self._moments is None or self._argument is None or self.reason is not None:
            return None
        batch: Any = arguments.get(self._argument)
        if not _is_real(batch):
            return None
        arguments[self._argument] = (batch - self._moments.mean) / self._moments.deviation
        return tuple(arguments[i] for i in range(len(args))), {name: arguments[name] for name in kwargs}

    def _measure(self, arguments: Mapping[int | str, Any]) -> None:
        """Set the moments, or the reason why there are none."""
        self._argument = _find_first_real(arguments)
        if self._argument is None:
            self.reason = "the model's inputs are not of floating point"
            return
        batch = arguments[self._argument]
        moments = compute_moments(batch, self._channel)
        if moments.mean.numel() == batch.numel():
            if torch.is_grad_enabled():  # without gradients, the call may only find shapes
                self.reason = "the first batch has one example, and one example has no variance"
            return
        if not bool((moments.mean + moments.deviation).isfinite().all()):
            self.reason = "the first inputs are not finite"
        elif moments.are_standard:
            self.reason = "the inputs are standardized already"
        self._moments = moments


def _find_first_real(arguments: Mapping[int | str, Any]) -> int | str | None:
    """Return position or name of the first argument of real numbers. Behind tokens, one of two values is a mask."""
    has_tokens = False
    for key, value in arguments.items():
        if _is_real(value) and not (has_tokens and len(value.unique()) <= 2):
            return key
        has_tokens = has_tokens or isinstance(value, Tensor)
    return None


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 1


def _find_channel(model: nn.Module) -> int | None:
    """Return the dimension of the channels if a model begins with a convolution, which the shape does not show."""
    first = next(
        (module for module in model.modules() if next(module.parameters(recurse=False), None) is not None), None
    )
    return 1 if isinstance(first, nn.modules.conv._ConvNd) else None
