"""Normalizes what a hidden layer returns, without parameters of its own: `state_dict()` keeps its keys.

One idea: a forward hook of the layer. Batch normalization keeps its running moments in the hook, for evaluation; a copy
of the model, or one that is saved and loaded, has them too. So has a `state_dict()`, in the metadata that torch keeps
beside the tensors for each module, where they are in nobody's way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

KINDS = ("BatchNorm", "LayerNorm", "RMSNorm")
EPSILON = 1e-5
"""What torch's own modules add to a variance; RMS normalization adds the dtype's own epsilon."""
MOMENTUM = 0.1
"""By which `torch.nn.BatchNorm1d` moves its running moments."""


_METADATA = "gradmedic_moments"


class Normalize:
    """Forward hook of a linear layer or a convolution.

    Args:
        kind: `BatchNorm` over the examples (and positions), each channel by itself; `LayerNorm` and `RMSNorm` over the
            features of each example, in a convolution over channels and positions.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._mean: Tensor | None = None
        self._variance: Tensor | None = None
        self.reason: str | None = None
        """What was found to stand against it."""

    def attach(self, module: nn.Module) -> None:
        """Normalize the output of a layer from now on."""
        module.register_forward_hook(self)
        if self._kind == "BatchNorm":
            module.register_state_dict_post_hook(_Save(self))  # type: ignore[no-untyped-call]
            module.register_load_state_dict_pre_hook(_Load(self))  # type: ignore[no-untyped-call]

    @property
    def moments(self) -> tuple[Tensor, Tensor] | None:
        """Running mean and variance, None before the first batch."""
        return None if self._mean is None or self._variance is None else (self._mean, self._variance)

    @moments.setter
    def moments(self, moments: tuple[Tensor, Tensor] | None) -> None:
        self._mean, self._variance = (None, None) if moments is None else moments

    def __call__(self, module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        """Return the normalized output."""
        is_convolution = not isinstance(module, nn.Linear)
        if self._kind == "BatchNorm":
            if self._mean is None or self._variance is None:
                channels = output.shape[1]
                dtype = torch.promote_types(output.dtype, torch.float32)
                self._mean = torch.zeros(channels, device=output.device, dtype=dtype)
                self._variance = torch.ones(channels, device=output.device, dtype=dtype)
            is_training = module.training
            if is_training and output.numel() == output.shape[1]:
                self.reason = "a batch has one example, and of one example there are no moments"
                is_training = False  # the trial ends, with this reason and not with torch's error
            return functional.batch_norm(
                output, self._mean, self._variance, training=is_training, momentum=MOMENTUM, eps=EPSILON
            )
        if self._kind == "RMSNorm":
            shape = output.shape[1:] if is_convolution else output.shape[-1:]
            return functional.rms_norm(output, shape)
        if is_convolution:
            return functional.group_norm(output, 1, eps=EPSILON)
        return functional.layer_norm(output, output.shape[-1:], eps=EPSILON)


class _Save:
    """Hook behind `state_dict()` of a layer: its moments go along as its tensors do, not copied."""

    def __init__(self, normalize: Normalize) -> None:
        self._normalize = normalize

    def __call__(self, _module: nn.Module, _state: Any, _prefix: str, metadata: dict[str, Any]) -> None:
        metadata[_METADATA] = self._normalize.moments


class _Load:
    """Hook before `load_state_dict()` of a layer: takes the moments, if the state has any."""

    def __init__(self, normalize: Normalize) -> None:
        self._normalize = normalize

    def __call__(self, module: nn.Module, _state: Any, _prefix: str, metadata: dict[str, Any], *_: Any) -> None:
        if _METADATA in metadata:
            moments, device = metadata[_METADATA], next(module.parameters()).device
            # Of their own: those of the state stay as they are while training goes on.
            self._normalize.moments = moments and tuple(each.to(device, copy=True) for each in moments)
