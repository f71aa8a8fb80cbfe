"""Reads from the graph of autograd which operations computed a loss.

Only names of nodes are read, the shapes of their results, and where they lead to: no tensor, so that nothing is
unpacked or computed again. Nothing of the graph is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch.autograd.graph import Node

from gradmedic.torch.graph import get_operation

MAX_OPERATIONS = 64
"""Operations that are reported, as many as the service takes."""
_MOST_VISITS = 2_000
"""Visits of nodes. A loss that was summed over a long rollout has more; then what the first ones show counts."""
_MOST_STEPS_TO_LEAF = 8
"""Nodes between a parameter and the matrix product that uses it: views, a cast, a weight normalization."""

_VIEWS = frozenset({
    "T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Expand", "Squeeze", "Unsqueeze", "Clone",
    "ToCopy", "Alias", "Slice", "Select", "Split", "SplitWithSizes", "Unbind", "AsStrided",
})  # fmt: skip
_PRODUCTS = frozenset({"Addmm", "Mm", "Bmm", "Baddbmm", "Addmv", "Mv", "Dot", "Linear"})
_LAYERS = frozenset({"Convolution", "Embedding", "EmbeddingBag", "CudnnRnn", "MkldnnRnnLayer"})
_LINEAR = _VIEWS | {"Mean", "Sum", "Cat", "Stack", "Index", "Gather", "IndexSelect", "MaskedFill", "Nansum"}
"""Operations that are linear in each of their inputs, beside sums and products."""
_PICKS = frozenset({"Gather", "Index", "Select", "TakeAlongDim"})
"""Operations that pick the log-probability of one class."""
_RATIO = frozenset({"Exp", "Minimum", "Maximum", "Clamp", "ClampMin", "ClampMax", "Where"})
"""Operations between a log-probability and the loss of a clipped policy gradient."""
_HINGES = frozenset({"Relu", "Clamp", "ClampMin"})
_DIFFERENCES = frozenset({"Sub", "Rsub"})
_OPAQUE = "CompiledFunction"
"""Operation that stands for everything that was compiled."""

_KINDS = {
    "NllLoss": "negative_log_likelihood",
    "NllLoss2D": "negative_log_likelihood",
    "BinaryCrossEntropy": "binary_cross_entropy",
    "BinaryCrossEntropyWithLogits": "binary_cross_entropy",
    "MseLoss": "squared_error",
    "SmoothL1Loss": "huber",
    "HuberLoss": "huber",
    "CtcLoss": "ctc",
    "CudnnCtcLoss": "ctc",
    "MultiMarginLoss": "margin",
    "MultilabelMarginLoss": "margin",
    "SoftMarginLoss": "margin",
}
_CUSTOM_KINDS = {"crossentropy": "cross_entropy", "cross_entropy": "cross_entropy"}
"""Parts of the names of operations that others wrote, such as `LigerFusedLinearCrossEntropyFunction`."""


class NodeId(NamedTuple):
    """Identifies a node without a reference to it."""

    name: str
    number: int
    """The position in the order in which the thread recorded the nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownNodes:
    """Nodes that the calls of a step have shown."""

    outputs: Mapping[NodeId, Hashable] = field(default_factory=dict)
    """Outputs of the watched models. The value names the model, and which of its outputs it is."""
    losses: Mapping[NodeId, str] = field(default_factory=dict)
    """Results of loss functions and log-probabilities, with the kind of loss."""
    log_probabilities: frozenset[NodeId] = frozenset()
    """Log-probabilities of values that have no gradient."""
    own_samples: frozenset[NodeId] = frozenset()
    """Those log-probabilities whose value was drawn from the same distribution."""


@dataclass(slots=True)
class LossGraph:
    """What the graph of a loss shows."""

    operations: list[str] = field(default_factory=list)
    """Names of the operations, from the loss backwards, level by level."""
    kinds: set[str] = field(default_factory=set)
    """Kinds of losses among them."""
    weighed_kinds: set[str] = field(default_factory=set)
    """Kinds of those that are multiplied by something without a gradient."""
    losses: set[NodeId] = field(default_factory=set)
    """The known results of loss functions among them."""
    is_opaque: bool = False
    """Whether a part of the graph was compiled, so that it does not show its operations."""
    weighs_own_samples: bool = False
    """Whether log-probabilities of samples of the model itself are multiplied by something without a gradient."""
    subtracts_outputs: bool = False
    """Whether outputs of one network are subtracted from others, without a target and without a bound."""
    broadcasts: bool = False
    """Whether the difference of an output `[n, 1]` and a target has the shape `[n, n]`."""


@dataclass(frozen=True, slots=True)
class _Path:
    """How the loss depends on a node, along one path."""

    sign: int = 1
    is_linear: bool = True
    is_policy: bool = True
    """Whether the path has only operations of a policy gradient: sums, factors without a gradient, clipped ratios."""
    is_weighted: bool = False
    """Whether the path multiplies by something without a gradient."""
    is_below_loss: bool = False
    """Whether the node computes the input of a loss function that is known."""


def walk_loss(root: Node, known: KnownNodes) -> tuple[LossGraph, list[Node]]:
    """Return what the graph shows, from a loss to the output of the model or to its last layers.

    Args:
        root: node of the loss.
        known: nodes that were seen before.

    Returns:
        The graph, and the nodes of log-probabilities that the loss weighs as a policy gradient does.
    """
    graph, weighed = LossGraph(), dict[Node, None]()
    ends: dict[Hashable, dict[Node, int]] = {}
    listed: set[Node] = set()
    waiting = deque([(root, _Path())])
    seen = {(root, _Path())}
    while waiting and len(seen) < _MOST_VISITS:
        node, path = waiting.popleft()
        operation, identity = get_operation(node), identify(node)
        if operation == "AccumulateGrad":
            continue
        if node not in listed:
            listed.add(node)
            if len(graph.operations) < MAX_OPERATIONS:
                graph.operations.append(operation)
        if operation == _OPAQUE:
            graph.is_opaque = True
            continue
        if identity is not None and identity in known.outputs:
            _note_end(ends, known.outputs[identity], node, path)
            if operation in _VIEWS:
                _list_source(node, graph)
            continue
        if (layer := _find_layer(node, operation)) is not None:
            _note_end(ends, layer, node, path)
            continue
        if identity is not None and identity in known.losses:
            graph.losses.add(identity)
        if operation in _DIFFERENCES and not graph.broadcasts:
            graph.broadcasts = _broadcasts_output(node, known)
        kind = None if path.is_below_loss else _find_kind(node, operation, identity, known, path)
        is_weighed = (
            path.is_policy
            and path.is_weighted
            and not path.is_below_loss
            and _is_log_probability(node, operation, identity, known)
        )
        if is_weighed:
            weighed[node] = None
            graph.weighs_own_samples = graph.weighs_own_samples or identity in known.own_samples
        if kind is not None:
            (graph.weighed_kinds if is_weighed else graph.kinds).add(kind)
        for index, (source, _) in enumerate(node.next_functions):
            if source is not None:
                following = _follow(path, node, operation, index, is_loss=kind is not None)
                if (source, following) not in seen:
                    seen.add((source, following))
                    waiting.append((source, following))
    graph.subtracts_outputs = any({1, -1} <= set(signs.values()) for signs in ends.values())
    return graph, list(weighed)


def identify(node: Node | None) -> NodeId | None:
    """Return what identifies a node."""
    return None if node is None else NodeId(str(node.name()), int(node._sequence_nr()))


def skip_views(node: Node | None) -> Node | None:
    """Return the first node below that is no view."""
    while node is not None and get_operation(node) in _VIEWS:
        node = node.next_functions[0][0] if node.next_functions else None
    return node


def is_log_softmax(node: Node | None) -> bool:
    """Whether a node computes log-probabilities of classes: `LogSoftmax`, or what is written out for it."""
    if node is None:
        return False
    operation = get_operation(node)
    sources = [source for source, _ in node.next_functions if source is not None]
    if operation == "Log":
        return bool(sources) and get_operation(sources[0]) == "Softmax"
    if operation == "Sub":
        return len(sources) == 2 and _is_any(skip_views(sources[1]), "Logsumexp")
    return operation == "LogSoftmax"


def is_product_of_outputs(node: Node | None) -> bool:
    """Whether logits are products of two things that both depend on parameters, such as two batches of embeddings."""
    for _ in range(_MOST_STEPS_TO_LEAF):
        node = skip_views(node)
        if node is None:
            return False
        sources = [source for source, _ in node.next_functions if source is not None]
        operation = get_operation(node)
        if operation in _PRODUCTS:
            return len(sources) > 1 and not any(_is_parameter(source) for source in sources)
        if operation not in ("Mul", "Div", "Add", "Sub", "MaskedFill") or not sources:
            return False
        node = sources[0]
    return False


def _find_kind(node: Node, operation: str, identity: NodeId | None, known: KnownNodes, path: _Path) -> str | None:
    """Return the kind of a loss function that a node computes, None if it computes none."""
    if identity is not None and identity in known.losses:
        return known.losses[identity]
    if operation in ("NllLoss", "NllLoss2D"):
        return "cross_entropy" if is_log_softmax(skip_views(node.next_functions[0][0])) else _KINDS[operation]
    if operation in _KINDS:
        return _KINDS[operation]
    if path.is_policy and (written_out := _find_written_out(node, operation)) is not None:
        return written_out
    return next((kind for part, kind in _CUSTOM_KINDS.items() if part in operation.lower()), None)


def _find_written_out(node: Node, operation: str) -> str | None:
    """Return the kind of a loss function that a script writes out in simple operations."""
    below = [skip_views(source) for source, _ in node.next_functions if source is not None]
    if _averages_log_probability(node, operation):
        return "cross_entropy"
    if not below or not _is_any(below[0], *_DIFFERENCES):
        return None
    is_square = operation == "Pow" and getattr(node, "_saved_exponent", None) == 2
    if is_square or (operation == "Mul" and len(below) == 2 and below[0] is below[1]):
        return "squared_error"
    if operation == "Abs":
        return "absolute_error"
    return "margin" if operation in _HINGES else None


def _averages_log_probability(node: Node, operation: str) -> bool:
    """Whether a node picks the log-probability of a class, or weighs those of all by targets that are probabilities."""
    sources = [source for source, _ in node.next_functions if source is not None]
    is_average = operation in _PICKS or (operation == "Mul" and len(sources) == 1)
    return is_average and bool(sources) and is_log_softmax(skip_views(sources[0]))


def _is_log_probability(node: Node, operation: str, identity: NodeId | None, known: KnownNodes) -> bool:
    if identity in known.log_probabilities or operation in ("NllLoss", "NllLoss2D", "LogSoftmax"):
        return True
    source = node.next_functions[0][0] if operation in _PICKS and node.next_functions else None
    return is_log_softmax(skip_views(source))


def _follow(path: _Path, node: Node, operation: str, index: int, *, is_loss: bool) -> _Path:
    """Return how the loss depends on a source of a node."""
    sign, is_linear, is_policy, is_weighted = path.sign, path.is_linear, path.is_policy, path.is_weighted
    sources = sum(source is not None for source, _ in node.next_functions)
    if operation == "Neg" or (operation, index) in (("Sub", 1), ("Rsub", 0)):
        sign = -sign
    elif operation in ("Mul", "Div", "Dot", "Mm", "Bmm", "Mv"):
        is_factor = sources == 1
        is_linear, is_policy = is_linear and is_factor, is_policy and is_factor
        is_weighted = is_weighted or is_factor
    elif operation in _RATIO:
        is_linear = False
    elif operation not in _LINEAR and operation not in ("Add", "Sub"):
        is_linear = is_policy = False
    return _Path(sign, is_linear, is_policy, is_weighted, path.is_below_loss or is_loss)


def _note_end(ends: dict[Hashable, dict[Node, int]], end: Hashable, node: Node, path: _Path) -> None:
    if path.is_linear:
        ends.setdefault(end, {})[node] = path.sign


def _list_source(node: Node, graph: LossGraph) -> None:
    """Add the operation of which an output is a view."""
    source = skip_views(node)
    if source is not None and len(graph.operations) < MAX_OPERATIONS and get_operation(source) != "AccumulateGrad":
        graph.operations.append(get_operation(source))


def _broadcasts_output(node: Node, known: KnownNodes) -> bool:
    """Whether a difference compares each of the outputs `[n, 1]` of a model with each of `n` targets.

    An output that the script itself gave another shape for that, as a loss over pairs does, does not count.
    """
    sources = [(source, index) for source, index in node.next_functions if source is not None]
    if len(sources) != 1:
        return False
    source, index = sources[0]
    result, output = _read_shape(node, 0), _read_shape(source, index)
    if len(result) != 2 or result[0] != result[1] or result[0] < 2 or output != (result[0], 1):
        return False
    return identify(source) in known.outputs or _find_layer(source, get_operation(source)) is not None


def _read_shape(node: Node, index: int) -> tuple[int, ...]:
    """Return the shape of a result of a node; empty if torch does not show it."""
    results = getattr(node, "_input_metadata", ())
    return tuple(int(size) for size in results[index].shape) if index < len(results) else ()


def _find_layer(node: Node, operation: str) -> Hashable:
    """Return the parameter of the layer that a node computes; None if it computes none."""
    if operation not in _PRODUCTS and operation not in _LAYERS:
        return None
    sources = [source for source, _ in node.next_functions if source is not None]
    parameters = [parameter for source in sources if (parameter := _find_parameter(source)) is not None]
    if not parameters and operation in _LAYERS:
        return operation
    return id(parameters[-1]) if parameters else None


def _find_parameter(node: Node | None) -> Any:
    node = skip_views(node)
    return None if node is None else getattr(node, "variable", None)


def _is_parameter(node: Node | None) -> bool:
    """Whether a node depends on nothing but one parameter, as far as a few steps show."""
    for _ in range(_MOST_STEPS_TO_LEAF):
        node = skip_views(node)
        if node is None or getattr(node, "variable", None) is not None:
            return True
        sources = {source for source, _ in node.next_functions if source is not None}
        if len(sources) != 1:
            return False
        node = sources.pop()
    return False


def _is_any(node: Node | None, *operations: str) -> bool:
    return node is not None and get_operation(node) in operations
