"""Applies the remedies of one optimizer at each of its steps.

The order is always the same, in whichever order the remedies were named: the learning rate of the step, then the
gradients, then the weights, then the optimizer's step. What the script holds stays as it is: its optimizer steps, its
schedulers see their own learning rates, and its state can be saved and loaded.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gradmedic.exceptions import UsageError
from gradmedic.protocol.remedy_kind import Target
from gradmedic.torch.hidden_gradients import HiddenGradients
from gradmedic.torch.optimizer_hooks import keep_out_of_graphs
from gradmedic.torch.optimizers import read_tensor_attribute
from gradmedic.torch.remedies.base import NotApplicable
from gradmedic.torch.remedies.step_remedy import OptimizerContext, StepGradients, StepRemedy

_HIDDEN_CHANGES = frozenset({Target.WEIGHTS, Target.SECOND_MOMENT})
"""Targets whose change an optimizer's state and settings do not show after a step."""


class StepObserver(Protocol):
    """Measures the steps that remedies change."""

    def measure_updates_by_copies(self, optimizer: Optimizer) -> None:
        """Do not compute the updates of an optimizer from its state: something else moves the weights too."""

    def observes(self, optimizer: Optimizer) -> bool:
        """Whether the steps of this optimizer are measured."""

    def after_clipping(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:
        """Record that gradients were multiplied by `coefficient`, or limited in another way if it is None."""


_by_optimizer: weakref.WeakKeyDictionary[Optimizer, OptimizerRemedies] = weakref.WeakKeyDictionary()


def has_remedies(optimizer: Optimizer) -> bool:
    """Whether remedies are applied to an optimizer."""
    return optimizer in _by_optimizer


class OptimizerRemedies:
    """The remedies of one optimizer.

    Args:
        optimizer: optimizer whose steps the remedies change.
        models: models whose parameters the optimizer updates.
        remedies: remedies in any order.

    Raises:
        NotApplicable: a remedy cannot be applied here; the message contains the remedy and the reason.
    """

    def __init__(self, optimizer: Optimizer, models: Sequence[nn.Module], remedies: Sequence[StepRemedy]) -> None:
        new_optimizers = [remedy for remedy in remedies if remedy.new_optimizer is not None]
        self._replacement = new_optimizers[0] if new_optimizers else None
        context = OptimizerContext(
            optimizer=optimizer,
            models=models,
            new_optimizer=None if self._replacement is None else self._replacement.new_optimizer,
        )
        for remedy in remedies:
            if (reason := remedy.reason_against(context)) is not None:
                raise NotApplicable(f"{remedy.id}: {reason}")
        self._remedies = sorted(remedies, key=lambda remedy: remedy.order)
        self._changes_gradients = any(Target.GRADIENTS in remedy.targets for remedy in remedies)
        self._optimizer = weakref.ref(optimizer)  # the hooks live in it
        self._handles: list[RemovableHandle] = []
        self._change_handle: RemovableHandle | None = None
        self._observer: StepObserver | None = None
        self._steps_taken = 0
        self._script_settings: list[tuple[dict[str, Any], dict[str, Any]]] = []
        """Groups that step with other settings, and the script's settings of each."""
        self._hidden_gradients = HiddenGradients()
        self._script_grad_scale: Tensor | None = None
        self._is_skipped = False

    @property
    def has_stepped(self) -> bool:
        """Whether the optimizer has made a step since the remedies were applied."""
        return self._steps_taken > 0

    @property
    def skipped_steps(self) -> int:
        """Number of steps that the remedies skipped, beside those that a loss scaler skips."""
        return sum(remedy.skipped_steps for remedy in self._remedies)

    @property
    def failure(self) -> str | None:
        """Which remedy turned out not to be applicable, and why; None if none did."""
        return next((f"{remedy.id}: {remedy.failure}" for remedy in self._remedies if remedy.failure is not None), None)

    def attach_before_measurement(self, *, is_measured: bool = False) -> None:
        """Register the hooks that run before those of a `Watch`.

        Args:
            is_measured: whether a `Watch` has registered its hooks already.

        Raises:
            UsageError: remedies are applied to this optimizer already.
        """
        optimizer = self._get_optimizer()
        if has_remedies(optimizer):
            raise UsageError("remedies are applied to this optimizer already; they cannot be applied twice")
        _by_optimizer[optimizer] = self
        self._handles.append(optimizer.register_step_pre_hook(keep_out_of_graphs(self._start_step)))
        if is_measured and (hooks := self._handles[-1].hooks_dict_ref()) is not None:
            hooks.move_to_end(self._handles[-1].id, last=False)
        self._handles.append(optimizer.register_step_post_hook(keep_out_of_graphs(self._finish_step)))

    def attach_after_measurement(self, observer: StepObserver | None = None) -> None:
        """Register the hook that runs between the measurement and the step.

        Args:
            observer: observer that measures the steps, if there is one.
        """
        self._observer = observer
        optimizer = self._get_optimizer()
        if observer is not None and any(_HIDDEN_CHANGES & remedy.targets for remedy in self._remedies):
            observer.measure_updates_by_copies(optimizer)
        if self._change_handle is not None:
            self._change_handle.remove()
        self._change_handle = optimizer.register_step_pre_hook(keep_out_of_graphs(self._change_step))

    def follow_measurement(self, observer: StepObserver) -> None:
        """Act after a new observer has measured, if it observes this optimizer."""
        optimizer = self._optimizer()
        if optimizer is not None and observer.observes(optimizer):
            self.attach_after_measurement(observer)

    def close(self) -> None:
        """Leave the optimizer as it was."""
        for handle in (*self._handles, self._change_handle):
            if handle is not None:
                handle.remove()
        self._handles.clear()
        optimizer = self._optimizer()
        if optimizer is not None:
            self._restore(optimizer)
            _by_optimizer.pop(optimizer, None)

    def _get_optimizer(self) -> Optimizer:
        optimizer = self._optimizer()
        if optimizer is None:
            raise UsageError("the optimizer is gone")
        return optimizer

    # --- the three moments of a step ----------------------------------------------------------------------------------

    def _start_step(self, optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        self._restore(optimizer)  # after a step that raised
        parameters = _list_parameters_with_gradients(optimizer)
        for remedy in self._remedies:
            remedy.receive_gradients(parameters)
            remedy.start_step(optimizer)
        for group in optimizer.param_groups:
            before = dict(group)
            for remedy in self._remedies:
                group.update(remedy.choose_settings(group, self._steps_taken))
            script_settings = {name: value for name, value in before.items() if group[name] is not value}
            if script_settings:
                self._script_settings.append((group, script_settings))

    def _change_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Change gradients and weights; if a closure computes the gradients, do so whenever it has computed them."""
        found_inf = read_tensor_attribute(optimizer, "found_inf")
        self._is_skipped = found_inf is not None and bool(found_inf.item())
        closures = [value for value in (*args[1:], *kwargs.values()) if callable(value)]
        if not closures:
            self._change_gradients(optimizer)
            self._change_weights(optimizer)
            return None
        closure = closures[0]
        wrapped = self._wrap_closure(optimizer, closure)
        args = (args[0], *(wrapped if value is closure else value for value in args[1:]))
        return args, {name: wrapped if value is closure else value for name, value in kwargs.items()}

    def _wrap_closure(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        calls = itertools.count()

        def wrapped() -> Any:
            self._hidden_gradients.show()
            loss = closure()
            self._change_gradients(optimizer)
            if next(calls) == 0:
                self._change_weights(optimizer)
            return loss

        return wrapped

    def _finish_step(self, optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        self._hidden_gradients.show()
        if self._replacement is not None and not self._is_skipped:
            self._replacement.step_instead(optimizer)
        self._restore(optimizer)
        for remedy in reversed(self._remedies):  # what was changed last is finished first
            remedy.finish_step(optimizer, is_skipped=self._is_skipped)
        self._steps_taken += 1

    def _restore(self, optimizer: Optimizer) -> None:
        """Give back to the script what was changed for the length of a step."""
        self._hidden_gradients.show()
        for group, script_settings in self._script_settings:
            group.update(script_settings)
        self._script_settings.clear()
        if self._script_grad_scale is not None:
            optimizer.grad_scale = self._script_grad_scale  # type: ignore[attr-defined]  # a loss scaler set it
            self._script_grad_scale = None

    # --- gradients and weights ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def _change_gradients(self, optimizer: Optimizer) -> None:
        parameters = _list_parameters_with_gradients(optimizer)
        for remedy in self._remedies:
            remedy.receive_gradients(parameters)
        if not parameters or not self._changes_gradients:
            return
        gradients = [_get_gradient(parameter) for parameter in parameters]
        self._unscale(optimizer, gradients)
        step = StepGradients(
            parameters=parameters,
            gradients=gradients,
            is_first_step=not self.has_stepped,
            is_skipped=self._is_skipped,
            report_clipping=lambda coefficient: self._report_clipping(parameters, coefficient),
        )
        for remedy in self._remedies:
            remedy.prepare_gradients(step)
        self._is_skipped = step.is_skipped
        if self._is_skipped:
            self._hidden_gradients.hide(parameters)
            return
        for remedy in self._remedies:
            remedy.change_gradients(step)
        if self._replacement is not None:
            self._hidden_gradients.hide(parameters)

    def _change_weights(self, optimizer: Optimizer) -> None:
        if not self._is_skipped:
            for remedy in self._remedies:
                remedy.change_weights(optimizer)

    def _unscale(self, optimizer: Optimizer, gradients: list[Tensor]) -> None:
        """Divide by the scale that a loss scaler leaves to a fused optimizer, and set the optimizer's scale to 1."""
        scale = read_tensor_attribute(optimizer, "grad_scale")
        if scale is not None and self._script_grad_scale is None:
            self._script_grad_scale = scale
            for gradient in gradients:
                gradient.div_(scale.to(gradient.device))
            optimizer.grad_scale = torch.ones_like(scale)  # type: ignore[attr-defined]  # where a loss scaler sets it

    def _report_clipping(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:
        if self._observer is not None:
            self._observer.after_clipping(parameters, coefficient)


def _list_parameters_with_gradients(optimizer: Optimizer) -> list[Tensor]:
    return [
        parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None
    ]


def _get_gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError("a gradient disappeared while remedies changed it")
    return parameter.grad
