"""Finds which activation the output of each parameter goes through, where only the code of `forward` decides it.

Autograd records what `forward` did. After the first call that records gradients, the graph is walked once from the
output back to the parameters. From each parameter it is then walked forward to the first operation that is not linear.
Only names of nodes are read: no tensor is read, and nothing of the graph is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node

from gradmedic.torch.first_batch import tensors_in
from gradmedic.torch.module_hooks import attach_forward_hook
from gradmedic.torch.recorded_code import is_recorded

logger = logging.getLogger("gradmedic")

_LARGEST_GRAPH = 20_000
"""Nodes of a graph that is walked. An unrolled recurrence over a long sequence has more; then nothing is returned."""

_ACTIVATIONS = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Gelu": "gelu", "Silu": "silu", "Elu": "elu", "Mish": "mish",
    "LeakyRelu": "leaky_relu", "Hardtanh": "hardtanh", "Hardswish": "hardswish", "Hardsigmoid": "hardsigmoid",
    "Softplus": "softplus", "LogSigmoid": "logsigmoid", "Softmax": "softmax", "LogSoftmax": "log_softmax",
    "PreluKernel": "prelu", "Softsign": "softsign",
}  # fmt: skip
_NORMALIZATIONS = frozenset({
    "NativeBatchNorm", "CudnnBatchNorm", "NativeLayerNorm", "NativeGroupNorm", "FusedRmsNorm",
})  # fmt: skip
_LINEAR = frozenset({"Addmm", "Mm", "Bmm", "Addmv", "Mv", "Convolution", "Linear"})
_TRANSPARENT = frozenset({
    "T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Expand", "Squeeze", "Unsqueeze", "Clone",
    "ToCopy", "NativeDropout", "FusedDropout", "MaxPool2DWithIndices", "AvgPool2D", "AdaptiveAvgPool2D", "Alias",
})  # fmt: skip
"""Operations between a layer and its activation that are no activation themselves."""


@dataclass(frozen=True, slots=True)
class Follower:
    """What the output of a layer goes through next. None means that it is not known."""

    activation: str | None = None
    """Name of the activation; `linear` if another layer follows directly."""
    normalized: bool | None = None
    """Whether there is a normalization before it."""


class FirstGraph:
    """Forward hook of a model that walks the first autograd graph.

    Args:
        model: None in a copy of the hook, which does nothing.
        after_walk: function that is called after the graph was walked.
    """

    def __init__(self, model: nn.Module | None, after_walk: Callable[[], None] = lambda: None) -> None:
        self._after_walk = after_walk
        self.followers: dict[int, Follower] = {}
        """What follows each parameter, by the parameter's id. Empty until the graph was walked."""
        self._hook = None if model is None else attach_forward_hook(model, self)

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """Walk the graph of the model's output."""
        if is_recorded() or self._hook is None:  # in this order: the hook cannot be traced
            return
        try:
            roots = [node for tensor in tensors_in(output) if (node := tensor.grad_fn) is not None]
            if roots:
                self.close()
                self.followers = find_followers(roots)
                self._after_walk()
        except Exception as error:  # must not reach the script
            logger.warning("gradmedic: the first graph could not be walked: %r", error)

    def close(self) -> None:
        """Remove the hook."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def __reduce__(self) -> tuple[type[FirstGraph], tuple[None]]:
        return FirstGraph, (None,)


def join_followers(graphs: Sequence[FirstGraph]) -> dict[int, Follower]:
    """Return what the graphs of several models showed, by the parameter's id."""
    if len(graphs) == 1:
        return graphs[0].followers
    return {parameter: follower for graph in graphs for parameter, follower in graph.followers.items()}


def find_followers(roots: Iterable[Node]) -> dict[int, Follower]:
    """Return what follows the operation of each parameter that the graph reaches, by the parameter's id."""
    consumers: dict[Node, list[Node]] = {}
    leaves: dict[Node, Tensor] = {}
    seen, waiting = set(roots), list(roots)
    while waiting:
        node = waiting.pop()
        if len(seen) > _LARGEST_GRAPH:
            return {}
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            leaves[node] = variable
        for source, _ in node.next_functions:
            if source is not None:
                consumers.setdefault(source, []).append(node)
                if source not in seen:
                    seen.add(source)
                    waiting.append(source)
    followers = {}
    for leaf, parameter in leaves.items():
        operations = _find_operations(leaf, consumers)
        candidates = {_find_follower(operation, consumers, leaves) for operation in operations}
        if len(candidates) == 1:
            followers[id(parameter)] = candidates.pop()
    return followers


def _find_operations(leaf: Node, consumers: dict[Node, list[Node]]) -> list[Node]:
    """Return the operations that use a parameter, or a view of it."""
    operations, waiting = [], list(consumers.get(leaf, ()))
    while waiting:
        node = waiting.pop()
        if get_operation(node) in _TRANSPARENT:
            waiting.extend(consumers.get(node, ()))
        else:
            operations.append(node)
    return operations


def _find_follower(node: Node, consumers: dict[Node, list[Node]], leaves: dict[Node, Tensor]) -> Follower:
    normalized = False
    while True:
        following = consumers.get(node, [])
        if len(following) != 1:
            return Follower(None, normalized or None)
        (node,) = following
        operation = get_operation(node)
        if operation in _ACTIVATIONS:
            return Follower(_ACTIVATIONS[operation], normalized)
        if operation in _NORMALIZATIONS:
            normalized = True
        elif operation in _LINEAR:
            return Follower("linear", normalized)
        elif operation not in _TRANSPARENT and not _shifts_or_scales(node, leaves):
            return Follower(None, normalized)


def _shifts_or_scales(node: Node, leaves: dict[Node, Tensor]) -> bool:
    """Whether a node adds a bias, or multiplies by something that needs no gradient, as dropout does on a CPU.

    In contrast, a residual connection or a gate joins two signals that both need a gradient.
    """
    sources = [source for source, _ in node.next_functions if source is not None]
    if get_operation(node) in ("Add", "Sub"):
        return len(sources) == 1 or any(source in leaves for source in sources)
    return get_operation(node) in ("Mul", "Div") and len(sources) == 1


def get_operation(node: Node) -> str:
    """Return the operation of a node: `Relu` of `ReluBackward0`."""
    return str(node.name()).partition("Backward")[0].rpartition("::")[2]
