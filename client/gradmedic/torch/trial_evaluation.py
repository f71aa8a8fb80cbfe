"""Evaluates the models of a trial in `eval()` at its end, on the last batches of the training.

Batch normalization and dropout compute something else in `train()`, so that a low loss there may hide a model that is
of no use. The last batches are kept by reference: the arguments of the model, and those of the loss functions that were
called with its output. At the end, both are called again: in `train()` and in `eval()`, with the weights of the end.

What a script does between the output of its model and the loss function is found by comparison: the input of the loss
function must be equal to the output after one of a few operations, in each of the first steps. Where it is not, only
the outputs are compared.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradmedic.protocol.trial_report import TrialEvaluation
from gradmedic.torch.first_batch import tensors_in
from gradmedic.torch.loss_functions import begin_observing, end_observing, has_compiled
from gradmedic.torch.model_state import keep_state
from gradmedic.torch.module_hooks import AttachedHook, attach_forward_hook, attach_forward_pre_hook
from gradmedic.torch.output_paths import OutputPath, find_paths
from gradmedic.torch.recorded_code import is_recorded
from gradmedic.torch.structure import unwrap_model

logger = logging.getLogger("gradmedic")

KEPT_STEPS = 4
"""Steps whose batches are kept."""
KEPT_FORWARDS = 4
"""Calls of the model that are kept of a step: of a loop that accumulates gradients, the last ones."""
KEPT_BYTES = 2**26
"""Bytes of arguments above which only the batches of one step are kept."""
_MOST_CALLS = 8
"""Calls of loss functions that are kept of a call of the model."""
_COMPARED_CALLS = 5
"""Calls of a loss function whose input is compared with the output of the model."""
_MOST_OUTPUTS = 4
"""Tensors of an output that are compared: the first ones."""
_MOST_SECONDS = 10.0
"""Seconds after which no further call of a model begins at the end of a trial."""
_RANDOM_PASSES = 8
"""Passes in `train()` whose outputs are averaged, if they are random: the noise of dropout is no error of the model."""
_SAME_FACTOR = 2e-3
"""Relative difference up to which the logged loss is the same multiple of the loss functions at all steps."""


@dataclass(slots=True, eq=False)
class _LossCall:
    """A call of a loss function."""

    function: str
    arguments: dict[str, Any]
    """The arguments by name, without their graphs, apart from the one that is the output of the model."""
    name: str
    """Name of the argument that is the output of the model."""
    shape: torch.Size
    """Shape of this argument."""
    paths: list[OutputPath]
    """Operations that may lead from the output to this argument; shared with the same call at other steps."""

    def repeat(self, outputs: Sequence[Tensor]) -> Tensor | None:
        """Call the loss function with an output of the model; None if that has another form than in training."""
        argument = self.paths[0].follow(outputs, self.shape) if self.paths else None
        if argument is None:
            return None
        result: Tensor = getattr(functional, self.function)(**{self.name: argument}, **self.arguments)
        return result.mean()


@dataclass(slots=True, eq=False)
class _Forward:
    """A call of a model in training."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: list[tuple[Tensor, int]]
    """Tensors among the arguments of model and losses, with their versions: a script may write the next batch there."""
    autocast: list[tuple[str, torch.dtype]]
    """Devices on which autocast was on, and its types."""
    calls: list[_LossCall] = field(default_factory=list)
    """Calls of loss functions with the output."""
    inner_losses: int = 0
    """Number of the loss functions that the model itself called."""
    values: list[Tensor] = field(default_factory=list)
    """Results of all these loss functions."""
    is_lost: bool = False
    """Whether a loss function cannot be called again."""

    @property
    def is_intact(self) -> bool:
        """Whether nothing has overwritten the arguments."""
        return all(tensor._version == version for tensor, version in self.versions)

    @property
    def can_repeat(self) -> bool:
        """Whether all loss functions can be called again."""
        return bool(self.values) and not self.is_lost and all(call.paths for call in self.calls)


@dataclass(slots=True, eq=False)
class _Step:
    """What was kept between two calls of `log()`."""

    forwards: deque[_Forward] = field(default_factory=lambda: deque(maxlen=KEPT_FORWARDS))
    count: int = 0
    """Number of the calls of the model."""
    value: Tensor | float = 0.0
    """Sum of the results of all loss functions."""
    logged: Any = None

    def read_factor(self) -> float:
        """Return how many times the sum of its loss functions the logged loss is; NaN if that is not known."""
        try:
            value, logged = float(self.value), float(self.logged)
        except (TypeError, ValueError, RuntimeError):
            return math.nan
        return logged / value if value else math.nan


class TrialEvaluator:
    """Keeps the last batches of a trial, and evaluates its models on them.

    An error ends it, not the training. It sees the calls of loss functions as a `CallObserver`.
    """

    optimizers = 0

    def __init__(self) -> None:
        self._hooks: dict[int, _ForwardHooks] = {}
        self._modes: dict[int, list[bool]] = {}
        """Whether each module was in `train()` in the first call of its model in training, by the model's id."""
        self._last: dict[int, _Forward] = {}
        """The last call of each model in training, by the model's id."""
        self._steps: deque[_Step] = deque(maxlen=KEPT_STEPS)
        self._step = _Step()
        self._current: _Forward | None = None
        self._is_inside = False
        self._outputs: list[Tensor] = []
        """The current output, while it is compared with arguments of loss functions."""
        self._paths: dict[tuple[str, int], list[OutputPath]] = {}
        self._compared: dict[tuple[str, int], int] = {}
        self._repeated: list[Tensor] | None = None
        """Results of the loss functions that the model calls while it is called again."""

    def keep_batches(self, models: Iterable[nn.Module]) -> None:
        """Keep the last batches of these models, too."""
        for model in models:
            inner, _ = unwrap_model(model)
            if id(inner) not in self._hooks:
                if not self._hooks:
                    begin_observing(self)
                self._hooks[id(inner)] = _ForwardHooks(inner, self)

    def finish_step(self, loss: Any) -> None:
        """Begin the next step.

        Args:
            loss: what the script logged as the loss, None if it logged none.
        """
        step, self._step, self._current = self._step, _Step(), None
        self._outputs = []
        if not step.forwards:
            return
        step.logged = loss.detach().clone() if isinstance(loss, Tensor) else loss
        if _count_bytes(step) > KEPT_BYTES:
            self._steps.clear()
        self._steps.append(step)

    def evaluate(self) -> TrialEvaluation | None:
        """Stop keeping batches, and return what the models compute on the last ones; None if nothing can be said."""
        self.close()
        models = [hooks.model for hooks in self._hooks.values() if id(hooks.model) in self._last]
        if not models or is_recorded():
            return None
        deadline = time.monotonic() + _MOST_SECONDS
        try:
            with ExitStack() as stack:
                stack.enter_context(keep_state(models))
                if has_compiled():  # a compiled model would be compiled again
                    stack.enter_context(torch.compiler.set_stance("force_eager"))
                evaluation = self._evaluate_losses(models[0], deadline) if len(models) == 1 else None
                return evaluation or self._compare_outputs(models, deadline)
        except Exception as error:  # must not reach the script
            logger.warning("gradmedic: the models of this trial could not be evaluated: %r", error)
            return None

    def close(self) -> None:
        """Remove the hooks."""
        end_observing(self)
        for hooks in self._hooks.values():
            hooks.close()
        self._outputs = []

    # --- called in training -------------------------------------------------------------------------------------------

    def begin_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the arguments of a call of a model."""
        self._current, self._outputs = None, []
        if not torch.is_grad_enabled() or (not model.training and id(model) in self._last):
            return  # an evaluation by the script
        if id(model) not in self._last:
            self._modes[id(model)] = [module.training for module in model.modules()]
        args, kwargs = _without_graphs(args), _without_graphs(kwargs)
        tensors = [*tensors_in(args), *tensors_in(kwargs)]
        forward = _Forward(args, kwargs, [(tensor, tensor._version) for tensor in tensors], _list_autocasts())
        self._last[id(model)] = self._current = forward
        self._is_inside = True
        if len(self._hooks) == 1:
            self._step.forwards.append(forward)
            self._step.count += 1

    def end_forward(self, output: Any) -> None:
        """Keep the output for comparison with the arguments of the next loss functions."""
        self._is_inside = False
        if self._current is not None and len(self._hooks) == 1 and self._is_compared():
            self._outputs = [tensor.detach() for tensor in tensors_in(output)][:_MOST_OUTPUTS]

    def note_loss(self, function: str, arguments: dict[str, Any], result: Tensor) -> None:
        """Keep a call of a loss function."""
        value = result.detach().mean()
        if self._repeated is not None:
            self._repeated.append(value)
            return
        forward = self._current
        if forward is None or len(self._hooks) != 1:
            return
        self._step.value = self._step.value + value
        place = len(forward.values)
        forward.values.append(value)
        if self._is_inside:
            forward.inner_losses += 1
            return
        from_model = [name for name, each in arguments.items() if isinstance(each, Tensor) and each.requires_grad]
        if len(from_model) != 1 or len(forward.calls) >= _MOST_CALLS:
            forward.is_lost = True
            return
        (name,) = from_model
        paths = self._narrow_paths((function, place), arguments[name].detach())
        kept = _without_graphs({key: each for key, each in arguments.items() if key != name})
        forward.versions += [(tensor, tensor._version) for tensor in tensors_in(kept)]
        forward.calls.append(_LossCall(function, kept, name, arguments[name].shape, paths))

    def note_log_probability(self, kind: str, result: Tensor, *, is_own_sample: bool) -> None:  # noqa: ARG002
        """Note that a part of the loss is no call of a loss function."""
        if self._current is not None:
            self._current.is_lost = True

    def before_backward(self, roots: list[Tensor]) -> None:
        """Do nothing."""

    def _is_compared(self) -> bool:
        """Whether a call of a loss function still needs to be compared with the output."""
        return not self._compared or min(self._compared.values()) < _COMPARED_CALLS

    def _narrow_paths(self, key: tuple[str, int], argument: Tensor) -> list[OutputPath]:
        """Return the paths that have led to this argument of a loss function at each step so far."""
        compared = self._compared.get(key, 0)
        if compared < _COMPARED_CALLS:
            self._compared[key] = compared + 1
            if compared == 0:
                self._paths[key] = list(find_paths(self._outputs, argument))
            else:
                paths = self._paths[key]
                paths[:] = [path for path in paths if path.leads_to(self._outputs, argument)]
        return self._paths[key]

    # --- called at the end --------------------------------------------------------------------------------------------

    def _evaluate_losses(self, model: nn.Module, deadline: float) -> TrialEvaluation | None:
        """Return the losses of the last batches in both modes; None if they cannot be computed again."""
        steps = [step for step in self._steps if all(each.is_intact and each.can_repeat for each in step.forwards)]
        self._set_mode(model, is_training=False)  # first, because passes in `train()` change the moments
        evaluated = [self._repeat_step(model, step, deadline) for step in steps]
        self._set_mode(model, is_training=True)
        trained = [self._repeat_step(model, step, deadline) for step in steps]
        pairs = [
            (in_eval, in_training, step.read_factor())
            for in_eval, in_training, step in zip(evaluated, trained, steps, strict=True)
            if in_eval is not None and in_training is not None
        ]
        if not pairs:
            return None
        factor = _choose_factor([factor for _, _, factor in pairs]) / len(pairs)
        return TrialEvaluation(
            batches=len(pairs),
            training_loss=factor * sum(in_training for _, in_training, _ in pairs),
            loss=factor * sum(in_eval for in_eval, _, _ in pairs),
        )

    def _compare_outputs(self, models: Sequence[nn.Module], deadline: float) -> TrialEvaluation | None:
        """Return the largest difference of a model's outputs between both modes on its last batch."""
        models = [model for model in models if self._last[id(model)].is_intact]
        for model in models:
            self._set_mode(model, is_training=False)
        evaluated = [self._repeat(model, self._last[id(model)])[0] for model in models]
        differences = []
        for model, in_eval in zip(models, evaluated, strict=True):
            forward = self._last[id(model)]
            self._set_mode(model, is_training=True)
            passes = [self._repeat(model, forward)[0] for _ in range(2)]
            if not all(map(torch.equal, *passes)):
                while len(passes) < _RANDOM_PASSES and time.monotonic() < deadline:
                    passes.append(self._repeat(model, forward)[0])
            averages = [torch.stack([tensor.float() for tensor in each]).mean(0) for each in zip(*passes, strict=True)]
            difference = _measure_difference(in_eval, averages)
            if difference is not None:
                differences.append(difference)
        return TrialEvaluation(batches=1, output_difference=max(differences)) if differences else None

    def _repeat_step(self, model: nn.Module, step: _Step, deadline: float) -> float | None:
        """Return the sum of the loss functions of a step, computed again; None if it cannot be, or time is up."""
        losses = []
        for forward in step.forwards:
            loss = self._repeat(model, forward)[1] if time.monotonic() < deadline else None
            if loss is None:
                return None
            losses.append(float(loss))
        return step.count * sum(losses) / len(losses)

    def _set_mode(self, model: nn.Module, *, is_training: bool) -> None:
        """Put a model into `eval()`, or into the modes that its modules had in training."""
        if not is_training:
            model.eval()
            return
        for module, mode in zip(model.modules(), self._modes[id(model)], strict=False):
            module.training = mode

    def _repeat(self, model: nn.Module, forward: _Forward) -> tuple[list[Tensor], Tensor | None]:
        """Call a model and its loss functions again; return the floating-point outputs and the sum of the losses."""
        self._repeated = [] if forward.inner_losses else None
        with ExitStack() as stack:
            # Loss functions are seen only where gradients are recorded.
            stack.enter_context(torch.set_grad_enabled(bool(forward.inner_losses)))
            for device, dtype in forward.autocast:
                stack.enter_context(torch.autocast(device, dtype))
            if forward.inner_losses:
                begin_observing(self)
                stack.callback(end_observing, self)
            outputs = [tensor.detach() for tensor in tensors_in(model(*forward.args, **forward.kwargs))]
        losses, self._repeated = self._repeated or [], None
        total: Tensor | None = None
        with torch.no_grad():
            if len(losses) == forward.inner_losses:
                losses += [loss for call in forward.calls if (loss := call.repeat(outputs)) is not None]
            if len(losses) == len(forward.values):
                total = torch.stack([loss.float() for loss in losses]).sum() if losses else None
        return [tensor for tensor in outputs if tensor.is_floating_point()], total


class _ForwardHooks:
    """Hooks around the calls of a model. In a copy of the model they do nothing."""

    def __init__(self, model: nn.Module | None, evaluator: TrialEvaluator | None) -> None:
        self._evaluator = evaluator
        self._hooks: list[AttachedHook | None] = []
        if model is not None:
            self.model = model
            self._hooks = [
                attach_forward_pre_hook(model, self.begin, is_first=True), attach_forward_hook(model, self.end)
            ]  # fmt: skip

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Show the arguments of a call."""
        if is_recorded() or not self._hooks or self._evaluator is None:  # in this order: the hook cannot be traced
            return
        try:
            self._evaluator.begin_forward(module, args, kwargs)
        except Exception as error:  # must not reach the script
            self._give_up(error)

    def end(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """Show the output of a call."""
        if is_recorded() or not self._hooks or self._evaluator is None:
            return
        try:
            self._evaluator.end_forward(output)
        except Exception as error:  # must not reach the script
            self._give_up(error)

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            if hook is not None:
                hook.remove()
        self._hooks = []

    def _give_up(self, error: Exception) -> None:
        logger.warning("gradmedic: the last batches of this trial could not be kept: %r", error)
        if self._evaluator is not None:
            self._evaluator.close()

    def __reduce__(self) -> tuple[type[_ForwardHooks], tuple[None, None]]:
        return _ForwardHooks, (None, None)


def _without_graphs(value: Any) -> Any:
    """Return nested lists, tuples and dictionaries whose tensors have no graph; they share their numbers."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _without_graphs(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_graphs(item) for item in value)
    return value


def _list_autocasts() -> list[tuple[str, torch.dtype]]:
    return [
        (device, torch.get_autocast_dtype(device)) for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)
    ]


def _count_bytes(step: _Step) -> int:
    return sum(tensor.numel() * tensor.element_size() for forward in step.forwards for tensor, _ in forward.versions)


def _choose_factor(factors: Sequence[float]) -> float:
    """Return what the script multiplies the loss functions by, if it does so at all steps; else 1.

    >>> _choose_factor([0.25, 0.25]), _choose_factor([1.5, 3.0])
    (0.25, 1.0)
    """
    low, high = min(factors), max(factors)
    return low if 0 < low <= high <= low * (1.0 + _SAME_FACTOR) else 1.0


def _measure_difference(evaluated: Sequence[Tensor], trained: Sequence[Tensor]) -> float | None:
    """Return the difference between outputs in both modes, as a multiple of their standard deviation over the examples.

    It is infinity if only those in `eval()` are not finite, None if the others are not, or have no deviation either.
    """
    square, scale = 0.0, 0.0
    for in_eval, in_training in zip(evaluated, trained, strict=True):
        square += float((in_eval.double() - in_training.double()).square().sum())
        is_batch = in_training.ndim > 0 and in_training.shape[0] > 1
        mean = in_training.double().mean(0, keepdim=True) if is_batch else in_training.double().mean()
        scale += float((in_training.double() - mean).square().sum())
    if not math.isfinite(scale) or scale == 0:
        return None
    return math.sqrt(square / scale) if math.isfinite(square) else math.inf
