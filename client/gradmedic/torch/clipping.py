"""Observes gradient clipping, so that statistics are taken before it and its coefficient is recorded.

Scripts and frameworks clip with `torch.nn.utils`, when gradients are unscaled and reduced. Its functions are wrapped
while there are observers: the wrappers call the originals with the same arguments, and the originals are put back after
the last observer. `clip_grad_norm_` reaches its wrapper even if a script imported it by name before, because it looks
up `_clip_grads_with_norm_` in its module at each call. `torch.compile` compiles the originals, but not the observers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad

from gradmedic.protocol.numbers import CLIP_EPSILON
from gradmedic.torch.optimizer_hooks import keep_out_of_graphs
from gradmedic.torch.optimizers import read_tensor_attribute
from gradmedic.torch.recorded_code import is_captured
from gradmedic.torch.statistics import local_part


class ClippingObserver(Protocol):
    """Is called before and after each clipping. Its methods must not raise."""

    def before_clipping(self, parameters: list[Tensor], total_norm: Tensor | None) -> None:
        """Act before the gradients of `parameters` are clipped; their norm is None if it is not known."""

    def after_clipping(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:
        """Act after they were multiplied by `coefficient`, or limited in another way if it is None."""


_observers: list[ClippingObserver] = []
_originals: dict[tuple[Any, str], Callable[..., Any]] = {}


def add_clipping_observer(observer: ClippingObserver) -> None:
    """Call `observer` at each clipping from now on."""
    _observers.append(observer)
    if not _originals:
        _wrap_all()


def remove_clipping_observer(observer: ClippingObserver) -> None:
    """Call `observer` no more. After the last one, torch's functions are the originals again."""
    if observer in _observers:
        _observers.remove(observer)
    if not _observers:
        for (module, name), original in _originals.items():
            setattr(module, name, original)
        _originals.clear()


def compute_clip_coefficient(max_norm: float | Tensor, norm: Tensor) -> Tensor:
    """Return the factor, at most 1, that brings gradients of norm `norm` to at most `max_norm`."""
    return torch.clamp(max_norm / (norm + CLIP_EPSILON), max=1.0)


def limit_gradients(optimizer: torch.optim.Optimizer, max_norm: float, norm: float | None = None) -> Tensor | None:
    """Limit the norm of an optimizer's gradients; non-finite elements become 0.

    Args:
        optimizer: the optimizer.
        max_norm: largest norm, of gradients that no loss scaler scales.
        norm: their norm; None to compute it. Of sharded gradients, each process has a part, and must be given it.

    Returns:
        What the gradients were multiplied by; None if there are none.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        return None
    if norm is None:
        total = torch.nn.utils.get_total_norm(gradients)
        scale = read_tensor_attribute(optimizer, "grad_scale")
        limit = max_norm if scale is None else max_norm * scale.to(total.device)
        coefficient = compute_clip_coefficient(limit, total).nan_to_num(0.0)
    else:
        coefficient = compute_clip_coefficient(max_norm, torch.tensor(norm)).nan_to_num(0.0)
    for gradient in map(local_part, gradients):
        factor = coefficient.to(gradient.device) if norm is None else coefficient.item()
        gradient.mul_(factor)
        if gradient.layout == torch.strided:
            gradient.nan_to_num_(0.0, 0.0, 0.0)
    return coefficient


def _wrap_all() -> None:
    by_norm = _wrap(clip_grad._clip_grads_with_norm_, _read_norm, _read_coefficient)
    by_value = _wrap(clip_grad.clip_grad_value_, _read_nothing, _read_nothing)
    for module, name, wrapper in (
        (clip_grad, "_clip_grads_with_norm_", by_norm),
        (torch.nn.utils, "clip_grads_with_norm_", by_norm),
        (clip_grad, "clip_grad_value_", by_value),
        (torch.nn.utils, "clip_grad_value_", by_value),
    ):
        _originals[module, name] = getattr(module, name)
        setattr(module, name, wrapper)


def _wrap(
    original: Callable[..., Any],
    read_norm: Callable[..., Tensor | None],
    read_coefficient: Callable[..., Tensor | None],
) -> Callable[..., Any]:
    """Return a clipping function that calls the observers.

    Args:
        original: the function of torch.
        read_norm: function that returns the norm of the gradients, given the same arguments.
        read_coefficient: function that returns the coefficient of a call, given its arguments behind the parameters.
    """

    @functools.wraps(original)
    def clip(parameters: Tensor | Iterable[Tensor], *args: Any, **kwargs: Any) -> Any:
        clipped = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        before(clipped, args, kwargs)
        result = original(clipped, *args, **kwargs)
        after(clipped, args, kwargs)
        return result

    def call_before(clipped: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_captured() or not _observers:
            return
        total_norm = read_norm(*args, **kwargs)
        for observer in _observers:
            observer.before_clipping(clipped, total_norm)

    def call_after(clipped: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_captured() or not _observers:
            return
        coefficient = read_coefficient(*args, **kwargs)
        for observer in _observers:
            observer.after_clipping(clipped, coefficient)

    before, after = keep_out_of_graphs(call_before), keep_out_of_graphs(call_after)
    return clip


def _read_nothing(*_args: Any, **_kwargs: Any) -> None:
    return None


def _read_norm(max_norm: float, total_norm: Tensor, foreach: bool | None = None) -> Tensor | None:  # noqa: ARG001
    """Return the norm that `_clip_grads_with_norm_` is given, None if the processes have a part of it each."""
    is_whole = all(placement.is_replicate() for placement in getattr(total_norm, "placements", ()))
    return local_part(total_norm) if is_whole else None


def _read_coefficient(max_norm: float, total_norm: Tensor, foreach: bool | None = None) -> Tensor | None:  # noqa: ARG001
    """Return what `_clip_grads_with_norm_` multiplies by; the arguments are the same.

    None if this process has only a part of the norm: to add the parts up, all processes would have to be here.
    """
    if not all(placement.is_replicate() for placement in getattr(total_norm, "placements", ())):
        return None
    with torch.no_grad():  # the formula once more, not a call of `compute_clip_coefficient`: this runs at each step
        return torch.clamp(float(max_norm) / (local_part(total_norm) + CLIP_EPSILON), max=1.0)
