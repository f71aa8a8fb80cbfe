"""Notices gradient clipping, so that statistics can be taken before it and its coefficient recorded.

One idea: `torch.nn.utils` is where scripts and frameworks clip, and at that moment gradients are unscaled and reduced.
The functions there are wrapped while a run watches, call the originals with the same arguments, and are put back after
the last run. `clip_grad_norm_` reaches the wrapper even where a script imported it by name before, because it looks up
`_clip_grads_with_norm_` in its module at each call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad

_EPSILON = 1e-6
"""What torch adds to the norm before it divides by it."""


class ClippingObserver(Protocol):
    """Whoever wants to know of clipping. Its methods must not raise."""

    def before_clipping(self, parameters: list[Tensor]) -> None:
        """Gradients of `parameters` are about to be clipped."""

    def after_clipping(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:
        """They were multiplied by `coefficient`, or limited by value if it is None."""


_observers: list[ClippingObserver] = []
_originals: dict[tuple[Any, str], Callable[..., Any]] = {}


def observe(observer: ClippingObserver) -> None:
    """Tell `observer` of each clipping from now on."""
    _observers.append(observer)
    if not _originals:
        _wrap_all()


def ignore(observer: ClippingObserver) -> None:
    """Tell it no more; with the last observer, torch is as it was."""
    if observer in _observers:
        _observers.remove(observer)
    if not _observers:
        for (module, name), original in _originals.items():
            setattr(module, name, original)
        _originals.clear()


def _wrap_all() -> None:
    by_norm = _wrap(clip_grad._clip_grads_with_norm_, _coefficient_of)
    by_value = _wrap(clip_grad.clip_grad_value_, lambda *_args, **_kwargs: None)
    for module, name, wrapper in (
        (clip_grad, "_clip_grads_with_norm_", by_norm),
        (torch.nn.utils, "clip_grads_with_norm_", by_norm),
        (clip_grad, "clip_grad_value_", by_value),
        (torch.nn.utils, "clip_grad_value_", by_value),
    ):
        _originals[module, name] = getattr(module, name)
        setattr(module, name, wrapper)


def _wrap(original: Callable[..., Any], coefficient_of: Callable[..., Tensor | None]) -> Callable[..., Any]:
    @functools.wraps(original)
    def clip(parameters: Tensor | Iterable[Tensor], *args: Any, **kwargs: Any) -> Any:
        clipped = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        for observer in _observers:
            observer.before_clipping(clipped)
        result = original(clipped, *args, **kwargs)
        coefficient = coefficient_of(*args, **kwargs) if _observers else None
        for observer in _observers:
            observer.after_clipping(clipped, coefficient)
        return result

    return clip


def _coefficient_of(max_norm: float, total_norm: Tensor, foreach: bool | None = None) -> Tensor:  # noqa: ARG001
    """Return what `_clip_grads_with_norm_` multiplies by; its arguments are the same."""
    with torch.no_grad():
        return torch.clamp(float(max_norm) / (total_norm + _EPSILON), max=1.0)
