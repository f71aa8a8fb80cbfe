"""Finds the origin of the first non-finite number in a trial of the kind `locate`.

The trial runs as it always does up to a step. From there on, every operation of the script, of the backward pass and
of the optimizers runs under the finder, so that a loss outside of the watched models is found as well. Nothing is
repeated, so that loaders, counters and moments go on as they would.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode

from gradmedic.protocol.origin_sentences import describe_origin
from gradmedic.protocol.origins import BatchTensor, Origin
from gradmedic.torch.first_batch import tensors_in
from gradmedic.torch.module_hooks import AttachedHook, attach_forward_pre_hook
from gradmedic.torch.optimizer_hooks import OptimizerHooks
from gradmedic.torch.origin.finder import OriginFinder
from gradmedic.torch.origin.fingerprint import describe_batch
from gradmedic.torch.origin.locator import find_obstacle
from gradmedic.torch.origin.loss_tape import uses_compiler
from gradmedic.torch.origin.numbers import are_finite, dense_part, is_finite
from gradmedic.torch.origin.step_record import GivenTensor
from gradmedic.torch.structure import unwrap_model

logger = logging.getLogger("gradmedic")

_MOST_INPUTS = 64
"""Tensors of a step that are kept until it ends."""
_NOT_MADE_HERE = "no operation of torch that was checked made it"


class CannotCheck(Exception):
    """The operations of this training cannot be checked; the message names the reason."""


class CheckedSteps:
    """Checks every operation of a training from a step on, until a gradient, a weight or the loss is not finite.

    Args:
        start: number of steps that the script has logged when the checks begin.
        report: function that is called with the origin, or with the reason why it was not found.
    """

    def __init__(self, start: int, report: Callable[[Origin], None]) -> None:
        self.origin: Origin | None = None
        """What was found. None until a number is not finite."""
        self._start = start
        self._report = report
        self._steps = 0
        self._paths: dict[str, nn.Module] = {}
        self._parameters: dict[int, Tensor] = {}
        self._finder: OriginFinder | None = None
        self._has_forced_eager = False
        self._inputs: list[GivenTensor] = []
        """Inputs of the models in this step."""
        self._hooks: list[OptimizerHooks | AttachedHook] = []

    @property
    def is_checking(self) -> bool:
        """Whether operations are checked now."""
        return self._finder is not None

    def watch(self, models: Mapping[str, nn.Module], optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Check what these models compute, and look at their gradients and weights.

        Raises:
            CannotCheck: the operations of such a training cannot be checked.
        """
        unwrapped = {name: unwrap_model(model) for name, model in models.items()}
        obstacle = find_obstacle(
            [wrappers for _, wrappers in unwrapped.values()], [model for model, _ in unwrapped.values()]
        )
        if obstacle is not None:
            raise CannotCheck(obstacle)
        for name, (model, _) in unwrapped.items():
            for path, module in model.named_modules():
                self._paths[".".join(part for part in (name, path) if part)] = module
            hook = attach_forward_pre_hook(models[name], self._keep_inputs)
            self._hooks += [] if hook is None else [hook]
        self._parameters |= {id(p): p for each in optimizers for group in each.param_groups for p in group["params"]}
        self._hooks.append(OptimizerHooks(optimizers, self._before_update, self._after_update))
        self.begin_step(self._steps)

    def begin_step(self, steps: int) -> None:
        """Begin the step after so many; the first of those that are checked begins the checks."""
        self._steps = steps
        self._inputs.clear()
        if self._finder is not None:
            self._finder.begin_step()
        elif steps >= self._start and self._paths and self.origin is None:
            self._begin()

    def finish_step(self, loss: object) -> None:
        """Look at the loss that was logged for a step."""
        if self._finder is None or self.origin is not None or loss is None:
            return
        with _disable_current_modes():
            losses = [loss.detach()] if isinstance(loss, Tensor) else []
            try:
                is_bad = not are_finite(losses) if losses else not math.isfinite(loss)  # type: ignore[arg-type]
            except TypeError:
                return
            if is_bad:
                self._explain([*losses, *self._finder.calls.scalars])

    def end_step(self, steps: int) -> bool:
        """End a step, after so many were logged in all; return whether a number was not finite."""
        if self.origin is None:
            self.begin_step(steps)
            return self.origin is not None
        if self.origin.step != steps - 1 and self.is_checking:  # the script gives the numbers of its steps itself
            self._steps = steps - 1
            self._finish(self.origin)
        return True

    def close(self) -> None:
        """Check no more. A script that has ended itself because of its loss has not logged that."""
        if self._finder is not None and self.origin is None:
            with _disable_current_modes():
                if not are_finite(self._finder.calls.scalars):
                    self._explain(self._finder.calls.scalars)
        self._end()
        for hook in self._hooks:
            hook.close() if isinstance(hook, OptimizerHooks) else hook.remove()
        self._hooks.clear()
        if self._has_forced_eager:
            torch.compiler.set_stance("default")
            self._has_forced_eager = False

    def _begin(self) -> None:
        if not are_finite(self._parameters.values()):
            self._finish(Origin(reason="the weights were not finite before the first step that was checked"))
            return
        if uses_compiler():
            torch.compiler.set_stance("force_eager")
            self._has_forced_eager = True
        self._finder = OriginFinder(self._paths)
        self._finder.__enter__()

    def _end(self) -> None:
        finder, self._finder = self._finder, None
        if finder is not None and _get_current_dispatch_mode() is finder:
            finder.__exit__(None, None, None)

    # --- hooks ------------------------------------------------------------------------------------------------------

    def _keep_inputs(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._finder is None:
            return
        for tensor in tensors_in([args, kwargs]):
            if len(self._inputs) < _MOST_INPUTS:
                version = 0 if tensor.is_inference() else tensor._version
                is_computed = tensor.grad_fn is not None
                self._inputs.append(
                    GivenTensor(tensor.detach(), version, id(tensor), tensor.requires_grad, is_computed)
                )

    def _before_update(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        has_closure = any(callable(value) for value in (*args[1:], *kwargs.values()))
        if self._finder is None or has_closure or getattr(optimizer, "grad_scale", None) is not None:
            return
        with _disable_current_modes(), torch.no_grad():
            gradients = [dense_part(p.grad) for p in self._parameters.values() if p.grad is not None]
            reached = [*gradients, *self._finder.calls.roots]
            if not are_finite(reached):
                self._explain(reached)

    def _after_update(self, _optimizer: torch.optim.Optimizer) -> None:
        if self._finder is None or self.origin is not None:
            return
        with _disable_current_modes(), torch.no_grad():
            weights = [parameter.detach() for parameter in self._parameters.values()]
            if not are_finite(weights):
                self._explain(weights)

    # --- the result -------------------------------------------------------------------------------------------------

    def _explain(self, targets: Iterable[Tensor]) -> None:
        """Report the origin of what is not finite among some tensors."""
        finder = self._finder
        if self.origin is not None or finder is None:
            return
        origin = finder.explain(targets)
        if origin is None:
            failure = None if finder.failure is None else f"an operation could not be checked: {finder.failure!r}"
            origin = Origin(reason=(failure or _NOT_MADE_HERE)[:300])
        losses = finder.calls.roots or finder.calls.scalars[-1:]
        is_loss_finite = all(map(is_finite, losses)) if losses else None
        is_eager = True if uses_compiler() else None
        self._finish(
            dataclasses.replace(
                origin, is_loss_finite=is_loss_finite, is_eager=is_eager, batch_tensors=self._describe_batch()
            )
        )

    def _finish(self, origin: Origin) -> None:
        origin = dataclasses.replace(origin, step=self._steps)
        self.origin = dataclasses.replace(origin, text=describe_origin(origin))
        self._report(self.origin)

    def _describe_batch(self) -> list[BatchTensor]:
        own = [*self._parameters.values(), *(buffer for module in self._paths.values() for buffer in module.buffers())]
        try:
            return describe_batch(self._inputs, own)
        except Exception as error:  # the origin is worth more than its batch
            logger.debug("gradmedic: the batch could not be described: %r", error)
            return []
