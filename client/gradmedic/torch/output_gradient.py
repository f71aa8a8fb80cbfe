"""Measures the gradient of the loss at the outputs of the watched models, on sampled steps.

A hook of each model registers a hook at each output tensor, which is called with its gradient. So the signal that the
loss sends into a model is known apart from what the model makes of it: it is zero if the loss does not depend on the
output, for example because it is detached, masked or satisfied.

The hooks keep nothing alive and change nothing: an output holds its hook, and the hook holds the meter. What a compiler
or a tracer runs is not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradmedic.recording.sampler import Sampler
from gradmedic.torch.first_batch import tensors_in
from gradmedic.torch.lockstep import Lockstep
from gradmedic.torch.module_hooks import attach_forward_hook
from gradmedic.torch.recorded_code import is_recorded
from gradmedic.torch.statistics import HostArray, MeasuredArray, PendingArray, measure_norms


class OutputGradientMeter:
    """Measures the L2 norm of the gradient at all outputs of all forward calls of a step together.

    Args:
        models: models to observe. One that is a part of another one has outputs of its own.
        sampling: decides which steps are measured.
        call_safely: function that calls a function and reports its error, which must not reach the training. It takes
            the message for an error, the function and the arguments.
    """

    def __init__(
        self, models: Sequence[nn.Module], sampling: Sampler | Lockstep, call_safely: Callable[..., None]
    ) -> None:
        self._sampling = sampling
        self._call_safely = call_safely
        self._step = 0
        self._has_output = False
        self._norm = 0.0  # of what is on the host
        self._squares: dict[torch.device, Tensor] = {}  # of what is on devices
        self._hooks = [attach_forward_hook(model, self) for model in models]  # None for a scripted model

    def close(self) -> None:
        """Remove the hooks from the models. Those of outputs do nothing any more."""
        for hook in self._hooks:
            if hook is not None:
                hook.remove()
        self._hooks.clear()
        self.finish_step()

    def finish_step(self) -> Sequence[MeasuredArray]:
        """Return norms whose squares add up to that of the step, and begin the next step.

        They are none if no output was seen, and [0] if the loss sent no gradient to those that were seen.
        """
        self._step += 1
        if not self._has_output:
            return ()
        self._has_output = False
        norms: list[MeasuredArray] = [PendingArray(square.sqrt().reshape(1)) for square in self._squares.values()]
        norms.append(HostArray(np.array([self._norm])))
        self._norm = 0.0
        self._squares.clear()
        return norms

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """Register hooks at the outputs of a model."""
        if is_recorded() or not self._sampling.is_sampling or not torch.is_grad_enabled():
            return
        self._call_safely("the gradient at an output could not be measured", self._follow, output)

    def __reduce__(self) -> tuple[type[_InertHook], tuple[()]]:
        return _InertHook, ()

    def _follow(self, output: Any) -> None:
        step = self._step

        def measure(gradient: Tensor | None) -> None:  # None where the loss needs only others of a module's outputs
            if gradient is not None and step == self._step:
                self._call_safely("the gradient at an output could not be measured", self._add, gradient)

        for tensor in tensors_in(output):
            # A parameter that is returned as it is has no operation behind it: its hook would stay for ever.
            if (
                tensor.requires_grad
                and tensor.grad_fn is not None
                and (tensor.is_floating_point() or tensor.is_complex())
            ):
                self._has_output = True
                tensor.register_hook(measure)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _add(self, gradient: Tensor) -> None:
        if is_recorded() or not gradient.numel():
            return
        norm = measure_norms([gradient])
        if norm.is_ready:
            self._norm = math.hypot(self._norm, float(norm.read()[0]))
            return
        square = norm.tensor().square().sum()
        before = self._squares.get(square.device)
        self._squares[square.device] = square if before is None else before + square


class _InertHook:
    """Takes the place of a meter in a copy of the model, and does nothing."""

    def __call__(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        pass
