"""Answers about many runs at once, and requests that change many runs at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import UUID

from gradmedic.protocol.schema import SCHEMA, Text

MAX_CHANGED_RUNS = 500
"""Largest number of runs that one request changes: all of them are changed in one transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGroup:
    """The runs of a list that have the same group, project or hyperparameter."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    value: float | str | None
    """The value that the runs have in common. Null stands for runs without it."""
    total: int
    """Number of runs."""
    levels: dict[str, int]
    """Number of runs of each level that occurs."""
    query: dict[str, str]
    """Filter of `GET /runs` that selects these runs among those of the list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCounts:
    """Answer to `GET /runs/counts`: how many runs fit the filters, by level, verdict, status and group."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    total: int
    """Number of runs."""
    levels: dict[str, int]
    """Number of runs of each level that occurs."""
    verdicts: dict[str, int]
    """Number of runs of each verdict that occurs."""
    statuses: dict[str, int]
    """Number of runs of each status that occurs."""
    groups: list[RunGroup] = field(default_factory=list)
    """The groups that `group_by` asks for, in the order of their value: at most 200, those with the most runs."""
    omitted_groups: int = 0
    """Number of groups that were left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunColumn:
    """A hyperparameter or a metric by which a list can be sorted and filtered."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: str
    """Name for `sort` and for filters: `config.` or `metric.` and the name of the hyperparameter or the metric."""
    varies: bool
    """True if runs of the list differ in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunColumns:
    """Answer to `GET /runs/columns`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    items: list[RunColumn]
    """Hyperparameters and metrics of the newest runs of the list, those that vary first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTagsChange:
    """Body of `POST /runs/tags`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    ids: list[UUID]
    """Ids of the runs, at most 500."""
    add: list[Text] = field(default_factory=list)
    """Tags that the runs shall have."""
    remove: list[Text] = field(default_factory=list)
    """Tags that the runs shall not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsDeletion:
    """Body of `POST /runs/delete`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    ids: list[UUID]
    """Ids of the runs, at most 500."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailure:
    """A run that a request did not change, and the reason."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: UUID
    """Id that the request named."""
    error_code: str
    """Code of the error, as in the answer to a request about this run alone."""
    detail: str
    """Reason in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsChange:
    """Answer to a request that changes many runs: each id of the request is in one of the three lists."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    changed: list[UUID]
    """Ids of the runs that were changed or deleted."""
    unchanged: list[UUID]
    """Ids of the runs that were as wanted already."""
    failed: list[RunFailure]
    """The runs that were not changed."""
