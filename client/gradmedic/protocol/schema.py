"""How pydantic validates and describes the classes of the protocol.

The client decodes answers into these plain dataclasses with msgspec, which ignores unknown fields. The service
validates requests with pydantic, which refuses unknown fields. Nothing here imports pydantic: `SCHEMA` and the methods
below are the forms in which pydantic reads instructions from foreign classes.
"""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, get_args

from gradmedic.protocol.numbers import NONFINITE_NAMES


class OneOf:
    """Annotation that lists the known values of a string field in OpenAPI.

    Other values are accepted, so that a peer of another version may send a new one.
    """

    def __init__(self, *values: str) -> None:
        self.values = values

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        """Add the values to the field's JSON schema."""
        return {**handler(schema), "enum": list(self.values)}


class _StrictType:
    """Annotation that forbids conversion: neither "2" nor true becomes 2."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Make the field's validation strict."""
        return {**handler(source), "strict": True}


class _StrictNumber:
    """Annotation that accepts a number or the name of a non-finite one, but neither "1.5" nor true.

    A block has thousands of numbers, so pydantic checks this schema without a call of Python.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Return a schema that tries a finite number first, the most frequent case."""
        named = {"type": "chain", "steps": [{"type": "literal", "expected": list(NONFINITE_NAMES)}, {"type": "float"}]}
        number = {"type": "float", "strict": True}
        is_nullable = type(None) in get_args(source)
        return {
            "type": "union",
            "mode": "left_to_right",
            "choices": [number, *([{"type": "none"}] if is_nullable else []), named],
            "custom_error_type": "number_only",
            "custom_error_message": f"must be a number or one of {', '.join(NONFINITE_NAMES)}",
        }

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        """Return the JSON schema of a number. `gradmedic_service.http.documentation` adds the non-finite names."""
        has_null = any(choice["type"] == "none" for choice in schema["choices"])
        return {"anyOf": [{"type": "number"}, {"type": "null"}]} if has_null else {"type": "number"}


StrictInt = Annotated[int, _StrictType()]


StrictBool = Annotated[bool, _StrictType()]


Number = Annotated[float, _StrictNumber()]


NumberOrNull = Annotated[float | None, _StrictNumber()]
"""A number or null. Validation is a third faster than with `Number | None`."""


@cache
def _field_docstrings(module: str) -> dict[str, dict[str, str]]:
    """Read the docstrings of a module's fields, by class and field."""
    described: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(node, ast.ClassDef):
            for statement, following in pairwise(node.body):
                match statement, following:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        described.setdefault(node.name, {})[name] = inspect.cleandoc(text)
    return described


def _describe_fields(schema: dict[str, Any], cls: type) -> None:
    """Add the fields' docstrings to a JSON schema. Pydantic's own `use_attribute_docstrings` parses at every start."""
    for base in cls.__mro__:
        if base is object:
            continue
        for name, text in _field_docstrings(base.__module__).get(base.__name__, {}).items():
            schema["properties"][name].setdefault("description", text)


SCHEMA: dict[str, Any] = {
    "extra": "forbid",
    "json_schema_extra": _describe_fields,
}
"""Pydantic's configuration of every class of the protocol."""
