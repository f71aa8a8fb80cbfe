"""The role of a layer: as the client sent it, else as its shape, its kind and its name show it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from gradmedic.protocol.runs import Layer

_EMBEDDING_KINDS = ("embedding", "embeddingbag")
_EMBEDDING_NAME = re.compile(r"(^|[._])(emb\w*|wte|wpe|pos)([._]|$)", re.IGNORECASE)
_RECURRENT_NAME = re.compile(
    r"(^|[._/])(weight_hh|w_hh|hh|h2h|recurrent_kernel|recurrent)([._/]|_l\d|$)", re.IGNORECASE
)
_VECTOR_NAME = re.compile(r"(bias|beta|gamma|(norm|bn|ln)[\w]*[._]weight)", re.IGNORECASE)
_SHIFT_NAME = re.compile(r"bias|beta", re.IGNORECASE)
_NORMALIZATION_PREFIXES = ("norm", "bn", "ln")


def count_elements(layer: Layer) -> int:
    """Return the number of elements of a layer; 1 where it is unknown."""
    if layer.numel is not None:
        return max(1, layer.numel)
    return max(1, math.prod(layer.shape)) if layer.shape is not None else 1


def is_embedding(layer: Layer) -> bool:
    """Whether a layer is an embedding."""
    if layer.role is not None:
        return layer.role == "embedding"
    return (layer.kind or "").lower() in _EMBEDDING_KINDS or _EMBEDDING_NAME.search(layer.name) is not None


def is_matrix(layer: Layer) -> bool:
    """Whether a layer is a weight matrix, no embedding. A gain of unknown shape may pass; see `is_gain`."""
    if layer.role is not None:
        return layer.role in ("weight", "recurrent")
    if is_embedding(layer) or (layer.shape is not None and len(layer.shape) < 2):
        return False
    return _VECTOR_NAME.search(layer.name) is None


def is_gain(layer: Layer, size_by_name: Mapping[str, int]) -> bool:
    """Whether a `weight` of unknown shape is as large as its `bias`: a normalization's gain, not a matrix."""
    if layer.shape is not None or layer.role is not None or not layer.name.endswith("weight"):
        return False
    return size_by_name.get(layer.name.removesuffix("weight") + "bias") == size_by_name[layer.name] > 1


def is_recurrent(layer: Layer) -> bool:
    """Whether a layer is a hidden-to-hidden matrix, by its role or its name."""
    return layer.role == "recurrent" or (layer.role is None and _RECURRENT_NAME.search(layer.name) is not None)


def is_named_after_normalization(layer: Layer) -> bool:
    """Whether a part of a layer's name begins as the name of a normalization."""
    return any(part.startswith(_NORMALIZATION_PREFIXES) for part in layer.name.lower().split("."))


def find_role(layer: Layer, size_by_name: Mapping[str, int]) -> str:
    """Return the role of a layer: that which the client sent, else that which the diagnosis reads from its name.

    Args:
        layer: the layer.
        size_by_name: number of elements of all layers of the run, by name.

    >>> find_role(Layer(name="encoder.norm1.weight"), {"encoder.norm1.weight": 8})
    'gain'
    """
    if layer.role is not None:
        return layer.role
    if is_embedding(layer):
        return "embedding"
    if is_matrix(layer):
        return "gain" if is_gain(layer, size_by_name) else "recurrent" if is_recurrent(layer) else "weight"
    return "bias" if _SHIFT_NAME.search(layer.name) else "gain"
