"""The remedy that lets a model predict standardized targets.

The script still compares the output of the model with its own targets. So what the model computes is taken for
standardized, and is scaled to the units of the targets; the backward pass is that of the loss on standardized targets.
The loss keeps the script's units and can be compared.

The targets are those of the loss that is computed from the model's output: `mse_loss`, `l1_loss`, or a difference that
is squared or made absolute. The output may be cast on the way, or one element of each row chosen, as the value of an
action. The moments are those of all targets of the first hundred losses, the current one included: where a few targets
are far larger than the others, or targets grow, a first batch alone tells too little (van Hasselt et al. 2016).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradmedic.torch.remedies.module_remedy import EdgeRemedy
from gradmedic.torch.remedies.modules.function_modes import leave_mode
from gradmedic.torch.remedies.modules.moments import SMALLEST_DEVIATION, Moments, compute_moments
from gradmedic.torch.remedies.modules.trace import get_function_name


class StandardizeTargets(EdgeRemedy["OutputScaler"]):
    """Lets each model predict targets of zero mean and unit variance."""

    id = "standardize_targets"

    def add_hook(self, name: str, model: nn.Module) -> None:
        """Add the hook of a model."""
        self.hooks[name] = hook = OutputScaler()
        model.register_forward_hook(hook)

    def close(self) -> None:
        """Stop waiting for losses."""
        for hook in self.hooks.values():
            hook.stop_waiting()


class _Scaled(torch.autograd.Function):
    """Scales predictions to the script's units; its gradient is that of the loss on standardized targets."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, target: TargetMoments) -> Tensor:
        ctx.target, ctx.dtype = target, output.dtype
        wide = output.to(torch.promote_types(output.dtype, torch.float32))  # a mean may be too large for float16
        return wide * target.deviation + target.mean

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient * ctx.target.deviation ** (1 - ctx.target.degree)).to(ctx.dtype), None


class TargetMoments:
    """Mean and deviation of the targets, and which loss they are compared by."""

    def __init__(self) -> None:
        self.mean = 0.0
        self.deviation = 1.0
        self.degree = 0
        """Degree of the loss in the targets' scale: 2 of a squared error, 1 of an absolute one, 0 while unknown."""
        self.count = 0
        """Number of losses whose targets are in the moments."""
        self._square = 0.0  # mean square of the targets

    @property
    def is_known(self) -> bool:
        """Whether the first loss was seen."""
        return self.count > 0

    @property
    def is_final(self) -> bool:
        """Whether the moments do not change any more."""
        return self.count >= LOSSES_WITH_MOMENTS

    def include(self, moments: Moments) -> None:
        """Include the targets of another loss."""
        mean, deviation = float(moments.mean), float(moments.deviation)
        if not math.isfinite(mean + deviation):
            return
        self.count += 1
        self.mean += (mean - self.mean) / self.count
        self._square += (mean * mean + deviation * deviation - self._square) / self.count
        deviation = math.sqrt(max(self._square - self.mean * self.mean, 0.0))
        self.deviation = deviation if deviation > SMALLEST_DEVIATION * max(abs(self.mean), 1.0) else 1.0

    def scale(self, output: Tensor) -> Tensor:
        """Return a prediction in the script's units."""
        return _Scaled.apply(output, self)  # type: ignore[no-any-return,no-untyped-call]


LOSSES_WITH_MOMENTS = 100
"""Number of losses whose targets give the moments. Of that many batches, the mean of a long tail is known to a tenth or
so even if a batch has only a few elements."""


class OutputScaler:
    """Forward hook of a model: scales its output to the script's units, once the targets are known.

    Args:
        target: moments of the original hook, if this hook belongs to a copy of the model.
    """

    def __init__(self, target: TargetMoments | None = None) -> None:
        self._is_copy = target is not None
        self._target = target or TargetMoments()
        self._loss: _Loss | None = None  # while the hook waits for one
        self.reason: str | None = None
        """Why nothing is standardized."""

    @property
    def is_applied(self) -> bool:
        """Whether targets are standardized."""
        return self._target.is_known and self._target.degree > 0 and self.reason is None

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Return the output in the script's units."""
        if self.reason is not None:
            return None
        if not isinstance(output, Tensor) or not output.is_floating_point():
            self.reason = "the model returns something else than one tensor"
            return None
        self.stop_waiting()
        if self.reason is not None:
            return None
        scaled = self._target.scale(output) if self._target.is_known else output
        if torch.is_grad_enabled() and not self._is_copy and not self._target.is_final:
            self._loss = _Loss(scaled, output, self._target)
            self._loss.__enter__()  # type: ignore[no-untyped-call]
        return scaled

    def stop_waiting(self) -> None:
        """Stop waiting for a loss."""
        if self._loss is not None:
            self.reason = self.reason or self._loss.reason
            self._loss.end()
            self._loss = None

    def finish_step(self) -> None:
        """Stop waiting for a loss, and set the reason if nothing is standardized by then."""
        self.stop_waiting()
        if not self.is_applied and self.reason is None:
            self.reason = "no squared or absolute error of the model's output was seen"

    def __deepcopy__(self, memo: dict[int, Any]) -> OutputScaler:
        copied = OutputScaler(self._target)  # the copy scales as soon as the original does
        copied.reason = self.reason
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loss": None, "_is_copy": True}


_LOSSES = {"mse_loss": 2, "l1_loss": 1}
"""Loss functions, and their degree in the targets' scale."""
_WITH_THRESHOLDS = ("smooth_l1_loss", "huber_loss")
_DIFFERENCES = ("sub", "__sub__", "rsub", "__rsub__", "subtract")
_CASTS = ("float", "double", "to")
_SQUARES = ("square", "pow", "__pow__", "mul", "__mul__", "multiply")
_ABSOLUTES = ("abs", "absolute", "__abs__")


_CHOICES = ("__getitem__", "gather", "take_along_dim")
"""Functions by which a script chooses elements of an output."""


class _Loss(TorchFunctionMode):
    """Intercepts the next loss of an output, which is scaled anew by the moments that include the loss's targets.

    Args:
        output: what the script got from the model.
        predicted: what the model predicted: standardized targets, or the output itself while their moments are unknown.
        target: moments of the targets.
    """

    def __init__(self, output: Tensor, predicted: Tensor, target: TargetMoments) -> None:
        super().__init__()
        self._outputs = [(output, predicted)]  # and what was cast or chosen from them
        self._target = target
        self._difference: Tensor | None = None
        self.reason: str | None = None

    def end(self) -> None:
        """Stop intercepting."""
        self._outputs.clear()
        self._difference = None
        leave_mode(self)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = get_function_name(func)
        if self._difference is not None:
            self._set_degree(name, args)
        if not self._outputs:
            return func(*args, **kwargs)
        if name in _WITH_THRESHOLDS and self._is_compared(*self._first_two(args, kwargs)):
            self.reason = f"{name} has a threshold in the targets' units"
            self._outputs.clear()
        elif args and isinstance(args[0], Tensor) and (name in _CASTS or (name in _CHOICES and _chooses(args, kwargs))):
            predicted = self._find_prediction(args[0])
            if predicted is not None:
                changed = func(*args, **kwargs)
                if isinstance(changed, Tensor) and changed.is_floating_point():
                    chosen = changed if predicted is args[0] else func(predicted, *args[1:], **kwargs)
                    self._outputs.append((changed, chosen))
                return changed
        elif name in _LOSSES or name in _DIFFERENCES:
            first, second = self._first_two(args, kwargs)
            if self._is_compared(first, second):
                return self._compare(func, name, args, kwargs)
        return func(*args, **kwargs)

    def _first_two(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        arguments = [*args, *kwargs.values()]
        return (arguments[0], arguments[1]) if len(arguments) >= 2 else (None, None)

    def _is_compared(self, first: Any, second: Any) -> bool:
        """Whether these are the model's output and targets of the same shape, in either order."""
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            return False
        is_output = [self._find_prediction(tensor) is not None for tensor in (first, second)]
        other = second if is_output[0] else first
        return (
            sum(is_output) == 1
            and other.is_floating_point()
            and not other.requires_grad
            and first.shape == second.shape
        )

    def _find_prediction(self, tensor: Tensor) -> Tensor | None:
        """Return what the model predicted for an output, in the shape of the prediction; None if it is no output."""
        storage = tensor.untyped_storage().data_ptr()
        for output, predicted in self._outputs:
            if tensor.numel() == output.numel() and storage == output.untyped_storage().data_ptr():
                return tensor if predicted is output else predicted
        return None

    def _compare(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first, second = self._first_two(args, kwargs)
        targets = second if self._find_prediction(first) is not None else first
        moments = compute_moments(targets.detach().reshape(-1))
        if not self._target.is_known and moments.are_standard:
            self.reason = "the targets are standardized already"
            self._outputs.clear()
            return func(*args, **kwargs)
        self._target.include(moments)
        self._target.degree = self._target.degree or _LOSSES.get(name, 0)
        args = tuple(self._scale_if_output(value) for value in args)
        kwargs = {key: self._scale_if_output(value) for key, value in kwargs.items()}
        self._outputs.clear()
        result = func(*args, **kwargs)
        if name in _DIFFERENCES and self._target.degree == 0:
            self._difference = result
        return result

    def _scale_if_output(self, value: Any) -> Any:
        predicted = self._find_prediction(value) if isinstance(value, Tensor) else None
        return value if predicted is None else self._target.scale(predicted.reshape(value.shape))

    def _set_degree(self, name: str, args: tuple[Any, ...]) -> None:
        if not any(value is self._difference for value in args):
            return
        if name in _ABSOLUTES:
            self._target.degree = 1
        elif name in _SQUARES and (args[-1] is self._difference or args[-1] == 2):
            self._target.degree = 2
        self._difference = None


def _chooses(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether elements are chosen by a tensor of indices, row by row, so that all outputs have one unit."""
    chosen: list[Any] = [*args[1:], *kwargs.values()]
    indices = [item for value in chosen for item in (value if isinstance(value, tuple) else (value,))]
    return any(isinstance(index, Tensor) and not index.is_floating_point() for index in indices)
