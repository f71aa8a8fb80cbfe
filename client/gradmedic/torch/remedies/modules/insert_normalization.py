"""The remedy that normalizes the outputs of hidden layers, without parameters: `state_dict()` keeps its keys.

Each layer gets a forward hook. Batch normalization keeps its running moments in the hook, for evaluation. A copy of the
model, or one that is saved and loaded, has them too. A `state_dict()` has them in the metadata that torch keeps beside
the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradmedic.torch.remedies.module_remedy import AppliedPlaces, CallRemedy, ModuleContext
from gradmedic.torch.remedies.modules.changed_calls import CallChange
from gradmedic.torch.remedies.modules.places import NO_LAYER, Places
from gradmedic.torch.remedies.modules.remedy_hook import RemedyHook

EPSILON = 1e-5
"""Added to a variance, as in torch's modules. RMS normalization adds the epsilon of the dtype."""
MOMENTUM = 0.1
"""Weight of a new batch in the running moments, as in `torch.nn.BatchNorm1d`."""
_METADATA = "gradmedic_moments"
"""Key of the moments in the metadata of a `state_dict()`."""


class InsertNormalization(CallRemedy):
    """Normalizes hidden layers by `kind`: BatchNorm, LayerNorm or RMSNorm."""

    id = "insert_normalization"
    order = 20

    def __init__(self, parameters: Mapping[str, Any], context: ModuleContext) -> None:
        super().__init__(parameters, context)
        self._hooks: list[Normalize] = []  # of the watched models, not of copies

    def change_calls(
        self, part: nn.Module, places: Places, *, is_copy: bool
    ) -> tuple[AppliedPlaces, Sequence[CallChange]]:
        """Add the hooks."""
        kind = str(self.parameters["kind"])
        layers, reason = places.normalizable, places.explain_none(NO_LAYER, places.not_normalizable)
        if kind == "BatchNorm" and layers:
            # Without gradients, a script may call the model with one example only to find shapes. If it trains on one
            # example, the hook reports it.
            one_example = places.one_example if torch.is_grad_enabled() else set()
            layers = [layer for layer in layers if layer not in places.over_time | one_example]
            reason = "the mean over a batch of time steps includes later ones, and one example has no variance"
        for layer in layers:
            hook = Normalize(kind)
            hook.attach(part.get_submodule(layer))
            if not is_copy:
                self._hooks.append(hook)
        return AppliedPlaces(layers, reason), ()

    @property
    def failure(self) -> str | None:
        """Reason that a batch showed."""
        return next((hook.reason for hook in self._hooks if hook.reason is not None), None)


class Normalize(RemedyHook):
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
        """Why the layer cannot be normalized, as a batch showed."""

    def attach(self, module: nn.Module) -> None:
        """Normalize the output of a layer from now on."""
        module.register_forward_hook(self)
        if self._kind == "BatchNorm":
            module.register_state_dict_post_hook(_SaveMoments(self))  # type: ignore[no-untyped-call]
            module.register_load_state_dict_pre_hook(_LoadMoments(self))  # type: ignore[no-untyped-call]

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
                self.reason = "a batch has one example, and one example has no variance"
                is_training = False  # torch would raise; so the trial ends with this reason
            return functional.batch_norm(
                output, self._mean, self._variance, training=is_training, momentum=MOMENTUM, eps=EPSILON
            )
        if self._kind == "RMSNorm":
            shape = output.shape[1:] if is_convolution else output.shape[-1:]
            return functional.rms_norm(output, shape)
        if is_convolution:
            return functional.group_norm(output, 1, eps=EPSILON)
        return functional.layer_norm(output, output.shape[-1:], eps=EPSILON)


class _SaveMoments:
    """Hook behind `state_dict()` of a layer: adds the moments, not copied, as the tensors are not."""

    def __init__(self, normalize: Normalize) -> None:
        self._normalize = normalize

    def __call__(self, _module: nn.Module, _state: Any, _prefix: str, metadata: dict[str, Any]) -> None:
        metadata[_METADATA] = self._normalize.moments


class _LoadMoments:
    """Hook before `load_state_dict()` of a layer: reads the moments, if the state has any."""

    def __init__(self, normalize: Normalize) -> None:
        self._normalize = normalize

    def __call__(self, module: nn.Module, _state: Any, _prefix: str, metadata: dict[str, Any], *_: Any) -> None:
        if _METADATA in metadata:
            moments, device = metadata[_METADATA], next(module.parameters()).device
            # A copy, because training changes the moments and must not change the state.
            self._normalize.moments = moments and tuple(moment.to(device, copy=True) for moment in moments)
