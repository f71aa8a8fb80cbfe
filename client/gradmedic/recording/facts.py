"""Converts and checks the facts about a run that an instrumentation found, as the service will check them.

A fact that has the wrong type or range is left out with a warning. Without this check, the service would refuse the
whole run because of it.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from gradmedic.protocol.names import LONGEST_NAME, name_error, text_error
from gradmedic.protocol.numbers import MAX_EXACT_INTEGER
from gradmedic.protocol.origins import (
    LONGEST_TEXT,
    MOST_BATCH_TENSORS,
    MOST_EXAMPLES,
    ORIGIN_KINDS,
    ORIGIN_PASSES,
    ORIGIN_REPRODUCED,
    ORIGIN_UNITS,
    SPECIAL_INPUTS,
    BatchTensor,
    Origin,
    OriginInput,
    SourceLine,
)
from gradmedic.protocol.runs import LAYER_ORDERS, LAYER_ROLES, LOSS_KINDS, Layer, Loss, Optimizer, Training

_EXCERPT = 50
"""Characters of a wrong value that a warning shows."""
_MAX_OPERATIONS = 64
"""Operations of a loss that the service accepts."""
_MAX_DIMENSIONS = 32
"""Dimensions of a shape that the service accepts."""

Fact = TypeVar("Fact", Layer, Loss, Optimizer, Training, Origin, OriginInput, SourceLine, BatchTensor)
Warn = Callable[[str, str], None]
"""Logs a message, once for each kind. It takes the kind and the message."""


def check_layer(layer: Layer, warn: Warn) -> Layer:
    """Return a layer with plain values of the right types. Its name is repaired, because a layer cannot do without."""
    layer = dataclasses.replace(_check(layer, layer.name, _LAYER_CHECKS, warn), name=_repair_name(layer.name, warn))
    if layer.shape is not None and layer.numel is not None and layer.numel != math.prod(layer.shape):
        warn(f"numel {layer.name}", f"the number of elements of {layer.name} is left out: it contradicts its shape")
        return dataclasses.replace(layer, numel=None)
    return layer


def check_training(training: Training, warn: Warn) -> Training:
    """Return a training with plain values of the right types."""
    optimizers = [
        _check(optimizer, f"optimizer {i}", _OPTIMIZER_CHECKS, warn) for i, optimizer in enumerate(training.optimizers)
    ]
    named = [optimizer for optimizer in optimizers if optimizer.name is not None]
    loss = None if training.loss is None else _check(training.loss, "the loss", _LOSS_CHECKS, warn)
    if loss is not None and loss.operations is None:
        loss = dataclasses.replace(loss, operations=[])
    origin = None if training.origin is None else check_origin(training.origin, warn)
    return dataclasses.replace(
        _check(training, "the training", _TRAINING_CHECKS, warn), optimizers=named, loss=loss, origin=origin
    )


def check_origin(origin: Origin, warn: Warn) -> Origin:
    """Return an origin with plain values of the right types. A source line needs its file and its number."""
    checked = _check(origin, "the origin", _ORIGIN_CHECKS, warn)
    source = None if origin.source is None else _check(origin.source, "the origin", _SOURCE_CHECKS, warn)
    if source is not None and (source.file is None or source.line is None):
        source = None
    input_ = None if origin.input is None else _check(origin.input, "the origin", _ORIGIN_INPUT_CHECKS, warn)
    tensors = [_check_batch_tensor(tensor, warn) for tensor in origin.batch_tensors[:MOST_BATCH_TENSORS]]
    return dataclasses.replace(
        checked, source=source, input=input_, operations=checked.operations or [], batch_tensors=tensors
    )


def _check_batch_tensor(tensor: BatchTensor, warn: Warn) -> BatchTensor:
    checked = _check(tensor, "the batch", _BATCH_CHECKS, warn)
    return dataclasses.replace(checked, examples=checked.examples or [])


def _check(fact: Fact, owner: str, checks: Mapping[str, Callable[[Any], Any]], warn: Warn) -> Fact:
    """Return a fact whose fields have passed their checks; those that did not are None."""
    changed: dict[str, Any] = {}
    for name, check in checks.items():
        value = getattr(fact, name)
        if value is None:
            continue
        try:
            checked = check(value)
        except Exception as error:
            warn(f"{name} of {owner}", f"{name} of {owner[:_EXCERPT]} is left out: {error}")
            checked = None
        if checked is not value:
            changed[name] = checked
    return dataclasses.replace(fact, **changed) if changed else fact


def _repair_name(name: Any, warn: Warn) -> str:
    text = str(name)
    error = name_error(text)
    if error is None:
        return text
    repaired = "".join(letter if letter.isprintable() else "?" for letter in text)[:LONGEST_NAME].strip() or "layer"
    warn(f"name {text}", f"the layer {text[:_EXCERPT]!r} is recorded as {repaired[:_EXCERPT]!r}: its name {error}")
    return repaired


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"it is no text but {type(value).__name__}")
    if (error := name_error(value)) is not None:
        raise ValueError(f"it {error}")
    return value


def _long_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"it is no text but {type(value).__name__}")
    if (error := text_error(value)) is not None:
        raise ValueError(f"it {error}")
    return value[:LONGEST_TEXT]


def _choice(*choices: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"it is none of {', '.join(choices)}")
        return str(value)

    return check


def _operations(value: Any) -> list[str]:
    if len(value) > _MAX_OPERATIONS:
        raise ValueError(f"it has more than {_MAX_OPERATIONS} names")
    return [_text(name) for name in value]


def _count(value: Any) -> int:
    number = operator.index(value)  # also of a tensor that torch.jit.trace records
    if not 0 <= number <= MAX_EXACT_INTEGER:
        raise ValueError(f"it must be from 0 to {MAX_EXACT_INTEGER}, not {number}")
    return int(number)


def _shape(value: Any) -> list[int]:
    sizes = [_count(size) for size in value]
    if len(sizes) > _MAX_DIMENSIONS or math.prod(sizes) > MAX_EXACT_INTEGER:
        raise ValueError("it has too many dimensions or elements")
    return sizes


def _examples(value: Any) -> list[int]:
    if len(value) > MOST_EXAMPLES:
        raise ValueError(f"it has more than {MOST_EXAMPLES} examples")
    return [_count(example) for example in value]


def _number(value: Any) -> float:
    if isinstance(value, (str, bytes)):
        raise TypeError("it is a text and no number")
    return float(value)


def _size(value: Any) -> float:
    """Return a number that is not negative; NaN and infinity are allowed."""
    number = _number(value)
    if number < 0:
        raise ValueError(f"it must not be negative, and is {number}")
    return number


def _flag(value: Any) -> bool:
    if type(value).__name__ not in ("bool", "bool_"):
        raise TypeError(f"it is no truth value but {type(value).__name__}")
    return bool(value)


_LAYER_CHECKS: dict[str, Callable[[Any], Any]] = {
    "kind": _text, "shape": _shape, "numel": _count, "depth": _count, "role": _choice(*LAYER_ROLES), "fan_in": _count,
    "fan_out": _count, "activation": _text, "normalized": _flag, "branch": _flag, "initial_rms": _size,
    "spectral_norm": _size, "input_normalized": _flag, "block": _text, "calls": _count, "requires_grad": _flag,
}  # fmt: skip
_OPTIMIZER_CHECKS: dict[str, Callable[[Any], Any]] = {
    "name": _text, "learning_rate": _number, "momentum": _number, "weight_decay": _number, "beta2": _number,
    "epsilon": _number,
}  # fmt: skip
_LOSS_CHECKS: dict[str, Callable[[Any], Any]] = {
    "kind": _choice(*LOSS_KINDS), "operations": _operations, "classes": _count, "constant_level": _number,
    "broadcasts": _flag, "surrogate": _flag,
}  # fmt: skip
_TRAINING_CHECKS: dict[str, Callable[[Any], Any]] = {
    "precision": _text, "parameter_dtype": _text,
    "input_rms": _size, "input_abs_max": _size, "target_rms": _size, "batch_size": _count,
    "clips_gradients": _flag, "carries_gradients": _flag, "layer_order": _choice(*LAYER_ORDERS),
    "dropped_steps": _count,
}  # fmt: skip
_SOURCE_CHECKS: dict[str, Callable[[Any], Any]] = {"file": _text, "line": _count, "text": _long_text}
_BATCH_CHECKS: dict[str, Callable[[Any], Any]] = {
    "shape": _shape, "dtype": _text, "digest": _text, "nonfinite_count": _count, "min": _number, "max": _number,
    "examples": _examples,
}  # fmt: skip
_ORIGIN_INPUT_CHECKS: dict[str, Callable[[Any], Any]] = {
    "shape": _shape, "dtype": _text, "special": _choice(*SPECIAL_INPUTS), "count": _count, "total": _count,
    "unit": _choice(*ORIGIN_UNITS), "value": _number, "text": _long_text,
}  # fmt: skip
_ORIGIN_CHECKS: dict[str, Callable[[Any], Any]] = {
    "operation": _text, "direction": _choice(*ORIGIN_PASSES), "module": _long_text, "step": _count, "value": _number,
    "kind": _choice(*ORIGIN_KINDS), "reproduced": _choice(*ORIGIN_REPRODUCED), "is_loss_finite": _flag,
    "is_eager": _flag, "operations": _operations, "reason": _long_text, "text": _long_text,
}  # fmt: skip
