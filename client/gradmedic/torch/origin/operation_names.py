"""Names of operations as users write them."""

from __future__ import annotations

import re
from typing import Any

_SPELLED = {
    "div": "division", "rdiv": "division", "truediv": "division", "rtruediv": "division", "true_divide": "division",
    "divide": "division", "mul": "multiplication", "rmul": "multiplication", "multiply": "multiplication",
    "add": "addition", "radd": "addition", "sub": "subtraction", "rsub": "subtraction", "rpow": "pow",
    "float_power": "pow", "getitem": "indexing", "rmatmul": "matmul", "mm": "matmul", "bmm": "matmul",
    "addmm": "linear", "baddbmm": "matmul", "native_layer_norm": "layer_norm", "native_batch_norm": "batch_norm",
    "native_group_norm": "group_norm", "nll_loss_forward": "nll_loss", "nll_loss2d_forward": "nll_loss",
    "cudnn_batch_norm": "batch_norm", "arccos": "acos", "arcsin": "asin", "arctan2": "atan2", "concat": "cat",
    "vector_norm": "norm", "linalg_norm": "norm", "linalg_vector_norm": "norm", "convolution": "conv",
    "safe_softmax": "softmax",
}  # fmt: skip
"""Other names of the same operation."""
_COMPOSITES = frozenset({"multi_head_attention_forward"})
"""Functions that join so many operations that the inner one is named."""
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def name_function(function: Any) -> str | None:
    """Return the name of a function of torch's API; None for one that joins many operations.

    >>> import torch
    >>> name_function(torch.Tensor.sqrt_), name_function(torch.Tensor.__rdiv__), name_function(torch.linalg.norm)
    ('sqrt', 'division', 'norm')
    """
    name = getattr(function, "__name__", "") or "operation"
    return None if name in _COMPOSITES else normalize(name)


def name_operator(operator: Any) -> str:
    """Return the name of an operation of the dispatcher.

    >>> import torch
    >>> name_operator(torch.ops.aten._softmax.default)
    'softmax'
    """
    return normalize(str(operator._schema.name).rpartition("::")[2])


def name_node(node: str) -> str:
    """Return the name of the operation of a node of the autograd graph.

    >>> name_node("LogSoftmaxBackward0")
    'log_softmax'
    """
    return normalize(_WORD.sub("_", re.sub(r"Backward\d*$", "", node)).lower())


def normalize(name: str) -> str:
    """Return the common name of an operation."""
    name = name.strip("_").removeprefix("special_")
    if name.endswith(("_backward", "_backward_data")):
        name = name.removesuffix("_data").removesuffix("_backward")
    name = _SPELLED.get(name, name)
    return name.replace("linalg_", "linalg.", 1) if name.startswith("linalg_") else name
