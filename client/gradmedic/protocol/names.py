"""The rules for names of projects, runs, groups, layers, metrics and tags, and what a mistyped name is close to.

The client checks them too. A bad name then costs a warning, where the service would refuse the whole block.
"""

from __future__ import annotations

from collections.abc import Iterable

_CLOSE = 0.7
"""Similarity from which a word counts as a mistyped name: at 0.6, `--help` is close to `--levl`."""
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


def closest_first(word: str, choices: Iterable[str]) -> list[str]:
    """Return choices, those that a word is close to first.

    >>> closest_first("helthy", ["undetermined", "healthy"])
    ['healthy', 'undetermined']
    """
    choices = list(choices)
    close = _find_close(word, choices)
    return [*close, *(choice for choice in choices if choice not in close)]


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return the end of a message about an unknown word; empty if no choice is close to it.

    >>> did_you_mean("dignose", ["diagnose", "export"])
    "; did you mean 'diagnose'?"
    """
    close = _find_close(word, choices)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _find_close(word: str, choices: Iterable[str]) -> list[str]:
    """Return up to three choices that a word is close to, in any case of the letters, the closest first."""
    from difflib import get_close_matches  # here, because only mistakes need it

    by_lower = {choice.lower(): choice for choice in reversed(list(choices))}
    return [by_lower[match] for match in get_close_matches(word.lower(), by_lower, cutoff=_CLOSE)]
