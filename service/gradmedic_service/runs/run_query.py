"""What a list of runs is asked for: filters, order and position.

A filter on a hyperparameter, a metric or the loss is written as one text: an operator and a value. `0.1` is equal to
0.1, `<0.1` is less, `!=adam` is another text or none, `null` is none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from gradmedic.protocol.names import LONGEST_NAME
from gradmedic.protocol.service import FieldError

CONFIG_PREFIX = "config."
METRIC_PREFIX = "metric."
VALUE_PREFIXES = (CONFIG_PREFIX, METRIC_PREFIX)
INDEXED_SORTS = ("created_at", "updated_at", "name")
"""Columns with an index, or an order that needs no other columns; none of them is ever null."""
COMPUTED_SORTS = (
    *("project", "group", "status", "verdict", "level"),
    *("first_bad_layer", "last_step", "loss", "duration"),
)
SORT_KEYS = (*INDEXED_SORTS, *COMPUTED_SORTS)
GROUP_KEYS = ("group", "project")
MAX_PATH_NAMES = 8
"""Largest number of names in the path of a hyperparameter: each one is another search in the database's query."""
MAX_VALUE_FILTERS = 20
MAX_SKIP = 1_000_000
OPERATORS = ("<=", ">=", "!=", "<", ">", "=")
"""Operators of a value filter, longer ones first."""
Operator = Literal["<=", ">=", "!=", "<", ">", "="]


@dataclass(frozen=True, slots=True)
class ValueFilter:
    """A condition on a hyperparameter, a metric or the loss of a run."""

    key: str
    """`loss`, or a name with one of VALUE_PREFIXES."""
    operator: Operator
    operand: float | str | None
    """A number, a text, or None for a missing value."""


Position = tuple[int, int, float, str]
"""Place of a run in an order by a computed key: whether it has no value, whether the value is no number, the number,
and the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """Filters, order and position of a list of runs; a filter that is None matches every run."""

    project: str | None = None
    verdict: str | None = None
    learning: str | None = None
    level: str | None = None
    status: str | None = None
    review: str | None = None
    """Answer of the runs' reviews, or `none` for runs without a review."""
    tag: str | None = None
    group: str | None = None
    """Name of the group; empty for runs without one."""
    parent_id: UUID | None = None
    """Id of the run whose trials' runs are listed; None lists all runs that belong to no trial."""
    text: str | None = None
    """Text that the name, the notes or the group contains, in any case; or at least SHORT_ID characters with which the
    id begins or ends."""
    values: tuple[ValueFilter, ...] = ()
    sort_key: str = "created_at"
    """One of SORT_KEYS, or a name with one of VALUE_PREFIXES."""
    is_descending: bool = True
    reachable_project: str | None = None
    """The only project that the principal reaches; None reaches all projects."""
    reachable_run: UUID | None = None
    """The only run that the principal reaches; None reaches all runs."""
    after: tuple[datetime | str | Position, UUID] | None = None
    """Value of the sort key and id of the last run of the previous page."""
    skip: int = 0
    """Number of runs to pass over, from there or from the beginning."""


def parse_value_filters(parameters: Iterable[tuple[str, str]]) -> tuple[ValueFilter, ...]:
    """Return the filters on values among the parameters of a query. Raises ValueFilterError.

    >>> parse_value_filters([("config.lr", "<=0.1"), ("config.optimizer", "adam"), ("verdict", "healthy")])
    (ValueFilter(key='config.lr', operator='<=', operand=0.1), ValueFilter(key='config.optimizer', operator='=', operand='adam'))
    """  # noqa: E501
    errors: list[FieldError] = []
    filters = []
    for name, text in parameters:
        if name != "loss" and not name.startswith(VALUE_PREFIXES):
            continue
        try:
            filters.append(_parse_value_filter(name, text))
        except ValueError as error:
            errors.append(FieldError(path=name[:LONGEST_NAME], message=str(error)))
    if len(filters) > MAX_VALUE_FILTERS:
        message = f"there are {len(filters)} filters on values; at most {MAX_VALUE_FILTERS} are allowed"
        errors.append(FieldError(path=filters[-1].key, message=message))
    if errors:
        raise ValueFilterError(errors)
    return tuple(filters)


class ValueFilterError(Exception):
    """Filters on values that no run can match."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__(errors)
        self.errors = errors


def value_key_error(key: str) -> str | None:
    """Return why a name with one of VALUE_PREFIXES is no key of a value, None if it is one."""
    name = key.partition(".")[2]
    if not name.strip():
        return "names no value: write config.NAME or metric.NAME"
    if len(name) > LONGEST_NAME:
        return f"has {len(name)} characters; at most {LONGEST_NAME} are allowed"
    if key.startswith(CONFIG_PREFIX) and name.count(".") >= MAX_PATH_NAMES:
        return f"has more than {MAX_PATH_NAMES} names in its path"
    return None


def is_sort_key(key: str) -> bool:
    """Whether a list can be sorted by a key."""
    return key in SORT_KEYS or (key.startswith(VALUE_PREFIXES) and value_key_error(key) is None)


def is_group_key(key: str) -> bool:
    """Whether runs can be grouped by a key."""
    return key in GROUP_KEYS or (key.startswith(CONFIG_PREFIX) and value_key_error(key) is None)


def filter_text(operand: float | str | None) -> str:
    """Return the text of a filter for values that are equal to an operand.

    >>> [filter_text(operand) for operand in (0.5, "adam", "0.5", None)]
    ['0.5', 'adam', '"0.5"', 'null']
    """
    if operand is None:
        return "null"
    if isinstance(operand, float):
        return repr(operand)
    is_plain = not operand.startswith((*OPERATORS, '"')) and _parse_operand(operand) == operand and operand.strip()
    return operand if is_plain else json.dumps(operand, ensure_ascii=False)


def value_of(config: dict[str, object], name: str) -> object:
    """Return the hyperparameter of a name: the value under the whole name, else that at the end of its path; or None.

    >>> value_of({"optimizer": {"lr": 0.1}, "a.b": 1}, "optimizer.lr"), value_of({"a.b": 1}, "a.b"), value_of({}, "x")
    (0.1, 1, None)
    """
    if name in config:
        return config[name]
    value: object = config
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value


def flat_names(config: dict[str, object], prefix: str = "", depth: int = 1) -> Iterator[tuple[str, object]]:
    """Yield the name and the value of each hyperparameter; nested names are joined by dots.

    >>> list(flat_names({"lr": 0.1, "model": {"width": 8}}))
    [('lr', 0.1), ('model.width', 8)]
    """
    for name, value in config.items():
        if isinstance(value, dict) and value and depth < MAX_PATH_NAMES:
            yield from flat_names(value, f"{prefix}{name}.", depth + 1)
        else:
            yield f"{prefix}{name}", value


def _parse_value_filter(key: str, text: str) -> ValueFilter:
    """Parse a filter. Raises ValueError with the reason why it is invalid."""
    if key != "loss" and (message := value_key_error(key)) is not None:
        raise ValueError(message)
    operator: Operator = "="
    for candidate in OPERATORS:
        if text.startswith(candidate):
            operator, text = candidate, text.removeprefix(candidate)  # type: ignore[assignment] # one of OPERATORS
            break
    if len(text) > LONGEST_NAME:
        raise ValueError(f"has {len(text)} characters; at most {LONGEST_NAME} are allowed")
    if not text.strip():
        raise ValueError('compares with nothing; write a number, a text, or null for runs without it (`""`: no text)')
    operand = _parse_operand(text.strip())
    if operator in ("<", "<=", ">", ">=") and not isinstance(operand, float):
        raise ValueError(f"{operator} needs a finite number, not {text.strip()!r}")
    return ValueFilter(key, operator, operand)


def _parse_operand(text: str) -> float | str | None:
    """Return a number, a text, or None for `null`; what is no JSON is a text."""
    if text == "null":
        return None
    if text.startswith('"'):
        try:
            quoted = json.loads(text)
        except ValueError:
            return text
        return quoted if isinstance(quoted, str) else text
    try:
        number = float(text) if "_" not in text else math.nan
    except ValueError:
        return text
    return number if math.isfinite(number) else text
