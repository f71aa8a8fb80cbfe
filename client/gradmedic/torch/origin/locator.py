"""Finds the origin of a non-finite gradient or loss in the process of the training, when it happens.

Hooks of the models and of `backward` remember the step by reference. Before each update, one look at the losses and all
gradients shows whether they are finite; on a device, that waits for it. If they are not, the step is repeated once,
on copies. What the training computes stays the same to the bit.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradmedic.protocol.origin_sentences import describe_origin
from gradmedic.protocol.origins import BatchTensor, Origin
from gradmedic.protocol.runs import Training
from gradmedic.torch.distributed import get_group_size
from gradmedic.torch.loss_functions import begin_observing, end_observing
from gradmedic.torch.module_hooks import AttachedHook, attach_forward_hook, attach_forward_pre_hook
from gradmedic.torch.optimizer_hooks import OptimizerHooks
from gradmedic.torch.origin.fingerprint import describe_batch
from gradmedic.torch.origin.generators import GeneratorState
from gradmedic.torch.origin.loss_tape import LossTape
from gradmedic.torch.origin.numbers import are_finite, dense_part
from gradmedic.torch.origin.replay import find_origin
from gradmedic.torch.origin.source import find_place
from gradmedic.torch.origin.step_record import MOST_MODEL_CALLS, Item, Precision, Root, StepRecord
from gradmedic.torch.recorded_code import is_recorded
from gradmedic.torch.statistics import is_nonfinite_on_host, local_part
from gradmedic.torch.structure import unwrap_model

logger = logging.getLogger("gradmedic")

_MOST_ATTEMPTS = 3
"""Steps of a run that are repeated at most."""


class Locator:
    """Finds the origin of the first non-finite number of a training that a `Watch` observes.

    Args:
        models: the watched models by name.
        optimizers: their optimizers.
        find_step: function that returns the number of the step that runs.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        find_step: Callable[[], int],
    ) -> None:
        self.origin: Origin | None = None
        """What was found, or why nothing was. None until a number is not finite."""
        self.optimizers = 0  # a watch counts them
        self._find_step = find_step
        unwrapped = {name: unwrap_model(model) for name, model in models.items()}
        self._models = {name: model for name, (model, _) in unwrapped.items()}
        self._modules = [list(model.modules()) for model in self._models.values()]
        self._parameters = [p for model in self._models.values() for p in model.parameters()]
        self._reason = find_obstacle([wrappers for _, wrappers in unwrapped.values()], self._models.values())
        self._attempts = 0
        self._record = StepRecord()
        self._calls: list[Item | None] = []
        """Calls of models that have not returned, from the outermost on."""
        self._tape = LossTape(self.lose_step)
        self._hooks: list[AttachedHook | None] = []
        for number, model in enumerate(models.values()):
            hooks = _ModelHooks(number, self)
            self._hooks.append(attach_forward_pre_hook(model, hooks.before))
            self._hooks.append(attach_forward_hook(model, hooks.after, always_call=True))
        self._optimizer_hooks = OptimizerHooks(optimizers, self._before_step, self._after_step)
        begin_observing(self)

    def close(self) -> None:
        """Remove the hooks and forget the step."""
        for hook in self._hooks:
            if hook is not None:
                hook.remove()
        self._hooks.clear()
        self._optimizer_hooks.close()
        end_observing(self)
        self._tape.stop()
        self._forget()

    @property
    def is_over(self) -> bool:
        """Whether no further step will be repeated."""
        return self._attempts >= _MOST_ATTEMPTS or not self._hooks

    def finish_step(self, loss: Any) -> None:
        """Look at a loss that was logged: a script may leave out the update if it is not finite."""
        if self.is_over or not (self._record.items or self._record.reason) or not is_nonfinite_on_host(loss):
            return
        self._tape.stop()
        if not self._record.roots and isinstance(loss, Tensor):
            self._record.roots.append(Root(self._record.find(loss), loss.detach(), loss.grad_fn))
        self._locate()

    def add_origin(self, training: Training | None) -> Training | None:
        """Return the facts about a training, with the origin if there is one."""
        return training if self.origin is None else dataclasses.replace(training or Training(), origin=self.origin)

    # --- what a step computes ---------------------------------------------------------------------------------------

    def before_call(self, model: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the outermost call of a model."""
        self._tape.stop()
        record = self._record
        if self._calls or not torch.is_grad_enabled():
            self._calls.append(None)
            return
        self._calls.append(None)
        if self._reason is not None or record.reason is not None:
            return
        if record.model_calls >= MOST_MODEL_CALLS:
            record = self._record = StepRecord()
            record.reason = f"the models are called more than {MOST_MODEL_CALLS} times in a step"
            return
        item = Item(
            model, record.encode(args), record.encode(kwargs), find_place(sys._getframe(2)), Precision.read(),
            generators=GeneratorState.capture(), training=[module.training for module in self._modules[model]],
        )  # fmt: skip
        self._calls[-1] = item

    def after_call(self, output: Any) -> None:
        """Remember what the outermost call of a model returned, and begin to record what the script makes of it."""
        item = self._calls.pop() if self._calls else None
        if item is None or output is None:
            return
        self._record.note_outputs(item, output)
        if self._record.add(item):
            self._tape.start(self._record)

    def before_backward(self, roots: list[Tensor]) -> None:
        """Remember the losses. Where the tape does not reach them, keep the gradients of the outputs."""
        record = self._record
        self._tape.rest()
        if not record.items or self.is_over:
            return
        numbers = [record.find(root) if root.numel() == 1 else None for root in roots]
        record.roots.extend(
            Root(number, root.detach(), root.grad_fn) for number, root in zip(numbers, roots, strict=True)
        )
        if all(number is not None for number in numbers):
            return
        outputs = [number for item in record.items if isinstance(item.function, int) for number in item.outputs]
        for number, tensor in record.list_alive(outputs):
            if tensor.requires_grad and tensor.grad_fn is not None:
                tensor.register_hook(_GradientKeeper(record, number))  # type: ignore[no-untyped-call]

    def note_loss(self, function: str, arguments: dict[str, Any], result: Tensor) -> None:
        """See nothing: the tape records losses as all other operations."""

    def note_log_probability(self, kind: str, result: Tensor, *, is_own_sample: bool) -> None:
        """See nothing."""

    def lose_step(self, error: Exception) -> None:
        """Note that the step cannot be repeated because something could not be remembered."""
        self._record.reason = f"the step could not be remembered: {error!r}"[:300]

    def _forget(self) -> None:
        self._record = StepRecord()
        self._calls.clear()

    # --- hooks of the optimizers ------------------------------------------------------------------------------------

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._tape.stop()
        has_closure = any(callable(value) for value in (*args[1:], *kwargs.values()))
        if self.is_over or has_closure or getattr(optimizer, "grad_scale", None) is not None:
            return
        try:
            with torch.no_grad():
                gradients = [dense_part(local_part(p.grad)) for p in self._parameters if p.grad is not None]
                is_ordinary = are_finite([*gradients, *(root.value for root in self._record.roots)])
            if not is_ordinary:
                self._locate()
        except Exception as error:  # must not reach the script
            logger.warning("gradmedic: the origin of a non-finite number could not be looked for: %r", error)
            self._attempts = _MOST_ATTEMPTS

    def _after_step(self, _optimizer: torch.optim.Optimizer) -> None:
        self._forget()

    def _locate(self) -> None:
        self._attempts += 1
        record, reason = self._record, self._reason or self._record.reason
        if reason is None and not record.items:
            reason = "the watched model was not called since the last update"
        origin = Origin(reason=reason) if reason is not None else find_origin(record, self._models)
        values = [root.value for root in record.roots]
        if origin.is_loss_finite is None and values:
            origin = dataclasses.replace(origin, is_loss_finite=are_finite(values))
        origin = dataclasses.replace(origin, step=self._find_step(), batch_tensors=self._describe_batch(record))
        self.origin = dataclasses.replace(origin, text=describe_origin(origin))
        self._attempts = _MOST_ATTEMPTS if origin.operation is not None else self._attempts
        logger.warning("gradmedic: %s", self.origin.text)
        self._forget()

    def _describe_batch(self, record: StepRecord) -> list[BatchTensor]:
        own = [tensor for model in self._models.values() for tensor in (*model.parameters(), *model.buffers())]
        try:
            return describe_batch(record.given, own)
        except Exception as error:  # the origin is worth more than its batch
            logger.debug("gradmedic: the batch could not be described: %r", error)
            return []


class _ModelHooks:
    """Hooks of a model that show its calls to a locator. In a copy of the model they do nothing."""

    def __init__(self, number: int, locator: Locator | None) -> None:
        self._number = number
        self._locator = locator

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Show a call that begins."""
        if is_recorded() or self._locator is None or self._locator.is_over:
            return
        try:
            self._locator.before_call(self._number, args, kwargs)
        except Exception as error:  # must not reach the script
            self._locator.lose_step(error)

    def after(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """Show a call that ends."""
        if is_recorded() or self._locator is None or self._locator.is_over:
            return
        try:
            self._locator.after_call(output)
        except Exception as error:  # must not reach the script
            self._locator.lose_step(error)

    def __reduce__(self) -> tuple[type[_ModelHooks], tuple[int, None]]:
        return _ModelHooks, (self._number, None)


class _GradientKeeper:
    """Hook of a tensor that keeps its gradient until the step ends."""

    def __init__(self, record: StepRecord | None, number: int) -> None:
        self._record, self._number = record, number

    def __call__(self, gradient: Tensor | None) -> None:
        if gradient is not None and self._record is not None:
            self._record.output_gradients[self._number] = gradient.detach()

    def __reduce__(self) -> tuple[type[_GradientKeeper], tuple[None, int]]:
        return _GradientKeeper, (None, self._number)


def find_obstacle(wrappers: Sequence[set[str]], models: Any) -> str | None:
    """Return why no step of this training can be repeated, None if nothing is known to prevent it."""
    names = sorted(set().union(*wrappers))
    if names or get_group_size() > 1:
        kind = names[0] if names else "a training of several processes"
        return f"a step of {kind} is not repeated, because all processes would have to repeat it together"
    if any(type(p).__name__ == "DTensor" for model in models for p in model.parameters()):
        return "a step with sharded parameters is not repeated, because all processes would have to repeat it together"
    if any(isinstance(module, torch.jit.ScriptModule) for model in models for module in model.modules()):
        return "a scripted module cannot be repeated"
    return None
