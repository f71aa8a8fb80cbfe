"""Measures the first batch of the training: how large the inputs are, how many, and in which precision it computes.

The hook acts once. In a copy of the model, or in a file, it does nothing. Compilers and tracers do not see it. A call
that only records the model's operations, or evaluates it, is no batch of the training.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gradmedic.torch.module_hooks import attach_forward_pre_hook
from gradmedic.torch.recorded_code import is_recorded
from gradmedic.torch.statistics import measure_gradients

logger = logging.getLogger("gradmedic")


class FirstBatch:
    """Forward pre-hook of a model; its attributes are None until the model is called.

    `input_rms` and `input_abs_max` are those of the first floating-point tensor among the arguments that is no single
    number, `batch_size` is the first dimension of the first tensor of any type, `autocast` the dtype that autocast
    computes in.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.input_rms: float | None = None
        self.input_abs_max: float | None = None
        self.batch_size: int | None = None
        self.autocast: str | None = None
        self._hook = None if model is None else attach_forward_pre_hook(model, self)

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Measure the arguments of the model's first call."""
        if is_recorded() or self._hook is None:  # in this order: the hook cannot be traced
            return
        if not torch.is_grad_enabled():  # an evaluation, or the check of `torch.jit.trace`
            return
        self.close()
        try:
            with torch.no_grad():
                self._measure([tensor for value in (*args, *kwargs.values()) for tensor in tensors_in(value)])
        except Exception as error:  # must not reach the script
            logger.warning("gradmedic: the first batch could not be measured: %r", error)

    @property
    def is_over(self) -> bool:
        """Whether the first batch was seen, or will not be."""
        return self._hook is None

    def close(self) -> None:
        """Remove the hook."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def __reduce__(self) -> tuple[type[FirstBatch], tuple[None]]:
        return FirstBatch, (None,)

    def _measure(self, tensors: list[Tensor]) -> None:
        if not tensors:
            return
        self.batch_size = tensors[0].shape[0] if tensors[0].ndim else None
        device = tensors[0].device.type
        if torch.is_autocast_enabled(device):
            self.autocast = str(torch.get_autocast_dtype(device)).removeprefix("torch.")
        floats = next(
            (tensor for tensor in tensors if tensor.is_floating_point() and tensor.ndim and tensor.numel()), None
        )
        if floats is not None:
            norm, abs_max, *_ = measure_gradients([floats]).read()[0]
            self.input_rms = float(norm) / math.sqrt(floats.numel())
            self.input_abs_max = float(abs_max)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Iterate over the tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
