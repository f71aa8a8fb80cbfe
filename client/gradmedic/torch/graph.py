"""Which activation each parameter's output goes through, where only the code of `forward` decides.

One idea: autograd has written down what `forward` did. Once, after the first call that records gradients, the graph is
walked from the output back to the parameters; then, for each parameter, forward again to the first thing that bends the
signal. Only names of nodes are read: no tensor is touched, and nothing of the graph is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradmedic.torch.first_batch import tensors_in

logger = logging.getLogger("gradmedic")

_LARGEST = 20_000
"""Nodes that are looked at: a recurrence unrolled over a long sequence has more, and then nothing is said."""

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
"""What stands between a layer and its activation without changing which one that is."""


@dataclass(frozen=True, slots=True)
class Follower:
    """What the output of a layer goes through next; None where that is not known."""

    activation: str | None = None
    normalized: bool | None = None


class FirstGraph:
    """Forward hook of a model that walks the first graph it sees; until then, `followers` is empty.

    `on_seen` is called then.
    """

    def __init__(self, model: nn.Module | None, on_seen: Callable[[], None] = lambda: None) -> None:
        self._on_seen = on_seen
        self.followers: dict[int, Follower] = {}
        """By the id of the parameter."""
        self._hook = None if model is None else model.register_forward_hook(self)

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """Walk the graph of the model's output."""
        if torch.compiler.is_compiling() or self._hook is None:  # in this order: the hook cannot be traced
            return
        try:
            roots = [node for tensor in tensors_in(output) if (node := tensor.grad_fn) is not None]
            if roots:
                self.close()
                self.followers = find_followers(roots)
                self._on_seen()
        except Exception as error:  # a model's first call must not fail because of us
            logger.warning("gradmedic: the first graph could not be looked at: %r", error)

    def close(self) -> None:
        """Remove the hook."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def __reduce__(self) -> tuple[type[FirstGraph], tuple[None]]:
        return FirstGraph, (None,)


def find_followers(roots: Iterable[Node]) -> dict[int, Follower]:
    """Return what follows the operation of each parameter that the graph reaches, by the parameter's id."""
    consumers: dict[Node, list[Node]] = {}
    leaves: dict[Node, Tensor] = {}
    seen, waiting = set(roots), list(roots)
    while waiting:
        node = waiting.pop()
        if len(seen) > _LARGEST:
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
        answers = {_follow(operation, consumers, leaves) for operation in operations}
        if len(answers) == 1:
            followers[id(parameter)] = answers.pop()
    return followers


def _find_operations(leaf: Node, consumers: dict[Node, list[Node]]) -> list[Node]:
    """Return the operations that use a parameter, behind the views of it."""
    found, waiting = [], list(consumers.get(leaf, ()))
    while waiting:
        node = waiting.pop()
        if _kind(node) in _TRANSPARENT:
            waiting.extend(consumers.get(node, ()))
        else:
            found.append(node)
    return found


def _follow(node: Node, consumers: dict[Node, list[Node]], leaves: dict[Node, Tensor]) -> Follower:
    normalized = False
    while True:
        following = consumers.get(node, [])
        if len(following) != 1:
            return Follower(None, normalized or None)
        (node,) = following
        kind = _kind(node)
        if kind in _ACTIVATIONS:
            return Follower(_ACTIVATIONS[kind], normalized)
        if kind in _NORMALIZATIONS:
            normalized = True
        elif kind in _LINEAR:
            return Follower("linear", normalized)
        elif kind not in _TRANSPARENT and not _shifts_or_scales(node, leaves):
            return Follower(None, normalized)


def _shifts_or_scales(node: Node, leaves: dict[Node, Tensor]) -> bool:
    """Whether a node adds a bias or multiplies by what needs no gradient, as dropout does on a CPU.

    A residual connection or a gate joins two signals that both need a gradient.
    """
    sources = [source for source, _ in node.next_functions if source is not None]
    if _kind(node) in ("Add", "Sub"):
        return len(sources) == 1 or any(source in leaves for source in sources)
    return _kind(node) in ("Mul", "Div") and len(sources) == 1


def _kind(node: Node) -> str:
    """Return the operation of a node: `Relu` of `ReluBackward0`."""
    return str(node.name()).partition("Backward")[0].rpartition("::")[2]
