"""What a name may be: of a project, run, group, layer, metric, tag.

One idea: the client asks the same questions as the service, so that a bad name costs a warning and not a block.
"""

from __future__ import annotations

LONGEST_NAME = 512
"""Characters; no service takes more, and by default it takes as many."""


def name_error(name: str, max_length: int = LONGEST_NAME) -> str | None:
    """Say what is wrong with a name, None if nothing is.

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
    """Say why a text cannot be stored, None if it can: PostgreSQL takes neither NUL nor lone surrogates."""
    if "\x00" in text:
        return "must not contain the NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return None
