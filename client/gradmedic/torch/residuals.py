"""Finds residual branches in an autograd graph: sums that join a signal with an earlier version of itself.

One side of such a sum is the signal of an earlier node, passed on unchanged. The other side descends from it, through
the branch. A shortcut with a single matrix, as where a ResNet changes its width, counts as the unchanged side if the
branch has several (He et al. 2016, "Identity mappings in deep residual networks", section 2).
"""

from __future__ import annotations

from dataclasses import dataclass

from gradmedic.torch.graph import LINEAR, AutogradGraph

_VISITS_PER_NODE = 8
"""Visits of nodes over the nodes of the graph, after which the search ends: as deep as residual blocks are nested."""


_Edge = tuple[int, int]
"""A node, and which of its results."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch beside an identity path."""

    join: int
    """Node of the sum."""
    nodes: frozenset[int]
    """Nodes of the branch, without the sum."""


def find_branches(graph: AutogradGraph) -> list[Branch] | None:
    """Return the residual branches of a graph; None if the search would take too long."""
    branches = []
    budget = _VISITS_PER_NODE * len(graph.operations)
    for node, operation in enumerate(graph.operations):
        if operation not in ("Add", "Sub"):
            continue
        signals = graph.list_signal_edges(node)
        if len(signals) != 2:
            continue
        for is_projected in (False, True):
            nodes, visits = _find_branch(graph, signals, is_projected=is_projected)
            budget -= visits
            if nodes:
                branches.append(Branch(node, nodes))
                break
        if budget < 0:
            return None
    return branches


def _find_branch(graph: AutogradGraph, signals: list[_Edge], *, is_projected: bool) -> tuple[frozenset[int], int]:
    """Return the nodes of the branch that ends in one of two signals, and the number of visits of nodes."""
    total = 0
    for identity, end in (signals, signals[::-1]):
        path = _walk_identity(graph, identity, is_projected=is_projected)
        if not path:
            continue
        nodes, is_joined, visits = _walk_back(graph, end, path)
        total += visits
        if not is_joined or not nodes:
            continue
        if is_projected and sum(graph.operations[node] in LINEAR for node in nodes) < 2:
            continue
        return frozenset(nodes), total
    return frozenset(), total


def _walk_identity(graph: AutogradGraph, edge: _Edge, *, is_projected: bool) -> set[_Edge]:
    """Return the results that hold one signal, from `edge` backwards.

    Args:
        graph: the graph.
        edge: where to begin.
        is_projected: whether to return those before one matrix and its normalization; none if there is no matrix.
    """
    path = {edge}
    has_matrix = not is_projected
    while True:
        node, _ = edge
        if graph.passes_signal_on(node):
            pass
        elif not has_matrix and graph.operations[node] in LINEAR:
            has_matrix = True
            path.clear()
        elif has_matrix or not graph.is_normalization(node):
            return path if has_matrix else set()
        signals = graph.list_signal_edges(node)
        if len(signals) != 1:
            return path if has_matrix else set()
        (edge,) = signals
        path.add(edge)


def _walk_back(graph: AutogradGraph, end: _Edge, path: set[_Edge]) -> tuple[set[int], bool, int]:
    """Return the nodes between a path and `end`, whether `end` descends from the path, and the number of visits."""
    if end in path:
        return set(), False, 1
    earliest = min(graph.sequence[node] for node, _ in path)
    nodes, waiting, is_joined = {end[0]}, [end[0]], False
    while waiting:
        node = waiting.pop()
        for source, output in zip(graph.sources[node], graph.outputs[node], strict=True):
            if (source, output) in path:
                is_joined = True
            elif (
                source >= 0 and source not in nodes and earliest < graph.sequence[source] and source not in graph.leaves
            ):
                nodes.add(source)
                waiting.append(source)
    return nodes, is_joined, len(nodes)
