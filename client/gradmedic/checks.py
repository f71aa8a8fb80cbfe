"""Checks of arguments and environment variables. Each returns the checked value or raises ConfigurationError.

The first argument of a check is the name of the argument or variable, for the message; the second is the value.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.names import name_error
from gradmedic.protocol.objectives import parse_objective
from gradmedic.protocol.runs import Objective

Check = Callable[[str, Any], Any]


def check_name(name: str, value: Any) -> str:
    """Return a name that is not blank and that the service accepts."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"{name} must be a string that is not blank, not {value!r}")
    if (error := name_error(value)) is not None:
        raise ConfigurationError(f"{name} {error}")
    return value


def check_text(name: str, value: Any) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a string, not {value!r}")
    return value


def check_uuid7(name: str, value: Any) -> UUID:
    """Return a UUID of version 7, also from its text."""
    try:
        id = value if isinstance(value, UUID) else UUID(value)
    except (ValueError, AttributeError, TypeError):
        id = None
    if id is None or id.version != 7:
        raise ConfigurationError(f"{name} must be a UUID of version 7 such as {new_id()}, not {str(value)!r}")
    return id


def check_positive(name: str, value: Any) -> float:
    """Return a finite number above 0, also from its text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not (0 < number < math.inf):
        raise ConfigurationError(f"{name} must be a positive number, not {value!r}")
    return number


def check_positive_integer(name: str, value: Any) -> int:
    """Return a whole number from 1, also from its text."""
    number = check_positive(name, value)
    if number != int(number):
        raise ConfigurationError(f"{name} must be a whole number, not {value!r}")
    return int(number)


def check_frequency(name: str, value: Any) -> int | None:
    """Return a whole number from 1; None for "auto"."""
    if value == "auto":
        return None
    try:
        return check_positive_integer(name, value)
    except ConfigurationError:
        raise ConfigurationError(f'{name} must be "auto" or a whole number from 1, not {value!r}') from None


def check_folder(name: str, value: Any) -> Path:
    """Return the absolute path of a folder, which need not exist."""
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise ConfigurationError(f"{name} must be the path of a folder, not {value!r}")
    path = Path(value)
    if path.exists() and not path.is_dir():
        raise ConfigurationError(f"{name} must be a folder, but {str(path)!r} is not one")
    return path.absolute()  # the script may change its working directory


def check_boolean(name: str, value: Any) -> bool:
    """Return a truth value, also from its text."""
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    try:
        return words[str(value).lower()]
    except KeyError:
        raise ConfigurationError(f"{name} must be true or false, not {value!r}") from None


def check_choice(*choices: str) -> Check:
    """Return a check that takes one of `choices`."""

    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise ConfigurationError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        return str(value)

    return check


def check_objective(name: str, value: Any) -> Objective:
    """Return what counts as progress, from a text such as `minimize loss`, `maximize reward` or `none`."""
    try:
        return parse_objective(value)
    except ValueError as error:
        raise ConfigurationError(f"{name} {error}") from None


def split_at_commas(text: str) -> list[str]:
    """Return the parts of a text between its commas, without those that are blank."""
    return [part.strip() for part in text.split(",") if part.strip()]


def check_tags(name: str, value: Any) -> tuple[str, ...]:
    """Return tags, each once."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigurationError(f"{name} must be a sequence of strings, not {value!r}")
    return tuple(dict.fromkeys(check_name(name, tag) for tag in value))


def check_mapping(name: str, value: Any) -> dict[str, Any]:
    """Return hyperparameters as a mapping. An object with attributes, such as `argparse.Namespace`, is taken too."""
    if isinstance(value, Mapping):
        return dict(value)
    try:
        return dict(vars(value))
    except TypeError:
        raise ConfigurationError(f"{name} must be a mapping or an object with attributes, not {value!r}") from None


def check_url(name: str, value: Any) -> str:
    """Return the http(s) URL of a service, without a slash at its end."""
    try:
        parts = urlsplit(value)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except (ValueError, AttributeError):
        is_url = False
    if not is_url:
        raise ConfigurationError(f"{name} must be like http://127.0.0.1:8642, not {value!r}")
    return str(value).rstrip("/")
