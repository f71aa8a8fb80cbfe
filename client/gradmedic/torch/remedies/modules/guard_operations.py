"""The remedy that guards operations at numbers where they, or their slopes, are not finite.

Elsewhere results and gradients stay as they are, to the bit. At the numbers themselves:

| operation | result | gradient |
| --- | --- | --- |
| root of a number that is not positive; `x ** p` with p < 1 | 0 | 0 |
| `x / 0`, `rsqrt(0)`, `1 / 0` | 0, as `tf.math.divide_no_nan` | 0 |
| logarithm below 1e-8 | the logarithm of 1e-8 | 0 |
| exponential that would be infinite | a large number | 0 |
| arc sine and cosine within 1e-6 of 1 | that of 1 - 1e-6 | 0 |
| softmax of a row that is minus infinity throughout, as where a mask leaves nothing | 0 | 0 |

The gradient of 0 is that of a clipped argument, as Keras clips probabilities; for a root, it is the subgradient that
torch takes for `norm` and `std`. The two steps, first to replace the argument and then the result, are needed because
an infinite slope times 0 is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradmedic.torch.remedies.modules.function_remedy import FunctionRemedy, is_in_place
from gradmedic.torch.remedies.modules.trace import get_function_name

_SMALLEST_PROBABILITY = 1e-8
"""Argument below which a logarithm is constant. It is below the resolution of float32 at 1, and so of `1 - p`."""
_LARGEST_COSINE = 1 - 1e-6
_SHARE_OF_RANGE = 0.9
"""Largest exponential, as a share of the largest number's logarithm: sums of many such numbers are finite, too."""
_ROOTS = frozenset({"sqrt", "rsqrt", "reciprocal"})
_POWERS = frozenset({"pow", "__pow__", "float_power"})
_QUOTIENTS = frozenset({"div", "divide", "true_divide", "__truediv__"})
_REVERSED_QUOTIENTS = frozenset({"__rtruediv__", "__rdiv__"})
_LOGARITHMS = frozenset({"log", "log2", "log10"})
_EXPONENTIALS = {"exp": 1.0, "expm1": 1.0, "exp2": math.log(2)}
"""Each with the logarithm of its base."""
_ARCS = frozenset({"acos", "arccos", "asin", "arcsin"})
_DIMENSION = 1
"""Position of the dimension among the arguments of a softmax."""


class GuardOperations(FunctionRemedy):
    """Guards roots, quotients, logarithms, exponentials, arcs and softmaxes, wherever the script computes them."""

    id = "guard_operations"
    nothing_seen = (
        "the script computes no root, quotient, logarithm, exponential, arc or softmax with torch's own functions"
    )

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function, guarded if it is one of those above and gradients are computed."""
        guard = _GUARDS.get(get_function_name(func))
        if guard is None or not torch.is_grad_enabled() or is_in_place(func, kwargs):
            return func(*args, **kwargs)
        guarded = guard(func, args, kwargs)
        if guarded is None:
            return func(*args, **kwargs)
        self.add_place(get_function_name(func))
        return guarded


_Guard = Callable[[Any, tuple[Any, ...], dict[str, Any]], Tensor | None]
"""Returns the guarded result of a call; None where it needs no guard."""


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _guard_root(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if not args or not _is_real(args[0]):
        return None
    return _skip(func, args, kwargs, 0, args[0] <= 0 if get_function_name(func) == "sqrt" else args[0] == 0)


def _guard_power(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    exponent = args[1] if len(args) > 1 else kwargs.get("exponent")
    if not args or not _is_real(args[0]) or not isinstance(exponent, (int, float)) or not exponent < 1 or exponent == 0:
        return None
    return _skip(func, args, kwargs, 0, args[0] == 0)


def _guard_quotient(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    position = 0 if get_function_name(func) in _REVERSED_QUOTIENTS else 1
    if len(args) <= position or not _is_real(args[position]):
        return None
    return _skip(func, args, kwargs, position, args[position] == 0)


def _skip(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], position: int, is_skipped: Tensor) -> Tensor:
    """Return the result of a function, 0 without a gradient where the argument of this position is to be skipped."""
    replaced = (*args[:position], args[position].masked_fill(is_skipped, 1), *args[position + 1 :])
    result: Tensor = func(*replaced, **kwargs)
    return result.masked_fill(is_skipped, 0)


def _guard_logarithm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if not args or not _is_real(args[0]):
        return None
    smallest = max(_SMALLEST_PROBABILITY, torch.finfo(args[0].dtype).tiny)
    result: Tensor = func(args[0].clamp(min=smallest), *args[1:], **kwargs)
    return result


def _guard_logarithm_behind_one(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if not args or not _is_real(args[0]):
        return None
    smallest = max(_SMALLEST_PROBABILITY, torch.finfo(args[0].dtype).eps) - 1
    result: Tensor = func(args[0].clamp(min=smallest), *args[1:], **kwargs)
    return result


def _guard_exponential(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if not args or not _is_real(args[0]):
        return None
    largest = _SHARE_OF_RANGE * math.log(torch.finfo(args[0].dtype).max) / _EXPONENTIALS[get_function_name(func)]
    result: Tensor = func(args[0].clamp(max=largest), *args[1:], **kwargs)
    return result


def _guard_arc(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if not args or not _is_real(args[0]):
        return None
    largest = min(_LARGEST_COSINE, 1 - torch.finfo(args[0].dtype).eps)
    result: Tensor = func(args[0].clamp(-largest, largest), *args[1:], **kwargs)
    return result


def _guard_softmax(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    dimension = args[_DIMENSION] if len(args) > _DIMENSION else kwargs.get("dim")
    if not args or not _is_real(args[0]) or not isinstance(dimension, int):
        return None
    is_masked = (args[0] == -math.inf).all(dimension, keepdim=True)
    result: Tensor = func(args[0].masked_fill(is_masked, 0), *args[1:], **kwargs)
    return result.masked_fill(is_masked, 0)


_GUARDS: dict[str, _Guard] = {
    **dict.fromkeys(_ROOTS, _guard_root),
    **dict.fromkeys(_POWERS, _guard_power),
    **dict.fromkeys(_QUOTIENTS | _REVERSED_QUOTIENTS, _guard_quotient),
    **dict.fromkeys(_LOGARITHMS, _guard_logarithm),
    "log1p": _guard_logarithm_behind_one,
    **dict.fromkeys(_EXPONENTIALS, _guard_exponential),
    **dict.fromkeys(_ARCS, _guard_arc),
    "softmax": _guard_softmax,
}
"""The guard of each function, by its name."""
