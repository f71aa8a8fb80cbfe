"""How pydantic validates and describes the classes of the protocol.

The client decodes answers into these plain dataclasses with msgspec, which ignores unknown fields. The service
validates requests with pydantic, which refuses unknown fields. Nothing here imports pydantic: `SCHEMA` and the methods
below are the forms in which pydantic reads instructions from foreign classes.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, get_args

from gradmedic.protocol.names import text_error
from gradmedic.protocol.numbers import JSON_INTEGERS, LARGEST_INT64, NONFINITE_NAMES

TEXT_PATTERN = r"^[^\x00]*$"
"""Every text but one with the NUL character, which PostgreSQL cannot store."""

EARLIEST_TIME = datetime(1, 1, 2, tzinfo=UTC)
LATEST_TIME = datetime(9999, 12, 30, tzinfo=UTC)
"""The times that a database can store and read again in every time zone."""


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


class Between:
    """Annotation that bounds an integer: a column of a database holds 32 or 64 bits."""

    def __init__(self, minimum: int, maximum: int) -> None:
        self.minimum = minimum
        self.maximum = maximum

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Add the bounds to the field's validation. The bounds of an inner annotation no longer count."""
        return {**handler(source), "ge": self.minimum, "le": self.maximum}


class _StorableText:
    """Annotation that refuses text that PostgreSQL cannot store: the NUL character and lone surrogates.

    Pydantic checks for surrogates because of the pattern. A description of a run has thousands of names, so there is no
    call of Python.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Add the pattern to the field's validation."""
        return {**handler(source), "pattern": TEXT_PATTERN}


class _Checked:
    """Annotation that checks a validated value by a function, which returns why the value is refused or None."""

    def __init__(self, find_error: Callable[[Any], str | None]) -> None:
        self._find_error = find_error

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Add the check to the field's validation."""
        return {
            "type": "function-after",
            "function": {"type": "no-info", "function": self._check},
            "schema": handler(source),
        }

    def _check(self, value: Any) -> Any:
        message = self._find_error(value)
        if message is not None:
            raise ValueError(message)
        return value


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


def scalar_error(value: object) -> str | None:
    """Return why a text or a number within JSON cannot be stored, None if it can.

    >>> scalar_error(2**64)
    'must be from -9223372036854775808 to 18446744073709551615'
    """
    if isinstance(value, str):
        return text_error(value)
    if isinstance(value, int) and value not in JSON_INTEGERS:
        return f"must be from {JSON_INTEGERS.start} to {JSON_INTEGERS.stop - 1}"
    return None


def time_error(moment: datetime) -> str | None:
    """Return why a time cannot be stored, None if it can."""
    if moment.tzinfo is None:
        return "must have a time zone, as in 2027-01-01T00:00:00Z"
    if not EARLIEST_TIME <= moment <= LATEST_TIME:
        return f"must be from {EARLIEST_TIME.date()} to {LATEST_TIME.date()}"
    return None


Text = Annotated[str, _StorableText()]
"""A text that every database stores."""


Scalar = Annotated[float | int | str | bool, _Checked(scalar_error)]
"""A value of a parameter, as it stands in JSON."""


Time = Annotated[datetime, _Checked(time_error)]
"""A time that every database stores."""


StrictInt = Annotated[int, _StrictType(), Between(-LARGEST_INT64 - 1, LARGEST_INT64)]


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
    "defer_build": True,
}
"""Pydantic's configuration of every class of the protocol. A validator is built when it is first needed: the service
has a hundred of them, and would start later."""
