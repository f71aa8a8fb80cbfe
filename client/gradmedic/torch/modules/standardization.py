"""Gives a model inputs, and lets it predict targets, of zero mean and unit variance.

One idea: moments of the first batch, frozen. Inputs are standardized in a hook before the model's forward. Targets
stay what the script compares with: what the model returns is taken for standardized and scaled back, and the backward
pass is that of the loss on standardized targets. So the loss keeps the script's units and can be compared.

The targets are seen once, in the first loss that is computed from the model's output: `mse_loss`, `l1_loss`, or a
difference that is squared or made absolute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradmedic.torch.modules import modes
from gradmedic.torch.modules.trace import name_of

STANDARD_MEAN, STANDARD_FACTOR = 0.5, 2.0
"""Moments within so much of 0, and within such a factor of 1, are standardized already, as far as a batch can tell."""
SMALLEST_DEVIATION = 1e-8
"""A feature that varies less is constant, and is only centred."""


class Moments(NamedTuple):
    """Mean and standard deviation, in a shape in which they apply to a batch."""

    mean: Tensor
    deviation: Tensor

    @property
    def are_standard(self) -> bool:
        """Whether they are about 0 and 1, all of them; a constant feature counts as standard."""
        is_near = (self.deviation <= STANDARD_FACTOR) & (self.deviation >= 1 / STANDARD_FACTOR)
        return bool((self.mean.abs() <= STANDARD_MEAN).all()) and bool(is_near.all())


def moments_of(batch: Tensor, channel: int | None = None) -> Moments:
    """Return the moments of each feature, of all processes together.

    Args:
        batch: its last dimension are the features, or the second one the channels of an image.
        channel: the dimension of the features, where that is another one.

    >>> moments_of(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).deviation
    tensor([[1., 1.]])
    """
    kept = channel
    if channel is None and batch.ndim >= 2:
        kept = 1 if batch.ndim >= 4 else batch.ndim - 1
    reduced = tuple(dimension for dimension in range(batch.ndim) if dimension != kept)
    wide = batch.detach().double()
    mean, square = wide.mean(reduced, keepdim=True), wide.square().mean(reduced, keepdim=True)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        both = torch.stack([mean, square])
        torch.distributed.all_reduce(both)
        mean, square = both / torch.distributed.get_world_size()
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    scale = mean.abs().clamp_min(1.0)
    deviation = torch.where(deviation > SMALLEST_DEVIATION * scale, deviation, torch.ones_like(deviation))
    return Moments(mean.to(batch.dtype), deviation.to(batch.dtype))


class StandardizeInputs:
    """Forward pre-hook of a model: standardizes its first floating-point argument.

    Args:
        channel: dimension of the features, where the shape does not tell it.
    """

    def __init__(self, channel: int | None = None) -> None:
        self._channel = channel
        self._which: int | str | None = None
        self._moments: Moments | None = None
        self.reason: str | None = None
        """Why it did nothing."""

    @property
    def is_applied(self) -> bool:
        """Whether inputs are standardized."""
        return self._moments is not None and self.reason is None

    def __deepcopy__(self, memo: dict[int, Any]) -> StandardizeInputs:
        return self  # a copy of the model has the same moments, also if it is made before they are known

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the arguments that the model is to have."""
        given: dict[int | str, Any] = dict([*enumerate(args), *kwargs.items()])
        if self._moments is None and self.reason is None:
            self._look_at(given)
        if self._moments is None or self._which is None or self.reason is not None:
            return None
        batch: Any = given.get(self._which)
        if not _is_real(batch):
            return None
        given[self._which] = (batch - self._moments.mean) / self._moments.deviation
        return tuple(given[i] for i in range(len(args))), {name: given[name] for name in kwargs}

    def _look_at(self, given: Mapping[int | str, Any]) -> None:
        """Take the moments of the first batch, or say why not."""
        self._which = _first_real(given)
        if self._which is None:
            self.reason = "the model's inputs are not of floating point"
            return
        moments = moments_of(given[self._which], self._channel)
        if moments.mean.numel() == given[self._which].numel():
            if torch.is_grad_enabled():  # else it may be there for the shapes
                self.reason = "the first batch has one example, and of one example there are no moments"
            return
        if not bool((moments.mean + moments.deviation).isfinite().all()):
            self.reason = "the first inputs are not finite"
        elif moments.are_standard:
            self.reason = "the inputs are standardized already"
        self._moments = moments


def _first_real(given: Mapping[int | str, Any]) -> int | str | None:
    """Return where the first numbers are; behind tokens, two values are a mask."""
    has_tokens = False
    for which, value in given.items():
        if _is_real(value) and not (has_tokens and len(value.unique()) <= 2):
            return which
        has_tokens = has_tokens or isinstance(value, Tensor)
    return None


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 1


class _Scaled(torch.autograd.Function):
    """From standardized predictions to the script's units, with the gradient of the loss on standardized targets."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, target: Target) -> Tensor:
        ctx.target, ctx.dtype = target, output.dtype
        wide = output.to(torch.promote_types(output.dtype, torch.float32))  # a mean may be large for half precision
        return wide * target.deviation + target.mean

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient * ctx.target.deviation ** (1 - ctx.target.degree)).to(ctx.dtype), None


class Target:
    """What is known of the targets."""

    def __init__(self) -> None:
        self.mean = 0.0
        self.deviation = 1.0
        self.degree = 0
        """Of the loss in the targets' scale: 2 for a squared error, 1 for an absolute one; 0 until it is known."""
        self.is_known = False

    def scale(self, output: Tensor) -> Tensor:
        """Return a prediction in the script's units."""
        return _Scaled.apply(output, self)  # type: ignore[no-any-return,no-untyped-call]


class StandardizeTargets:
    """Forward hook of a model: scales back what it returns, once the targets are known."""

    def __init__(self, target: Target | None = None) -> None:
        self._is_copy = target is not None
        self._target = target or Target()
        self._waiting: _FirstLoss | None = None
        self.reason: str | None = None
        """Why it did nothing."""

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
            self.finish()
            return self._target.scale(output)
        if torch.is_grad_enabled() and not self._is_copy:
            self.finish()
            self._waiting = _FirstLoss(output, self._target)
            self._waiting.__enter__()  # type: ignore[no-untyped-call]
        return None

    def finish(self) -> None:
        """Wait no longer for a loss."""
        if self._waiting is not None:
            self.reason = self.reason or self._waiting.reason
            self._waiting.end()
            self._waiting = None

    def settle(self) -> None:
        """Say why nothing was done, if nothing was: a step is over."""
        self.finish()
        if not self.is_applied and self.reason is None:
            self.reason = "no squared or absolute error of the model's output was seen"

    def __deepcopy__(self, memo: dict[int, Any]) -> StandardizeTargets:
        copied = StandardizeTargets(self._target)  # known to a copy of the model as soon as it is known here
        copied.reason = self.reason
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_waiting": None}


_LOSSES = {"mse_loss": 2, "l1_loss": 1}
_WITH_THRESHOLDS = ("smooth_l1_loss", "huber_loss")
_DIFFERENCES = ("sub", "__sub__", "rsub", "__rsub__", "subtract")
_CASTS = ("float", "double", "to")
_SQUARES = ("square", "pow", "__pow__", "mul", "__mul__", "multiply")
_ABSOLUTES = ("abs", "absolute", "__abs__")


class _FirstLoss(TorchFunctionMode):
    """Waits for the first loss of an output; in it the output is already scaled back."""

    def __init__(self, output: Tensor, target: Target) -> None:
        super().__init__()
        self._output: Tensor | None = output
        self._casts: list[Tensor] = []
        self._target = target
        self._difference: Tensor | None = None
        self.reason: str | None = None

    def end(self) -> None:
        """Look no more."""
        self._output = self._difference = None
        self._casts.clear()
        modes.leave(self)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if self._difference is not None:
            self._note_degree(name, args)
        if self._output is None or self._target.is_known:
            return func(*args, **kwargs)
        if name in _WITH_THRESHOLDS and self._is_compared(*self._pair(args, kwargs)):
            self.reason = f"{name} has a threshold in the targets' units"
            self._output = None
        elif name in _CASTS and args and isinstance(args[0], Tensor) and self._is_output(args[0]):
            cast = func(*args, **kwargs)
            if isinstance(cast, Tensor) and cast.is_floating_point():
                self._casts.append(cast)
            return cast
        elif name in _LOSSES or name in _DIFFERENCES:
            first, second = self._pair(args, kwargs)
            if self._is_compared(first, second):
                return self._compare(func, name, args, kwargs)
        return func(*args, **kwargs)

    def _pair(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        given = [*args, *kwargs.values()]
        return (given[0], given[1]) if len(given) >= 2 else (None, None)

    def _is_compared(self, first: Any, second: Any) -> bool:
        """Whether these are the model's output and as many targets, in either order."""
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
        storages = (each.untyped_storage().data_ptr() for each in (self._output, *self._casts))
        return tensor.untyped_storage().data_ptr() in storages

    def _compare(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first, second = self._pair(args, kwargs)
        moments = moments_of((second if self._is_output(first) else first).detach().reshape(-1))
        self._target.mean, self._target.deviation = float(moments.mean), float(moments.deviation)
        if moments.are_standard:
            self.reason = "the targets are standardized already"
            self._output = None
            return func(*args, **kwargs)
        self._target.is_known = True
        self._target.degree = _LOSSES.get(name, 0)
        args = tuple(self._target.scale(v) if isinstance(v, Tensor) and self._is_output(v) else v for v in args)
        kwargs = {
            key: self._target.scale(v) if isinstance(v, Tensor) and self._is_output(v) else v
            for key, v in kwargs.items()
        }
        self._output = None
        result = func(*args, **kwargs)
        if name in _DIFFERENCES:
            self._difference = result
        return result

    def _note_degree(self, name: str, args: tuple[Any, ...]) -> None:
        if not any(value is self._difference for value in args):
            return
        if name in _ABSOLUTES:
            self._target.degree = 1
        elif name in _SQUARES and (args[-1] is self._difference or args[-1] == 2):
            self._target.degree = 2
        self._difference = None
