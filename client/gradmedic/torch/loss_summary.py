"""Concludes from the first steps of a training what its loss is. The functions here read numbers, and no tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradmedic.protocol.runs import Loss
from gradmedic.torch.loss_calls import ClassTargets, LossCall, ValueTargets
from gradmedic.torch.loss_graph import LossGraph
from gradmedic.torch.loss_level import SAME_NUMBER, LoggedStep, estimate_constant_level
from gradmedic.torch.statistics import MeasuredArray

_BOTH_SIGNS = 0.01
"""Share of the smaller of both signs from which the weights of log-probabilities have both. Rounding has 1e-7;
advantages without a mean have about a half."""
_FEWEST_PAIRS = 2
"""Pairs in a batch of a contrastive loss."""
_GIVEN_TARGETS = frozenset({
    "cross_entropy", "binary_cross_entropy", "squared_error", "absolute_error", "huber", "ctc",
})  # fmt: skip
"""Kinds of losses that compare outputs with targets, so that they measure progress if the targets are given."""

_ERRORS = frozenset({"squared_error", "absolute_error", "huber"})
"""Those of them whose targets are values."""


@dataclass(frozen=True, slots=True)
class ObservedRoot:
    """A tensor of which a script computed gradients."""

    value: MeasuredArray
    graph: LossGraph
    policy_gradients: list[MeasuredArray]
    """Of each weighted log-probability, the sums of the positive and of the negative gradients of the loss."""


@dataclass(frozen=True, slots=True)
class ObservedStep:
    """What was observed between two calls of `log()`."""

    logged: MeasuredArray | float
    """The loss that was logged."""
    graph: LossGraph | None
    """Its graph, if it has one."""
    calls: tuple[LossCall, ...]
    roots: tuple[ObservedRoot, ...]
    has_inference: bool
    """Whether a watched model was also called without gradients."""


def summarize(steps: Sequence[ObservedStep], *, optimizers: int) -> Loss | None:
    """Return what some steps show of the loss; None if they show nothing.

    Args:
        steps: the first steps.
        optimizers: number of the optimizers that are watched in the process.
    """
    graphs = [_choose_graphs(step) for step in steps]
    seen = [graph for step_graphs in graphs for graph in step_graphs]
    related = [_choose_calls(step, step_graphs) for step, step_graphs in zip(steps, graphs, strict=True)]
    calls = [call for step_calls in related for call in step_calls]
    if not seen and not calls:
        return None
    is_policy = _is_policy_gradient([root for step in steps for root in step.roots])
    surrogate = is_policy or _is_contrastive(calls) or _is_adversarial(steps, optimizers)
    has_own_kind = is_policy or any(graph.subtracts_outputs for graph in seen)
    kind = "other" if has_own_kind else _find_kind(seen, calls)
    logged = [
        LoggedStep(_read(step.logged), step_calls, are_separate=len(step_graphs) > 1)
        for step, step_graphs, step_calls in zip(steps, graphs, related, strict=True)
    ]
    classes = {call.classes for call in calls if call.classes is not None}
    return Loss(
        kind=kind,
        operations=seen[0].operations if seen else [],
        classes=classes.pop() if len(classes) == 1 else None,
        constant_level=None if has_own_kind else estimate_constant_level(logged),
        broadcasts=_find_broadcast(seen, calls),
        surrogate=True if surrogate else _find_given(kind, calls, steps),
    )


def _find_broadcast(graphs: Sequence[LossGraph], calls: Sequence[LossCall]) -> bool | None:
    """Return whether output and target broadcast, in a loss function or in a formula of the script; None: not seen."""
    if any(graph.broadcasts for graph in graphs):
        return True
    return any(call.broadcasts for call in calls) if calls else None


def _read(number: MeasuredArray | float) -> float:
    return number if isinstance(number, float) else float(number.read()[0])


def _choose_graphs(step: ObservedStep) -> list[LossGraph]:
    """Return the graph of the logged loss, else those of the tensors of which gradients were computed.

    Of these, the one whose number was logged is chosen, if there is one.
    """
    if step.graph is not None:
        return [step.graph]
    logged = _read(step.logged)
    equal = [root for root in step.roots if math.isclose(_read(root.value), logged, rel_tol=SAME_NUMBER)]
    return [root.graph for root in equal[:1] or step.roots]


def _choose_calls(step: ObservedStep, graphs: Sequence[LossGraph]) -> tuple[LossCall, ...]:
    """Return the calls of loss functions that computed the logged loss, as far as the graphs show; else all."""
    nodes = {node for graph in graphs for node in graph.losses}
    return tuple(call for call in step.calls if call.node in nodes) or step.calls


def _find_kind(graphs: Sequence[LossGraph], calls: Sequence[LossCall]) -> str | None:
    kinds = {kind for graph in graphs for kind in graph.kinds | graph.weighed_kinds}
    kinds = kinds or {call.kind for call in calls}
    if len(kinds) == 1:
        return kinds.pop()
    is_unseen = not graphs or any(graph.is_opaque for graph in graphs)
    return None if not kinds and is_unseen else "other"


def _find_given(kind: str | None, calls: Sequence[LossCall], steps: Sequence[ObservedStep]) -> bool | None:
    """Return False if the loss compares outputs with targets that were given, None if that is not known.

    A model that is also called without gradients at each step may compute the values that it is compared with, as in
    temporal-difference learning.
    """
    are_given = bool(calls) and all(call.targets is not None or call.kind == "ctc" for call in calls)
    if kind in _ERRORS and all(step.has_inference for step in steps):
        return None
    return False if kind in _GIVEN_TARGETS and are_given else None


# --- surrogates -------------------------------------------------------------------------------------------------------


def _is_policy_gradient(roots: Sequence[ObservedRoot]) -> bool:
    """Whether log-probabilities are weighed by numbers of both signs, or are those of the model's own samples."""
    if any(root.graph.weighs_own_samples for root in roots):
        return True
    sums = np.array([gradient.read() for root in roots for gradient in root.policy_gradients]).reshape(-1, 2)
    positive, negative = float(sums[:, 0].sum()), -float(sums[:, 1].sum())
    total = positive + negative
    return math.isfinite(total) and total > 0 and min(positive, negative) >= _BOTH_SIGNS * total


def _is_contrastive(calls: Sequence[LossCall]) -> bool:
    """Whether the classes are the examples of the batch: logits are products of outputs, targets are all different."""
    candidates = [call for call in calls if call.contrasts_outputs]
    return bool(candidates) and all(_are_targets_of_pairs(call) for call in candidates)


def _are_targets_of_pairs(call: LossCall) -> bool:
    if not isinstance(call.targets, ClassTargets) or call.targets.indices is None:
        return False
    indices = call.targets.indices.read()
    return indices.size >= _FEWEST_PAIRS and len(np.unique(indices)) == indices.size


def _is_adversarial(steps: Sequence[ObservedStep], optimizers: int) -> bool:
    """Whether networks train against each other.

    A critic subtracts its mean outputs. A discriminator compares its outputs with two constants, in losses of several
    optimizers: once as the discriminator's, once as the generator's.
    """
    if any(root.graph.subtracts_outputs for step in steps for root in step.roots):
        return True
    if optimizers < 2:
        return False
    calls = [call for step in steps for call in step.calls]
    constants = {_find_constant(call) for call in calls}
    has_several_roots = any(len(step.roots) > 1 for step in steps)
    return has_several_roots and bool(calls) and len(constants) > 1 and None not in constants


def _find_constant(call: LossCall) -> float | None:
    """Return the number that all targets of a call are, None if they are different ones."""
    if not isinstance(call.targets, ValueTargets):
        return None
    values = call.targets.values.read()
    return float(values.flat[0]) if values.min() == values.max() else None
