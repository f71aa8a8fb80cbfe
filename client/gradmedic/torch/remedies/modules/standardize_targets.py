"""The remedy that lets a model predict standardized targets.

The script still compares the output of the model with its own targets. So what the model computes is taken for
standardized, and is scaled to the units of the targets; the backward pass is that of the loss on standardized targets.
The loss keeps the script's units and can be compared.

The moments are those of the targets in the first loss that is computed from the model's output: `mse_loss`, `l1_loss`,
or a difference that is squared or made absolute.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradmedic.torch.remedies.module_remedy import EdgeRemedy
from gradmedic.torch.remedies.modules.function_modes import leave_mode
from gradmedic.torch.remedies.modules.moments import compute_moments
from gradmedic.torch.remedies.modules.trace import get_function_name


class StandardizeTargets(EdgeRemedy["OutputScaler"]):
    """Lets each model predict targets of zero mean and unit variance."""

    id = "standardize_targets"

    def add_hook(self, name: str, model: nn.Module) -> None:
        """Add the hook of a model."""
        self.hooks[name] = hook = OutputScaler()
        model.register_forward_hook(hook)

    def close(self) -> None:
        """Stop waiting for the first losses."""
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
        self.is_known = False
        """Whether the first loss was seen."""

    def scale(self, output: Tensor) -> Tensor:
        """Return a prediction in the script's units."""
        return _Scaled.apply(output, self)  # type: ignore[no-any-return,no-untyped-call]


class OutputScaler:
    """Forward hook of a model: scales its output to the script's units, once the targets are known.

    Args:
        target: moments of the original hook, if this hook belongs to a copy of the model.
    """

    def __init__(self, target: TargetMoments | None = None) -> None:
        self._is_copy = target is not None
        self._target = target or TargetMoments()
        self._first_loss: _FirstLoss | None = None  # while the hook waits for it
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
        if self._target.is_known:
            self.stop_waiting()
            return self._target.scale(output)
        if torch.is_grad_enabled() and not self._is_copy:
            self.stop_waiting()
            self._first_loss = _FirstLoss(output, self._target)
            self._first_loss.__enter__()  # type: ignore[no-untyped-call]
        return None

    def stop_waiting(self) -> None:
        """Stop waiting for the first loss."""
        if self._first_loss is not None:
            self.reason = self.reason or self._first_loss.reason
            self._first_loss.end()
            self._first_loss = None

    def finish_step(self) -> None:
        """Set the reason if nothing is standardized after a step."""
        self.stop_waiting()
        if not self.is_applied and self.reason is None:
            self.reason = "no squared or absolute error of the model's output was seen"

    def __deepcopy__(self, memo: dict[int, Any]) -> OutputScaler:
        copied = OutputScaler(self._target)  # the copy scales as soon as the original does
        copied.reason = self.reason
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_first_loss": None}


_LOSSES = {"mse_loss": 2, "l1_loss": 1}
"""Loss functions, and their degree in the targets' scale."""
_WITH_THRESHOLDS = ("smooth_l1_loss", "huber_loss")
_DIFFERENCES = ("sub", "__sub__", "rsub", "__rsub__", "subtract")
_CASTS = ("float", "double", "to")
_SQUARES = ("square", "pow", "__pow__", "mul", "__mul__", "multiply")
_ABSOLUTES = ("abs", "absolute", "__abs__")


class _FirstLoss(TorchFunctionMode):
    """Intercepts the first loss of an output. Already in this loss, the output is scaled to the script's units."""

    def __init__(self, output: Tensor, target: TargetMoments) -> None:
        super().__init__()
        self._output: Tensor | None = output
        self._casts: list[Tensor] = []
        self._target = target
        self._difference: Tensor | None = None
        self.reason: str | None = None

    def end(self) -> None:
        """Stop intercepting."""
        self._output = self._difference = None
        self._casts.clear()
        leave_mode(self)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = get_function_name(func)
        if self._difference is not None:
            self._set_degree(name, args)
        if self._output is None or self._target.is_known:
            return func(*args, **kwargs)
        if name in _WITH_THRESHOLDS and self._is_compared(*self._first_two(args, kwargs)):
            self.reason = f"{name} has a threshold in the targets' units"
            self._output = None
        elif name in _CASTS and args and isinstance(args[0], Tensor) and self._is_output(args[0]):
            cast = func(*args, **kwargs)
            if isinstance(cast, Tensor) and cast.is_floating_point():
                self._casts.append(cast)
            return cast
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
        is_output = [self._is_output(first), self._is_output(second)]
        other = second if is_output[0] else first
        return (
            sum(is_output) == 1
            and other.is_floating_point()
            and not other.requires_grad
            and first.shape == second.shape
        )

    def _is_output(self, tensor: Tensor) -> bool:
        if self._output is None or tensor.numel() != self._output.numel():
            return False
        storages = (output.untyped_storage().data_ptr() for output in (self._output, *self._casts))
        return tensor.untyped_storage().data_ptr() in storages

    def _compare(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first, second = self._first_two(args, kwargs)
        moments = compute_moments((second if self._is_output(first) else first).detach().reshape(-1))
        self._target.mean, self._target.deviation = float(moments.mean), float(moments.deviation)
        if moments.are_standard:
            self.reason = "the targets are standardized already"
            self._output = None
            return func(*args, **kwargs)
        self._target.is_known = True
        self._target.degree = _LOSSES.get(name, 0)
        args = tuple(self._scale_if_output(value) for value in args)
        kwargs = {key: self._scale_if_output(value) for key, value in kwargs.items()}
        self._output = None
        result = func(*args, **kwargs)
        if name in _DIFFERENCES:
            self._difference = result
        return result

    def _scale_if_output(self, value: Any) -> Any:
        return self._target.scale(value) if isinstance(value, Tensor) and self._is_output(value) else value

    def _set_degree(self, name: str, args: tuple[Any, ...]) -> None:
        if not any(value is self._difference for value in args):
            return
        if name in _ABSOLUTES:
            self._target.degree = 1
        elif name in _SQUARES and (args[-1] is self._difference or args[-1] == 2):
            self._target.degree = 2
        self._difference = None
