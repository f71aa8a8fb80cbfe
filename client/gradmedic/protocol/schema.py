"""How the classes of the protocol are validated and described: strict numbers, known values, field descriptions.

The client decodes into these plain dataclasses with msgspec, which ignores unknown fields. The service validates them
with pydantic, which refuses unknown fields. Nothing here imports pydantic: `__pydantic_config__` is data.
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
    """The values a string field has today. Documents them in OpenAPI without refusing one that a newer peer adds."""

    def __init__(self, *values: str) -> None:
        self.values = values

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        """Add the values to the field's JSON schema (called by pydantic, in the service)."""
        return {**handler(schema), "enum": list(self.values)}


class Strictly:
    """Nothing of another type becomes a value of this: neither "2" nor true is 2. Pydantic asks it, in the service."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Make the field's validation strict."""
        return {**handler(source), "strict": True}


class NumberOnly:
    """A number or the name of a non-finite one; a float would also be made of "1.5" and of true.

    A block has thousands of them, so the schema is one that pydantic checks without calling Python.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Try the usual case first (called by pydantic, in the service)."""
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
        """Say of it in OpenAPI what is said of a float."""
        has_null = any(choice["type"] == "none" for choice in schema["choices"])
        return {"anyOf": [{"type": "number"}, {"type": "null"}]} if has_null else {"type": "number"}


StrictInt = Annotated[int, Strictly()]


StrictBool = Annotated[bool, Strictly()]


Number = Annotated[float, NumberOnly()]


NumberOrNull = Annotated[float | None, NumberOnly()]
"""A third faster than `Number | None`."""


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
    """Put the fields' docstrings into OpenAPI. Pydantic's `use_attribute_docstrings` would, parsing at every start."""
    for base in reversed(cls.__mro__):
        if base is object:
            continue
        for name, text in _field_docstrings(base.__module__).get(base.__name__, {}).items():
            schema["properties"][name].setdefault("description", text)


SCHEMA: dict[str, Any] = {
    "extra": "forbid",
    "json_schema_extra": _describe_fields,
}
"""How pydantic treats every dataclass of the schema."""
