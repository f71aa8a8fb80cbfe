"""Keeps everything as it is that a call of a model may change: buffers, moments, modes and random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from gradmedic.torch.remedies.modules.insert_normalization import Normalize


@contextmanager
def keep_state(models: Sequence[nn.Module]) -> Iterator[None]:
    """Restore what calls of models in this block change.

    These are the buffers of the models and the moments that a remedy keeps, whether each module is in `train()`, and
    the generators of `random`, numpy and torch, on every device.
    """
    modules = list(dict.fromkeys(module for model in models for module in model.modules()))
    modes = [(module, module.training) for module in modules]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    hooks = [hook for module in modules for hook in module._forward_hooks.values() if isinstance(hook, Normalize)]
    moments = [tensor for hook in hooks if hook.moments is not None for tensor in hook.moments]
    moments_before = [tensor.clone() for tensor in moments]
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                buffer.copy_(before)
                module._buffers[name] = buffer
            for tensor, before in zip(moments, moments_before, strict=True):
                tensor.copy_(before)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
