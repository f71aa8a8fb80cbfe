"""Estimates the loss of a predictor with a constant output, in the units of the loss that the script logs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gradmedic.torch.constant_level import (
    Array,
    absolute_error,
    binary_cross_entropy_sum,
    cross_entropy_sum,
    huber_error,
    shrink_frequencies,
    squared_error,
)
from gradmedic.torch.loss_calls import ClassTargets, LossCall, ValueTargets

SAME_NUMBER = 1e-5
"""Relative difference up to which two losses are one number: a hundred roundings of float32."""
_SAME_FACTOR = 2e-3
"""Relative difference up to which the logged loss is the same multiple of the loss function at all steps. A loss of
half precision is rounded by up to 1e-3."""
_SAME_LEVEL = 0.1
"""Relative difference up to which several calls at a step seem to have the same targets: of two outputs whose targets
have means that are one standard deviation apart, the pooled variance is a quarter larger."""


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """The loss of one step, and the calls of loss functions that computed it."""

    logged: float
    calls: tuple[LossCall, ...]
    are_separate: bool
    """Whether gradients were computed of each call apart from the others, as in a loop that accumulates them."""


def estimate_constant_level(steps: Sequence[LoggedStep]) -> float | None:
    """Return the loss of a constant predictor, None if it cannot be estimated.

    Calls whose targets have the same meaning are pooled. The logged loss must be a fixed multiple of the sum of the
    calls, or a sum over elements that the script divided by their number; or the same call at each step.
    """
    steps = [step for step in steps if step.calls and math.isfinite(step.logged)]
    factors = _find_factors(steps)
    if factors is None:
        steps = [LoggedStep(step.logged, equal, True) for step in steps if len(equal := _find_equal(step)) == 1]
        factors = [1.0] * len(steps)
    calls = [call for step in steps for call in step.calls]
    if not calls or any(call.targets is None for call in calls):
        return None
    groups: dict[Hashable, list[LossCall]] = {}
    for call in calls:
        groups.setdefault(call.group, []).append(call)
    levels = {group: _level_of_group(group_calls) for group, group_calls in groups.items()}
    if not _are_groups_pure(steps, levels):
        return None
    sums = [
        factor * sum(_scale_to_call(levels[call.group], call) for call in step.calls)
        for factor, step in zip(factors, steps, strict=True)
    ]
    level = float(np.mean(sums))
    return level if math.isfinite(level) and level > 0 else None


def _find_factors(steps: Sequence[LoggedStep]) -> list[float] | None:
    """Return what the sum of each step's calls is multiplied by, None if there is no rule."""
    sums = [sum(float(call.value.read()[0]) for call in step.calls) for step in steps]
    if not steps or not all(math.isfinite(total) and total != 0 for total in sums):
        return None
    factors = [step.logged / total for step, total in zip(steps, sums, strict=True)]
    counts = [sum(_count_terms(call) for call in step.calls) for step in steps]
    by_count = [factor * count for factor, count in zip(factors, counts, strict=True)]
    calls = len(steps[0].calls)
    if _is_near(factors, [1.0, 1.0 / calls], SAME_NUMBER) or (len(steps) > 1 and _are_equal(factors)):
        return factors
    return factors if len(steps) > 1 and _are_equal(by_count) else None


def _is_near(numbers: Iterable[float], expected: Sequence[float], tolerance: float) -> bool:
    numbers = list(numbers)
    return any(all(math.isclose(number, each, rel_tol=tolerance) for number in numbers) for each in expected)


def _are_equal(numbers: Sequence[float]) -> bool:
    return all(number > 0 for number in numbers) and max(numbers) <= min(numbers) * (1.0 + _SAME_FACTOR)


def _find_equal(step: LoggedStep) -> tuple[LossCall, ...]:
    """Return the calls whose result is the logged loss."""
    return tuple(
        call for call in step.calls if math.isclose(float(call.value.read()[0]), step.logged, rel_tol=SAME_NUMBER)
    )


def _are_groups_pure(steps: Sequence[LoggedStep], levels: dict[Hashable, float]) -> bool:
    """Whether the calls of a group at a step seem to have the same targets. Those of two outputs may not."""
    by_place: dict[Hashable, dict[int, list[LossCall]]] = {}
    for step in steps:
        counts: dict[Hashable, int] = {}
        for call in () if step.are_separate else step.calls:
            place = counts[call.group] = counts.get(call.group, -1) + 1
            by_place.setdefault(call.group, {}).setdefault(place, []).append(call)
    return all(
        len(places) < 2
        or math.isclose(
            float(np.mean([_level_of_group(calls) for calls in places.values()])), levels[group], rel_tol=_SAME_LEVEL
        )
        for group, places in by_place.items()
    )


def _count_terms(call: LossCall) -> float:
    """Return the number of terms that a sum over a call has."""
    if isinstance(call.targets, ClassTargets):
        return call.targets.count_valid(call.count, call.classes or 0)[1]
    return float(call.count)


def _level_of_group(calls: Sequence[LossCall]) -> float:
    """Return the loss of the best constant for calls with targets of one meaning: for each term that is averaged."""
    over_classes = [(call, call.targets) for call in calls if isinstance(call.targets, ClassTargets)]
    if over_classes:
        return _level_of_classes(over_classes)
    values = [call.targets for call in calls if isinstance(call.targets, ValueTargets)]
    return _level_of_values(values, calls[0].function) if values else math.nan


def _level_of_classes(calls: Sequence[tuple[LossCall, ClassTargets]]) -> float:
    first_call, first = calls[0]
    classes, are_indices = first_call.classes or 0, first.indices is not None
    total, valid = np.zeros(classes), 0.0
    for call, targets in calls:
        counts, count = targets.count_valid(call.count, classes)
        total, valid = total + counts, valid + count
    if not valid:
        return math.nan
    frequencies = shrink_frequencies(total / valid, valid) if are_indices else total / valid
    weight = np.ones(classes) if first.weight is None else first.weight.read().reshape(-1)
    mass = weight * ((1.0 - first.smoothing) * frequencies + first.smoothing / classes)
    # torch divides the mean by the weights of the targets, but not if these are probabilities.
    divisor = float((weight * frequencies).sum()) if are_indices and first_call.reduction == "mean" else 1.0
    return cross_entropy_sum(mass) / divisor


def _level_of_values(targets: Sequence[ValueTargets], function: str) -> float:
    values: Array = np.concatenate([each.values.read() for each in targets])
    if function == "mse_loss":
        return squared_error(values)
    if function == "l1_loss":
        return absolute_error(values)
    if function in ("huber_loss", "smooth_l1_loss"):
        return huber_error(values, targets[0].threshold, is_smooth_l1=function == "smooth_l1_loss")
    positive_weights = [each.positive_weight.read() for each in targets if each.positive_weight is not None]
    weights = [each.weight.read() for each in targets if each.weight is not None]
    positive_weight: Array = np.concatenate(positive_weights) if positive_weights else np.ones_like(values)
    if weights:
        weight: Array = np.concatenate(weights)
        positive, negative = (weight * positive_weight * values).mean(axis=0), (weight * (1.0 - values)).mean(axis=0)
    else:
        share = values.mean(axis=0)
        share = shrink_frequencies(np.stack([share, 1.0 - share]), len(values))[0]
        positive, negative = positive_weight.mean(axis=0) * share, 1.0 - share
    return binary_cross_entropy_sum(positive, negative) / len(positive)


def _scale_to_call(level: float, call: LossCall) -> float:
    """Return what a call would return at a level for each term; of a call that does not reduce, the mean."""
    if call.reduction == "mean":
        return level
    return level * _count_terms(call) / (1 if call.reduction == "sum" else call.count)
