"""Reads the call of a loss function from the graph, where a script calls a reference that was taken before the watch.

`from torch.nn.functional import mse_loss` is such a reference: replacing the function in its module does not reach it.
The node of the loss holds the arguments for the backward pass. They are read only where unpacking them does nothing
else: no hook of saved tensors, as that of a checkpoint, may run.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional

from gradmedic.torch.graph import get_operation
from gradmedic.torch.loss_graph import NodeId, identify, skip_views

_REDUCTIONS = ("none", "mean", "sum")
"""Reductions by the number that a node stores."""
_SCALINGS = frozenset({"Mul", "Div"})
_MOST_SCALINGS = 4
"""Scalings between a loss and the tensor of which gradients are computed: by accumulation, by a loss scaler."""


@dataclass(frozen=True, slots=True)
class _StoredCall:
    """What the node of a loss function stores of its call."""

    function: str
    tensors: tuple[str, ...] = ()
    """Optional arguments that are tensors."""
    numbers: Mapping[str, str] = field(default_factory=dict)
    """Arguments that are numbers, each with the name of its attribute."""


_STORED_CALLS: Mapping[str, _StoredCall] = {
    "MseLoss": _StoredCall("mse_loss"),
    "SmoothL1Loss": _StoredCall("smooth_l1_loss", numbers={"beta": "_saved_beta"}),
    "HuberLoss": _StoredCall("huber_loss", numbers={"delta": "_saved_delta"}),
    "BinaryCrossEntropy": _StoredCall("binary_cross_entropy", ("weight",)),
    "BinaryCrossEntropyWithLogits": _StoredCall("binary_cross_entropy_with_logits", ("weight", "pos_weight")),
    "NllLoss": _StoredCall("nll_loss", ("weight",), {"ignore_index": "_saved_ignore_index"}),
    "NllLoss2D": _StoredCall("nll_loss", ("weight",), {"ignore_index": "_saved_ignore_index"}),
}
"""The loss functions whose nodes hold their arguments, by the operation of the node."""


@dataclass(frozen=True, slots=True)
class ReadCall:
    """A call of a loss function, as its node shows it."""

    function: str
    arguments: dict[str, Any]
    """The arguments by name. A cross entropy is read as `nll_loss` of its log-probabilities."""
    is_root: bool
    """Whether the given tensor is the result of the call, apart from its shape."""

    def repeat(self) -> Tensor:
        """Return the result of the call, computed again. Observed loss functions must be called as nested ones."""
        result: Tensor = getattr(functional, self.function)(**self.arguments)
        return result


def read_call(root: Tensor, seen: Container[NodeId | None] = ()) -> ReadCall | None:
    """Return the call that computed a tensor, or something that was multiplied to get it; None if there is none.

    Args:
        root: a tensor of which gradients are about to be computed.
        seen: results of calls that are known; their nodes are not read.
    """
    node, is_root = skip_views(root.grad_fn), True
    for _ in range(_MOST_SCALINGS):
        if node is None or get_operation(node) not in _SCALINGS:
            break
        sources = [source for source, _ in node.next_functions if source is not None]
        node, is_root = (skip_views(sources[0]) if len(sources) == 1 else None), False
    stored = None if node is None else _STORED_CALLS.get(get_operation(node))
    if node is None or stored is None or identify(node) in seen:
        return None
    arguments = _read_arguments(node, stored)
    return None if arguments is None else ReadCall(stored.function, arguments, is_root)


def _read_arguments(node: Node, stored: _StoredCall) -> dict[str, Any] | None:
    """Return the arguments that a node holds; None if a hook would have to unpack them, or if they are gone."""
    tensors: dict[str, Tensor | None] = {}
    for name in ("input", "target", *stored.tensors):
        attribute = "self" if name == "input" else name
        packed = getattr(node, f"_raw_saved_{attribute}", None)
        if packed is None or not hasattr(packed, "unpack_hook") or packed.unpack_hook is not None:
            return None
        try:
            tensors[name] = getattr(node, f"_saved_{attribute}")
        except RuntimeError:  # gradients were computed already, or something was changed in place: it is freed or lost
            return None
    prediction, target = tensors["input"], tensors["target"]
    if prediction is None or target is None:
        return None
    numbers = {name: _with_sign(getattr(node, attribute)) for name, attribute in stored.numbers.items()}
    number_of_reduction: int = node._saved_reduction  # type: ignore[attr-defined]
    tensors |= {"input": _unexpand(prediction), "target": _unexpand(target)}
    return {**tensors, **numbers, "reduction": _REDUCTIONS[number_of_reduction]}


def _with_sign(number: float) -> float:
    """Return a number that a node holds; torch reads negative integers as unsigned ones.

    >>> _with_sign(2**64 - 100), _with_sign(0.5)
    (-100, 0.5)
    """
    return number - 2**64 if number >= 2**63 else number


def _unexpand(tensor: Tensor) -> Tensor:
    """Return a tensor without what broadcasting has repeated.

    >>> import torch
    >>> _unexpand(torch.ones(3, 1).expand(3, 5)).shape
    torch.Size([3, 1])
    """
    for dimension, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dimension, 0, 1)
    return tensor
