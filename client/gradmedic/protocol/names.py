"""The rules for names of projects, runs, groups, layers, metrics and tags.

The client checks them too. A bad name then costs a warning, where the service would refuse the whole block.
"""

from __future__ import annotations

LONGEST_NAME = 512
"""The largest number of characters in a name that any service accepts. It is also the default of `max_name_length`."""


def name_error(name: str, max_length: int = LONGEST_NAME) -> str | None:
    """Return why a name is not allowed, None if it is.

    >>> name_error("encoder.0.weight", 512)
    >>> name_error(" ", 512)
    'must not be empty'
    """
    if not name.strip():
        return "must not be empty"
    if len(name) > max_length:
        return f"has {len(name)} characters; at most {max_length} are allowed"
    return text_error(name) or (None if name.isprintable() else "must not contain control characters")


def text_error(text: str) -> str | None:
    """Return why a text cannot be stored, None if it can. PostgreSQL stores neither NUL nor lone surrogates."""
    if "\x00" in text:
        return "must not contain the NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return None
