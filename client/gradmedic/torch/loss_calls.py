"""A call of a loss function of torch, and the sample of its targets that shows what a constant predictor gets.

A sample is a copy, at most half a megabyte. Nothing of the graph or of the batch is kept.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradmedic.torch.loss_functions import LOSS_KIND_OF
from gradmedic.torch.loss_graph import NodeId, identify, is_log_softmax, is_product_of_outputs, skip_views
from gradmedic.torch.statistics import MeasuredArray, local_part, start_copy

_MOST_ELEMENTS = 65_536
"""Elements of the targets of a call that are copied: of more, evenly spaced ones."""
_MOST_OUTPUTS = 1_024
"""Outputs of the targets of a call that are copied, so that there is room for 64 examples."""

_CLASS_LOSSES = frozenset({"cross_entropy", "nll_loss"})
_BINARY_LOSSES = frozenset({"binary_cross_entropy", "binary_cross_entropy_with_logits"})
REGRESSION_LOSSES = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTargets:
    """Targets of a loss over classes."""

    indices: MeasuredArray | None
    """Indices of the classes. None if the targets are probabilities."""
    mean_probabilities: MeasuredArray | None
    """Mean probability of each class. None if the targets are indices."""
    weight: MeasuredArray | None
    """Weight of each class."""
    ignore_index: int
    smoothing: float

    def count_valid(self, count: int, classes: int) -> tuple[NDArray[np.float64], float]:
        """Return how often each class is a target, and how many are not ignored, of `count` examples."""
        if self.mean_probabilities is not None:
            return self.mean_probabilities.read().reshape(-1) * count, float(count)
        indices = np.zeros(0) if self.indices is None else self.indices.read()
        valid = indices[(indices != self.ignore_index) & (indices >= 0) & (indices < classes)].astype(np.int64)
        scale = count / max(1, indices.size)
        return np.bincount(valid, minlength=classes).astype(np.float64) * scale, valid.size * scale


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueTargets:
    """Targets of a regression, or of decisions between two classes; all arrays are `[example, output]`."""

    values: MeasuredArray
    weight: MeasuredArray | None = None
    positive_weight: MeasuredArray | None = None
    threshold: float = 1.0
    """`delta` of the Huber loss, `beta` of the smooth L1 loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCall:
    """One call of a loss function."""

    function: str
    kind: str
    node: NodeId | None
    value: MeasuredArray
    """The loss; its mean if it was not reduced."""
    reduction: str
    count: int
    """Number of the terms that the reduction sums: examples of a loss over classes, else elements."""
    classes: int | None = None
    contrasts_outputs: bool = False
    """Whether the logits are products of outputs of networks."""
    broadcasts: bool = False
    """Whether output and target broadcast to a shape that is larger than both."""
    targets: ClassTargets | ValueTargets | None = None
    """None if the loss of a constant predictor cannot be estimated from them."""
    group: Hashable = None
    """Calls of one group have targets of the same meaning, as far as their shapes and arguments show."""


def read_loss_call(function: str, arguments: dict[str, Any], result: Tensor) -> LossCall:
    """Return a call of a loss function, given all arguments by name."""
    kind, classes, contrasts = LOSS_KIND_OF[function], None, False
    prediction = arguments.get("input")
    if function in _CLASS_LOSSES and isinstance(prediction, Tensor) and prediction.ndim:
        classes = prediction.shape[1 if prediction.ndim > 1 else 0]
        contrasts = is_product_of_outputs(prediction.grad_fn)
        if function == "nll_loss" and is_log_softmax(skip_views(prediction.grad_fn)):
            kind = "cross_entropy"
    reduction = str(arguments.get("reduction"))
    is_legacy = arguments.get("size_average") is not None or arguments.get("reduce") is not None
    targets = None if is_legacy else _read_targets(function, arguments, classes)
    return LossCall(
        function=function,
        kind=kind,
        node=identify(result.grad_fn),
        value=copy_number(result),
        reduction=reduction,
        count=_count_terms(function, arguments),
        classes=classes,
        contrasts_outputs=contrasts,
        broadcasts=function in REGRESSION_LOSSES and _broadcasts(prediction, arguments.get("target")),
        targets=targets,
        group=(function, reduction, classes, *_describe_targets(targets, arguments.get("target"))),
    )


def _broadcasts(prediction: Any, target: Any) -> bool:
    """Return whether the two tensors broadcast to a shape with more elements than either has."""
    if not isinstance(prediction, Tensor) or not isinstance(target, Tensor):
        return False
    shape = np.broadcast_shapes(tuple(prediction.shape), tuple(target.shape))
    return math.prod(shape) > max(prediction.numel(), target.numel())


def copy_number(tensor: Tensor) -> MeasuredArray:
    """Copy the number in a tensor, or the mean of several, to the host."""
    return start_copy(_plain(tensor).mean().reshape(1))


def _read_targets(function: str, arguments: dict[str, Any], classes: int | None) -> ClassTargets | ValueTargets | None:
    target = arguments.get("target")
    if not isinstance(target, Tensor) or target.requires_grad or not target.numel():
        return None
    if function in _CLASS_LOSSES:
        return _read_class_targets(arguments, target, classes or 0)
    weight = arguments.get("weight")
    if function in _BINARY_LOSSES:
        positive_weight = arguments.get("pos_weight")
        return ValueTargets(
            values=_sample(target),
            weight=None if weight is None else _sample(weight.expand(target.shape)),
            positive_weight=None if positive_weight is None else _sample(positive_weight.expand(target.shape)),
        )
    if function in REGRESSION_LOSSES and weight is None:
        return ValueTargets(values=_sample(target), threshold=float(arguments.get("delta", arguments.get("beta", 1.0))))
    return None


def _read_class_targets(arguments: dict[str, Any], target: Tensor, classes: int) -> ClassTargets:
    weight = arguments.get("weight")
    indices, probabilities = None, None
    if target.is_floating_point():
        rows = _plain(target)
        rows = rows.reshape(1, -1) if rows.ndim == 1 else rows.movedim(1, -1).reshape(-1, classes)
        probabilities = start_copy(rows.mean(dim=0))
    else:
        flat = target.detach().reshape(-1)
        indices = start_copy(flat[:: math.ceil(len(flat) / _MOST_ELEMENTS)].clone())
    return ClassTargets(
        indices=indices,
        mean_probabilities=probabilities,
        weight=None if weight is None else start_copy(_plain(weight).clone()),
        ignore_index=int(arguments["ignore_index"]),
        smoothing=float(arguments.get("label_smoothing", 0.0)),
    )


def _sample(tensor: Tensor) -> MeasuredArray:
    """Copy evenly spaced examples and outputs of a tensor as `[example, output]`."""
    table = _plain(tensor)
    table = table.reshape(len(table), -1) if table.ndim else table.reshape(1, 1)
    table = table[:, :: math.ceil(table.shape[1] / _MOST_OUTPUTS)]
    rows = max(1, _MOST_ELEMENTS // table.shape[1])
    return start_copy(table[:: math.ceil(len(table) / rows)].clone())


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor without its graph, as numbers of numpy."""
    tensor = local_part(tensor).detach()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _describe_targets(targets: ClassTargets | ValueTargets | None, target: Any) -> tuple[Hashable, ...]:
    """Return what targets of one meaning have in common."""
    if isinstance(targets, ClassTargets):
        return (targets.smoothing, targets.indices is None, targets.weight is None)
    if isinstance(targets, ValueTargets):
        return (targets.threshold, targets.weight is None, tuple(target.shape[1:]))
    return ()


def _count_terms(function: str, arguments: dict[str, Any]) -> int:
    prediction, target = arguments.get("input"), arguments.get("target")
    if not isinstance(prediction, Tensor) or not isinstance(target, Tensor):
        return 1
    if function in _CLASS_LOSSES:
        return max(1, prediction.numel() // max(1, prediction.shape[1 if prediction.ndim > 1 else 0]))
    if function in _BINARY_LOSSES or function in REGRESSION_LOSSES:
        return max(1, math.prod(np.broadcast_shapes(tuple(prediction.shape), tuple(target.shape))))
    return max(1, target.numel())
