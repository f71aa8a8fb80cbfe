"""Describes what was special about the input of an operation that has no finite result.

A rule reads the tensors of the operation and returns what it finds. The rules of a forward operation see its arguments.
Those of a backward operation see what the operation saved in its forward pass, by name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from gradmedic.protocol.origins import OriginInput
from gradmedic.torch.origin.numbers import is_checked

Saved = Mapping[str, Any]
"""What an operation saved in its forward pass, by the name of the argument or `result`."""

_ROOTS = frozenset({"sqrt", "rsqrt"})
_LOGARITHMS = frozenset({"log", "log2", "log10", "xlogy", "log1p", "logit"})
_DIVISIONS = frozenset({"division", "reciprocal", "remainder", "fmod"})
_EXPONENTIALS = frozenset({"exp", "exp2", "expm1", "sinh", "cosh"})
_BOUNDED = frozenset({"acos", "asin", "atanh", "erfinv"})
_SOFTMAXES = frozenset({"softmax", "log_softmax", "scaled_dot_product_attention"})
_SPREADS = frozenset({"std", "var", "std_mean", "var_mean"})
_NORMS = frozenset({"norm", "linalg.vector_norm", "linalg.norm", "dist", "cdist", "euclidean_dist", "normalize"})
_LABELLED = frozenset({"nll_loss", "cross_entropy"})


def describe_forward(operation: str, inputs: Sequence[Any], outputs: Sequence[Tensor]) -> OriginInput:
    """Describe the input of an operation of a forward pass.

    Args:
        operation: name of the operation.
        inputs: its arguments, in order.
        outputs: its outputs.
    """
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    first = floats[0] if floats else (tensors[0] if tensors else None)
    if first is None:
        return OriginInput()
    if operation in _LABELLED and len(tensors) > 1:
        return _describe_labels(first, next(tensor for tensor in tensors if not tensor.is_floating_point()), inputs)
    if "ctc" in operation:
        return _describe_alignment(first, inputs)
    found = _describe_arguments(operation, floats or [first], inputs)
    return found or _describe_overflow(floats or [first], outputs) or _plain(first)


def describe_backward(
    operation: str, saved: Saved, gradient: Tensor | None, output: Tensor, *, inner: OriginInput
) -> OriginInput:
    """Describe the input of an operation whose gradient is not finite.

    Args:
        operation: name of the operation.
        saved: what the operation saved.
        gradient: the gradient that arrives.
        output: the first gradient that is not finite.
        inner: description of the input of the one operation inside of the gradient that failed.
    """
    argument = next((saved[name] for name in ("self", "input", "other") if _is_float(saved.get(name))), None)
    result = saved.get("result")
    found: OriginInput | None = None
    if operation in _DIVISIONS and _is_float(saved.get("other")):
        found = _count_zeros(saved["other"], "the denominator")
    elif operation in _DIVISIONS and _is_float(result):
        found = _count(result.isinf(), result, "zero", "the denominator was 0")
    elif operation in _ROOTS and _is_float(result):
        found = _count_zeros(result, "the input") or _count(result.isinf(), result, "zero", "the input was 0")
    elif operation in _NORMS | {"std", "std_mean"} and _is_float(result):
        what = "the input of the norm" if operation in _NORMS else "the spread of the input"
        found = _single_element(operation, saved) or _count_zeros(result, what)
    elif operation in _EXPONENTIALS and _is_float(result):
        found = _count(result.isinf(), result, "overflow", "the result was infinite")
    elif "ctc" in operation:
        likelihood = saved.get("result0", saved.get("neg_log_likelihood"))
        if _is_float(likelihood):
            found = _count(
                likelihood.isinf(), likelihood, "impossible_alignment", "the label was longer than its frames allow",
                "example",
            )  # fmt: skip
    elif operation == "atan2" and argument is not None and _is_float(saved.get("other")):
        found = _count((saved["self"] == 0) & (saved["other"] == 0), argument, "zero", "both inputs were 0")
    elif argument is not None:
        found = _describe_arguments(operation, [argument], [argument, saved.get("exponent")], is_backward=True)
    shown = argument if argument is not None else result
    if found is None and _is_float(shown):
        found = _describe_overflow([shown], [output])
    described = found or inner
    if _is_unused(gradient, output):
        text = "the gradient that arrives is 0 there, as in a branch of torch.where that is not taken"
        joined = f"{described.text}; {text}" if described.text else text
        return _with(described, special=described.special or "unused_branch", text=joined)
    return described


def _describe_arguments(
    operation: str, floats: Sequence[Tensor], inputs: Sequence[Any], *, is_backward: bool = False
) -> OriginInput | None:
    first = floats[0]
    if operation in _ROOTS:
        return _count_negatives(first) or _count_zeros(first, "the input")
    if operation == "log1p":
        return _count(first <= -1, first, "out_of_range", "the input was at most -1")
    if operation == "xlogy":
        return _count_negatives(floats[-1]) or _count_zeros(floats[-1], "the second input")
    if operation == "logit":
        return _count((first <= 0) | (first >= 1), first, "out_of_range", "the input was not between 0 and 1")
    if operation in _LOGARITHMS or operation in ("digamma", "lgamma"):
        return _count_negatives(first) or _count_zeros(first, "the input")
    if operation in _DIVISIONS:
        return _count_zeros(floats[-1], "the denominator")
    if operation in _EXPONENTIALS:
        limit = math.log(torch.finfo(first.dtype).max)
        text = f"the input was beyond {limit:.4g}"
        return _count(first.abs() > limit, first, "overflow", text, value=_largest(first))
    if operation in _BOUNDED:
        outside = _count(first.abs() > 1, first, "out_of_range", "the input was outside of [-1, 1]")
        return outside or _count(first.abs() == 1, first, "at_boundary", "the input was exactly 1 or -1")
    if operation == "acosh":
        outside = _count(first < 1, first, "out_of_range", "the input was below 1")
        return outside or _count(first == 1, first, "at_boundary", "the input was exactly 1")
    if operation in ("pow", "cosine_similarity", "prod"):
        return _describe_power(first, inputs) if operation == "pow" else _count_zeros(first, "the input")
    if operation in _SOFTMAXES:
        return _describe_rows(first, inputs)
    if operation in _SPREADS or operation == "mean":
        return _single_element(operation, {"self": first, **_dimensions(inputs)})
    if operation in _NORMS and is_backward:
        return _count_zeros(first, "the input")
    return None


def _describe_power(base: Tensor, inputs: Sequence[Any]) -> OriginInput | None:
    exponent = inputs[1] if len(inputs) > 1 else None
    if isinstance(exponent, Tensor):
        is_whole, is_negative = bool((exponent == exponent.round()).all()), bool((exponent < 0).any())
    else:
        power = float(exponent) if isinstance(exponent, (int, float)) else 0.5
        is_whole, is_negative = power.is_integer(), power < 0
    found = None if is_whole else _count_negatives(base)
    if found is None and (is_negative or not is_whole):
        found = _count_zeros(base, "the base")
    return found


def _describe_rows(scores: Tensor, inputs: Sequence[Any]) -> OriginInput | None:
    dimension = next((value for value in inputs[1:] if isinstance(value, int) and not isinstance(value, bool)), -1)
    if not scores.ndim:
        return None
    rows = (scores == -math.inf).all(dimension)
    if rows.any():
        return _count(rows, scores, "masked_row", "all entries were -inf", "row")
    return _count((scores == math.inf).any(dimension), scores, "nonfinite", "an entry was infinite", "row")


def _describe_labels(logits: Tensor, labels: Tensor, inputs: Sequence[Any]) -> OriginInput:
    ignored = next((value for value in reversed(inputs) if isinstance(value, int) and value < 0), -100)
    is_ignored = labels == ignored
    if bool(is_ignored.all()):
        found = _count(is_ignored, labels, "ignored_labels", f"the label was {ignored}, which is ignored,", "label")
        return _with(found or OriginInput(), shape=list(logits.shape), dtype=_dtype(logits))
    classes = logits.shape[1] if logits.ndim > 1 else logits.shape[0]
    outside = ~is_ignored & ((labels < 0) | (labels >= classes))
    return _count(outside, labels, "out_of_range", "the label was outside of the classes", "label") or _plain(logits)


def _describe_alignment(log_probabilities: Tensor, inputs: Sequence[Any]) -> OriginInput:
    lengths = [torch.as_tensor(value).flatten() for value in inputs[2:4] if isinstance(value, (list, tuple, Tensor))]
    if len(lengths) == 2:
        frames, labels = (length.cpu() for length in lengths)
        found = _count(
            frames < labels, frames, "impossible_alignment", "the label was longer than its frames", "example"
        )
        if found is not None:
            return _with(found, shape=list(log_probabilities.shape), dtype=_dtype(log_probabilities))
    return _with(
        _plain(log_probabilities), special="impossible_alignment",
        text="a label needs more frames than it has: one for each letter, and one between equal letters",
    )  # fmt: skip


def _single_element(operation: str, saved: Saved) -> OriginInput | None:
    tensor = saved.get("self")
    if not isinstance(tensor, Tensor):
        return None
    dimensions = saved.get("dim") or range(tensor.ndim)
    sizes = [tensor.shape[dimension] for dimension in dimensions if -tensor.ndim <= dimension < tensor.ndim]
    reduced = math.prod(sizes)
    if reduced == 0:
        return _with(_plain(tensor), special="empty", text="the input was empty")
    if reduced == 1 and operation in _SPREADS:
        return _with(_plain(tensor), special="single_element", text="the spread was taken over a single element")
    return None


def _dimensions(inputs: Sequence[Any]) -> Saved:
    dimensions = next((value for value in inputs[1:] if isinstance(value, (list, tuple))), None)
    return {"dim": dimensions}


def _describe_overflow(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> OriginInput | None:
    """Describe an operation whose result is beyond the range of its dtype."""
    output = next((tensor for tensor in outputs if tensor.is_floating_point() and tensor.isinf().any()), None)
    floats = [tensor for tensor in inputs if is_checked(tensor) and tensor.is_floating_point()]
    if output is None or not floats:
        return None
    largest = max(_largest(tensor) for tensor in floats)
    limit = torch.finfo(output.dtype).max
    text = f"with inputs up to {largest:.4g}, the result was beyond {limit:.5g}, the largest {_dtype(output)}"
    return _with(_plain(floats[0]), special="overflow", value=largest, text=text)


def _count_zeros(tensor: Tensor, what: str) -> OriginInput | None:
    return _count(tensor == 0, tensor, "zero", f"{what} was 0")


def _count_negatives(tensor: Tensor) -> OriginInput | None:
    return _count(tensor < 0, tensor, "negative", "the input was negative")


def _count(
    mask: Tensor, tensor: Tensor, special: str, text: str, unit: str = "element", value: float | None = None
) -> OriginInput | None:
    """Return the description of the elements or rows for which a mask is true, None if there are none."""
    count, total = int(mask.sum()), mask.numel()
    if not count:
        return None
    units = unit if total == 1 else f"{unit}s"
    return OriginInput(
        shape=list(tensor.shape), dtype=_dtype(tensor), special=special, count=count, total=total, unit=unit,
        value=value, text=f"{text} in {count:,} of {total:,} {units}",
    )  # fmt: skip


def _plain(tensor: Tensor) -> OriginInput:
    return OriginInput(shape=list(tensor.shape), dtype=_dtype(tensor))


def _with(described: OriginInput, **changes: Any) -> OriginInput:
    return dataclasses.replace(described, **changes)


def _is_unused(gradient: Tensor | None, output: Tensor) -> bool:
    if gradient is None or gradient.shape != output.shape:
        return False
    bad = ~output.isfinite()
    return bool((gradient[bad] == 0).all())


def _is_float(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and is_checked(value) and value.is_floating_point()


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
