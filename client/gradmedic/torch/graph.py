"""Reads an autograd graph: which operations a model applied, in which order, and which parameters each of them used.

Autograd records what `forward` did. The graph is walked once, from the outputs back to the parameters. Only names and
sequence numbers of nodes are read: no tensor is read, and nothing of the graph is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node

LARGEST_GRAPH = 20_000
"""Nodes of a graph that is walked. An unrolled recurrence over a long sequence has more; then nothing is returned."""

TRANSPARENT = frozenset({
    "T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Expand", "Squeeze", "Unsqueeze", "Clone",
    "ToCopy", "NativeDropout", "FusedDropout", "MaxPool2DWithIndices", "AvgPool2D", "AdaptiveAvgPool2D", "Alias",
    "AsStrided", "Contiguous", "Flatten", "Unflatten", "Mean",
})  # fmt: skip
"""Operations that pass a signal on, and hardly change its size."""
_MATRIX_PRODUCTS = frozenset({"Addmm", "Mm", "Bmm", "Addmv", "Mv", "Linear", "Baddbmm", "MkldnnLinear"})
LINEAR = _MATRIX_PRODUCTS | {"Convolution", "MkldnnConvolution"}
_NORMALIZATION_WORDS = ("layernorm", "batchnorm", "groupnorm", "rmsnorm", "instancenorm")
_ACCUMULATION = "AccumulateGrad"
_ROOTS = frozenset({"Rsqrt", "Sqrt", "LinalgVectorNorm", "Norm"})
"""Operations whose result a normalization written in Python divides by, or multiplies with."""


class AutogradGraph:
    """The nodes behind some outputs, by index. Lists hold one entry a node.

    Args:
        roots: nodes of the outputs.
    """

    def __init__(self, roots: Iterable[Node]) -> None:
        self.operations: list[str] = []
        """Operation of each node, for example `Relu`."""
        self.sources: list[list[int]] = []
        """Nodes whose results a node takes, in the order of its arguments; -1 where no gradient is needed."""
        self.outputs: list[list[int]] = []
        """Which result of each source a node takes: an operation such as `unbind` has several."""
        self.consumers: list[list[int]] = []
        """Nodes that take a node's result."""
        self.sequence: list[int] = []
        """Number of each node in the order of execution, within one thread; -1 of a parameter or an input."""
        self.exponents: dict[int, float] = {}
        """Exponents of the nodes that raise a signal to a constant power, by the index of the node."""
        self.leaves: dict[int, Tensor] = {}
        """Parameters, by the index of the node that accumulates their gradient."""
        self.is_complete = True
        """False if the graph has too many nodes; then it holds only some of them."""
        self._is_parameter: dict[int, bool] = {}
        self._signals: dict[int, list[tuple[int, int]]] = {}
        self._walk(roots)

    def _walk(self, roots: Iterable[Node]) -> None:
        indices: dict[Node, int] = {}
        nodes: list[Node] = []
        operation_of: dict[str, str] = {}
        for root in roots:
            if root not in indices:
                indices[root] = len(nodes)
                nodes.append(root)
                self.consumers.append([])
        done = 0
        while done < len(nodes):
            if len(nodes) > LARGEST_GRAPH:
                self.is_complete = False
                return
            node = nodes[done]
            name = node.name()
            operation = operation_of.get(name)
            if operation is None:
                operation = operation_of[name] = get_operation(node)
            sources: list[int] = []
            outputs: list[int] = []
            for source, output in node.next_functions:
                outputs.append(output)
                if source is None:
                    sources.append(-1)
                    continue
                index = indices.get(source)
                if index is None:
                    index = indices[source] = len(nodes)
                    nodes.append(source)
                    self.consumers.append([])
                sources.append(index)
                self.consumers[index].append(done)
            if not sources:
                variable: Any = getattr(node, "variable", None)
                if isinstance(variable, nn.Parameter):
                    self.leaves[done] = variable
            if operation == "Pow" and isinstance(exponent := getattr(node, "_saved_exponent", None), (int, float)):
                self.exponents[done] = float(exponent)
            self.operations.append(operation)
            self.sources.append(sources)
            self.outputs.append(outputs)
            self.sequence.append(-1 if operation == _ACCUMULATION else node._sequence_nr())
            done += 1

    def is_parameter(self, node: int) -> bool:
        """Whether the node's result is a parameter, or a view of one."""
        known = self._is_parameter.get(node)
        if known is None:
            known = node in self.leaves
            if not known and (self.operations[node] in TRANSPARENT or "WeightNorm" in self.operations[node]):
                sources = [source for source in self.sources[node] if source >= 0]
                known = bool(sources) and all(self.is_parameter(source) for source in sources)
            self._is_parameter[node] = known
        return known

    def list_signals(self, node: int) -> list[int]:
        """Return the sources of a node that are no parameters."""
        return [source for source, _ in self.list_signal_edges(node)]

    def list_signal_edges(self, node: int) -> list[tuple[int, int]]:
        """Return the sources of a node that are no parameters, and which result of each it takes."""
        signals = self._signals.get(node)
        if signals is None:
            edges = zip(self.sources[node], self.outputs[node], strict=True)
            signals = [(source, output) for source, output in edges if source >= 0 and not self.is_parameter(source)]
            self._signals[node] = signals
        return signals

    def find_operations(self, leaf: int) -> list[int]:
        """Return the operations that use a parameter, or a view of it, each once."""
        operations: dict[int, None] = {}
        waiting = list(self.consumers[leaf])
        while waiting:
            node = waiting.pop()
            if self.is_parameter(node):
                waiting.extend(self.consumers[node])
            else:
                operations[node] = None
        return list(operations)

    def passes_signal_on(self, node: int) -> bool:
        """Whether a node passes on one signal, perhaps shifted by a bias or multiplied by a constant or a gain.

        In contrast, a residual connection or a gate joins two signals that both need a gradient.
        """
        operation = self.operations[node]
        if operation in TRANSPARENT:
            return True
        if operation not in ("Add", "Sub", "Mul", "Div") or len(self.list_signals(node)) != 1:
            return False
        return operation in ("Add", "Sub") or not self.is_normalization(node)

    def is_normalization(self, node: int) -> bool:
        """Whether a node normalizes: by a kernel, or as Python does it, by a product with a reciprocal root."""
        operation = self.operations[node]
        if operation in ("Mul", "Div"):
            return len(self.sources[node]) == 2 and any(
                self.operations[self.find_origin(source)] in _ROOTS for source in self.sources[node] if source >= 0
            )
        return _names_normalization(operation)

    def is_matrix_product_of_signals(self, node: int) -> bool:
        """Whether a node multiplies two signals, as attention does, and no signal by a parameter."""
        return self.operations[node] in _MATRIX_PRODUCTS and len(self.list_signals(node)) == 2

    def is_product_with_itself(self, node: int) -> bool:
        """Whether a node multiplies a signal by itself."""
        edges = self.list_signal_edges(node)
        return self.operations[node] == "Mul" and len(edges) == 2 and edges[0] == edges[1]

    def find_origin(self, node: int) -> int:
        """Return the node that made a signal, behind the nodes that pass it on."""
        while self.operations[node] in TRANSPARENT or self.operations[node] in ("Add", "Maximum", "ClampMin", "Clamp"):
            signals = [source for source in self.sources[node] if source >= 0]
            if len(signals) != 1:
                break
            node = signals[0]
        return node


@cache
def _names_normalization(operation: str) -> bool:
    name = operation.lower().replace("_", "")
    return any(word in name for word in _NORMALIZATION_WORDS)


def get_operation(node: Node) -> str:
    """Return the operation of a node: `Relu` of `ReluBackward0`."""
    return str(node.name()).partition("Backward")[0].rpartition("::")[2]
