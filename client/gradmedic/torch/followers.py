"""Finds which activation and normalization the output of each parameter goes through, and what its input went through.

Where only the code of `forward` decides it, the first autograd graph shows it.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradmedic.torch.graph import LINEAR, AutogradGraph

_ACTIVATIONS = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Gelu": "gelu", "Silu": "silu", "Elu": "elu", "Mish": "mish",
    "LeakyRelu": "leaky_relu", "Hardtanh": "hardtanh", "Hardswish": "hardswish", "Hardsigmoid": "hardsigmoid",
    "Softplus": "softplus", "LogSigmoid": "logsigmoid", "Softmax": "softmax", "LogSoftmax": "log_softmax",
    "PreluKernel": "prelu", "Softsign": "softsign", "SafeSoftmax": "softmax",
}  # fmt: skip
_UNBOUNDED = {"Exp": "exp", "Exp2": "exp", "Expm1": "exp", "Sinh": "exp", "Cosh": "exp"}
"""Operations that grow faster than their input. They are activations only where a matrix takes their result: a variance
or a rate that a network predicts is also the exponential of an output."""
_POWERS = {2.0: "square", 3.0: "cube"}
_ATTENTION = "ScaledDotProduct"
"""Beginning of the names of the fused kernels of attention. Their arguments are queries, keys and values."""
_VALUES = 2
_PARTS = frozenset({"Select", "Split", "SplitWithSizes", "Unbind", "Slice", "UnsafeSplit", "Chunk"})
"""Operations that take a part of a signal: queries, keys and values of one matrix."""


@dataclass(frozen=True, slots=True)
class Follower:
    """What the output of a layer goes through next. None means that it is not known."""

    activation: str | None = None
    """Name of the activation; `linear` if another layer follows directly."""
    normalized: bool | None = None
    """Whether there is a normalization before it."""


def find_follower(graph: AutogradGraph, operation: int) -> Follower:
    """Return what comes first behind an operation."""
    return _follow(graph, operation, is_normalized=False)


def has_normalized_input(graph: AutogradGraph, operation: int) -> bool | None:
    """Return whether the input of an operation comes from a normalization directly; None if it has no known input."""
    signals = graph.list_signals(operation)
    if len(signals) != 1:
        return None
    (node,) = signals
    while graph.passes_signal_on(node) or graph.operations[node] in _PARTS:
        signals = graph.list_signals(node)
        if len(signals) != 1:
            return None
        (node,) = signals
    return graph.is_normalization(node)


def _follow(graph: AutogradGraph, node: int, *, is_normalized: bool) -> Follower:
    while True:
        following = graph.consumers[node]
        if len(set(following)) == 1 and graph.is_product_with_itself(following[0]):
            following = following[:1]
        if len(following) > 1 and (
            graph.operations[node] in _PARTS or all(graph.operations[each] in _PARTS for each in following)
        ):
            return _join([_step(graph, node, each, is_normalized) for each in dict.fromkeys(following)], is_normalized)
        if len(following) != 1:
            return Follower(None, is_normalized or None)
        (next_node,) = following
        follower = _read_follower(graph, node, next_node, is_normalized)
        if follower is not None:
            return follower
        is_normalized = is_normalized or graph.is_normalization(next_node)
        node = next_node


def _step(graph: AutogradGraph, node: int, next_node: int, is_normalized: bool) -> Follower:
    follower = _read_follower(graph, node, next_node, is_normalized)
    if follower is not None:
        return follower
    return _follow(graph, next_node, is_normalized=is_normalized or graph.is_normalization(next_node))


def _read_follower(graph: AutogradGraph, node: int, next_node: int, is_normalized: bool) -> Follower | None:
    """Return what follows if `next_node`, which takes the result of `node`, decides it; None if it does not."""
    operation = graph.operations[next_node]
    if operation in _ACTIVATIONS:
        return Follower(_ACTIVATIONS[operation], is_normalized)
    if (unbounded := _find_unbounded(graph, next_node)) is not None:
        return Follower(unbounded if _feeds_matrix(graph, next_node) else None, is_normalized)
    if operation.startswith(_ATTENTION):
        is_value = graph.sources[next_node].index(node) == _VALUES
        return Follower("linear" if is_value else "softmax", is_normalized)
    if graph.is_normalization(next_node) or operation in _PARTS or graph.is_matrix_product_of_signals(next_node):
        return None
    if operation in LINEAR:
        return Follower("linear", is_normalized)
    return None if graph.passes_signal_on(next_node) else Follower(None, is_normalized)


def _find_unbounded(graph: AutogradGraph, node: int) -> str | None:
    """Return the name of a function that grows faster than its input; None if the node is no such function."""
    if graph.is_product_with_itself(node):
        return "square"
    exponent = graph.exponents.get(node)
    if exponent is not None:
        return _POWERS.get(exponent, "power") if exponent > 1 else None
    return _UNBOUNDED.get(graph.operations[node])


def _feeds_matrix(graph: AutogradGraph, node: int) -> bool:
    """Whether a matrix takes the result of a node, and nothing else does, without a normalization in between."""
    while len(following := set(graph.consumers[node])) == 1:
        (node,) = following
        if graph.operations[node] in LINEAR:
            return not graph.is_matrix_product_of_signals(node)
        if not graph.passes_signal_on(node):
            return False
    return False


def _join(followers: list[Follower], is_normalized: bool) -> Follower:
    """Return what follows the parts of one signal. The values of an attention have no activation of their own."""
    found = {follower.activation for follower in followers}
    normalized = {follower.normalized for follower in followers}
    if found == {"softmax", "linear"}:
        found = {"softmax"}
    return Follower(
        found.pop() if len(found) == 1 else None, normalized.pop() if len(normalized) == 1 else is_normalized
    )
