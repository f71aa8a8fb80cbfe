"""Flattens nested gradients and metrics: mappings, lists, tuples and dataclasses, such as the pytrees of JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from numbers import Number
from typing import Any

_MAX_DEPTH = 64


def is_nested(value: Any) -> bool:
    """Return whether a value has named parts. A list of numbers is an array and has none."""
    if isinstance(value, Mapping) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return True
    return isinstance(value, (list, tuple)) and not _is_array(value)


def flatten(tree: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Iterate over the leaves with their dotted paths; None is no leaf.

    Raises:
        ValueError: the tree is too deep, as one that contains itself is.

    >>> dict(flatten({"encoder": [1.0, {"bias": 2.0}], "scale": None}))
    {'encoder.0': 1.0, 'encoder.1.bias': 2.0}
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels")
    if tree is None:
        return
    if not is_nested(tree):
        yield path, tree
        return
    for name, part in _parts(tree):
        yield from flatten(part, f"{path}.{name}" if path else str(name), depth + 1)


def _parts(tree: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, Mapping):
        yield from tree.items()
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        yield from zip(tree._fields, tree, strict=True)
    elif isinstance(tree, (list, tuple)):
        yield from enumerate(tree)
    else:
        for field in dataclasses.fields(tree):
            yield field.name, getattr(tree, field.name)


def _is_array(value: Any) -> bool:
    """Return whether a list or tuple has only numbers, or lists of them; an array among them is a part of its own."""
    return all(
        _is_array(item) if isinstance(item, (list, tuple)) else isinstance(item, Number) for item in value
    ) and not hasattr(value, "_fields")
