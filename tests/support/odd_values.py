"""Values that break services: text that PostgreSQL cannot store, huge integers, times at the edge, deep nesting."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

TEXTS = ("", "\x00", "a\x00b", "\ud800", "b\udfff", "\u202e", "x" * 600, "NaN", "-Infinity")
INTEGERS = (-1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**400)
FLOATS = (1.5, -1e308, float("nan"), float("inf"))
TIMES = (
    "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59",
    "10000-01-01T00:00:00Z",
)


def nested(depth: int) -> list[Any]:
    """Return lists within lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


OTHERS: tuple[Any, ...] = (None, True, [], {}, nested(40), ["\x00"], {"\x00": "\x00"}, {"\ud800": 2**64})
ODD_VALUES: tuple[Any, ...] = TEXTS + INTEGERS + FLOATS + TIMES + OTHERS
_TIME = re.compile(r"\d{4}-\d\d-\d\dT")
ODD_KEYS = ("\x00", "\ud800", "", "x" * 600)


def has_storable_texts(value: Any) -> bool:
    """Whether every database stores the texts of a JSON value: they have neither NUL nor lone surrogates."""
    if isinstance(value, str):
        return "\x00" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return all(has_storable_texts(part) for item in value.items() for part in item)
    if isinstance(value, list):
        return all(map(has_storable_texts, value))
    return True


def odd_bodies(body: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and the content of each variant of a body.

    In each variant one value, at any depth, is replaced by an odd value, or one mapping has an odd key more.
    """
    for path, value in value_paths(body):
        name = ".".join(map(str, path))
        for odd in odd_values_for(value):
            yield f"{name} = {odd!r:.40}", replace_value(body, path, odd)
        if isinstance(value, dict):
            for key in ODD_KEYS:
                yield (
                    f"{name} with {key!r:.40}",
                    replace_value(body, path, value | {key: next(iter(value.values()), 1)}),
                )


def odd_values_for(value: Any) -> tuple[Any, ...]:
    """Return the odd values to put in place of a value.

    What has another type than the value is refused for that, or is taken for what it is, with any content. So a
    text and a number stand for all of them, where these are not the type of the value.
    """
    if isinstance(value, bool):
        return ("", -1, 1.5, *OTHERS)
    if isinstance(value, str):
        return (*TEXTS, *(TIMES if _TIME.match(value) else ()), 10**400, float("nan"), *OTHERS)
    if isinstance(value, int | float):
        return ("", "\x00", "NaN", "-Infinity", *INTEGERS, *FLOATS, *OTHERS)
    return ODD_VALUES


def odd_tokens(token: str) -> Iterator[str]:
    """Yield variants of a page token in which one part of its position is odd, and texts that are no token."""
    query, *position = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    for index in range(len(position)):
        for odd in ODD_VALUES:
            yield _token([query, *position[:index], odd, *position[index + 1 :]])
    for content in ([query], [query, *position, "more"], {query: 1}, "text", 10**400):
        yield _token(content)
    for text in ("[" * 20_000, '{"a":' * 5_000, "[" * 900 + "]" * 900, '["\\ud800"', "1" * 5000, "\x00", "[1e999]"):
        yield base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    yield from ("\x00", "é", "=", "A", "a" * 20_000)


def query_texts() -> Iterator[str]:
    """Yield the odd values that a query parameter can hold."""
    for odd in ODD_VALUES:
        if isinstance(odd, str):
            yield odd.encode("utf-8", "surrogatepass").decode("latin-1")
        elif isinstance(odd, int | float):
            yield str(odd)
    yield "1" * 5000


def _token(content: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def value_paths(body: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield the path and the content of each value of a body, and of the body itself. Of a list, only the last one."""
    yield path, body
    if isinstance(body, dict):
        for key, value in body.items():
            yield from value_paths(value, (*path, key))
    elif isinstance(body, list) and body:
        yield from value_paths(body[-1], (*path, len(body) - 1))


def replace_value(body: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """Return a copy of a body with another value at a path."""
    if not path:
        return value
    changed = deepcopy(body)
    place = changed
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return changed
