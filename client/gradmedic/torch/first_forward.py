"""Reads the first forward pass of a model that records gradients: what it does with each parameter, and when.

The hooks act once. In a copy of the model, or in a file, they do nothing. Compilers and tracers do not see them.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from gradmedic.torch.first_batch import tensors_in
from gradmedic.torch.followers import Follower, find_follower, has_normalized_input
from gradmedic.torch.graph import AutogradGraph
from gradmedic.torch.module_calls import ModuleCalls
from gradmedic.torch.module_hooks import attach_forward_hook
from gradmedic.torch.parameter_use import ParameterUse
from gradmedic.torch.recorded_code import is_recorded
from gradmedic.torch.residuals import find_branches
from gradmedic.torch.structure import unwrap_model

_CHECKPOINT = "CheckpointFunction"
"""Beginning of the operation of a reentrant checkpoint, which hides the graph inside of it."""
_MANNERS = {"Add": "summand", "Sub": "summand", "Cat": "part", "Stack": "part", "Mul": "factor", "Div": "factor"}

logger = logging.getLogger("gradmedic")


class FirstForward:
    """Forward hook of a model that walks the first autograd graph.

    Args:
        model: None in a copy of the hook, which does nothing.
        after_walk: function that is called after the graph was walked.
    """

    def __init__(self, model: nn.Module | None, after_walk: Callable[[], None] = lambda: None) -> None:
        self._after_walk = after_walk
        self.uses: dict[int, ParameterUse] = {}
        """Use of each parameter that the graph holds, by the parameter's id. Empty until the graph was walked."""
        self.unregistered: tuple[weakref.ref[nn.Parameter], ...] = ()
        """Parameters that the model computes with and does not register, as those of layers in a list of Python."""
        self.constant_sums: set[int] = set()
        """Ids of modules that add something without a gradient to a signal: a position, a mask, or their own input."""
        self.recomputed: list[FirstForward] = []
        """First passes of the modules inside of reentrant checkpoints, which the backward pass computes again."""
        self.calls = ModuleCalls(None if model is None else _find_called_model(model))
        self._hook = None if model is None else attach_forward_hook(model, self)

    def __call__(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        """Walk the graph of the model's output."""
        if is_recorded() or self._hook is None:  # in this order: the hook cannot be traced
            return
        if not torch.is_grad_enabled():
            return
        self.calls.close()
        try:
            roots = [node for tensor in tensors_in(output) if (node := tensor.grad_fn) is not None]
            if roots:
                self.close()
                graph = AutogradGraph(roots)
                self.uses = find_uses(graph, self.calls)
                self.constant_sums = _find_constant_sums(graph, self.calls)
                self.unregistered = _find_unregistered(graph, self.calls, module)
                if any(operation.startswith(_CHECKPOINT) for operation in graph.operations):
                    hidden = self.calls.list_hidden()
                    self.recomputed = [FirstForward(inner) for inner in module.modules() if id(inner) in hidden]
                self._after_walk()
        except Exception as error:  # must not reach the script
            logger.warning("gradmedic: the first graph could not be walked: %r", error)

    def close(self) -> None:
        """Remove the hooks."""
        self.calls.close()
        for forward in self.recomputed:
            forward.close()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def __reduce__(self) -> tuple[type[FirstForward], tuple[None]]:
        return FirstForward, (None,)


def find_uses(graph: AutogradGraph, calls: ModuleCalls | None = None) -> dict[int, ParameterUse]:
    """Return how a graph uses each parameter that it reaches, by the parameter's id.

    Args:
        graph: graph of the model's outputs.
        calls: calls of modules during the forward pass, which show the blocks.

    Returns:
        Nothing if the graph has too many nodes.
    """
    if not graph.is_complete:
        return {}
    branches = find_branches(graph)
    block_of: dict[int, int | None] = {}
    for branch in sorted(branches or (), key=lambda branch: -len(branch.nodes)):  # inner branches overwrite outer ones
        first = min(graph.sequence[node] for node in branch.nodes)
        block = None if calls is None else calls.find_innermost(first, graph.sequence[branch.join])
        block_of.update(dict.fromkeys(branch.nodes, block))
    follower_of = cache(partial(find_follower, graph))  # a bias belongs to the operation of its weight
    normalized_of = cache(partial(has_normalized_input, graph))
    uses = {}
    for leaf, parameter in graph.leaves.items():
        operations = graph.find_operations(leaf)
        if not operations:
            continue
        followers = {follower_of(operation) for operation in operations}
        normalized = {normalized_of(operation) for operation in operations}
        manners = {_MANNERS.get(graph.operations[operation]) for operation in operations}
        are_on_branch = {operation in block_of for operation in operations}
        first = min(operations, key=lambda operation: graph.sequence[operation])
        uses[id(parameter)] = ParameterUse(
            follower=followers.pop() if len(followers) == 1 else Follower(),
            first_use=graph.sequence[first],
            count=len(operations),
            manner=manners.pop() if len(manners) == 1 else None,
            input_normalized=normalized.pop() if len(normalized) == 1 else None,
            branch=are_on_branch.pop() if len(are_on_branch) == 1 and branches is not None else None,
            block=block_of.get(first),
        )
    return uses


def _find_constant_sums(graph: AutogradGraph, calls: ModuleCalls) -> set[int]:
    if not graph.is_complete:
        return set()
    sums = (
        sequence
        for operation, sources, sequence in zip(graph.operations, graph.sources, graph.sequence, strict=True)
        if operation == "Add" and len(sources) == 2 and -1 in sources
    )
    found = {calls.find_innermost(sequence, sequence) for sequence in sums}
    return {module for module in found if module is not None}


def _find_unregistered(graph: AutogradGraph, calls: ModuleCalls, model: nn.Module) -> tuple[weakref.ref[Any], ...]:
    """Return the parameters that are used while the model is called, and that it does not have.

    Those behind its inputs, as of the generator whose output a discriminator gets, are used before the call.
    """
    registered = {id(parameter) for parameter in model.parameters()}
    found = []
    for leaf, parameter in graph.leaves.items():
        if id(parameter) not in registered:
            used = [graph.sequence[operation] for operation in graph.find_operations(leaf)]
            if any(calls.find_innermost(sequence, sequence) is not None for sequence in used):
                found.append(weakref.ref(parameter))
    return tuple(found)


def _find_called_model(model: nn.Module) -> nn.Module | None:
    """Return the model without wrappers, whose modules are called one by one; None if a compiler calls them."""
    inner, _ = unwrap_model(model)
    is_compiled = hasattr(model, "_orig_mod") or getattr(inner, "_compiled_call_impl", None) is not None
    return None if is_compiled else inner
