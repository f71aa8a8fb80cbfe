"""Answers that hold series of a run's steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import UUID

from gradmedic.protocol.schema import SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series over the answer's buckets; null where a bucket holds no finite value of it.

    Of `min`, `mean` and `max`, those are empty that the question did not name under `field`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    statistic: str
    """A statistic, a name in SERIES, or a metric."""
    layer: str | None
    min: list[float | None]
    """Over the finite values of the bucket."""
    mean: list[float | None]
    max: list[float | None]
    count: list[int]
    """Values in the bucket, non-finite ones included."""
    nonfinite: list[int]
    """How many of them are NaN or infinite."""
    infinite: list[int] = field(default_factory=list)
    """How many of those are infinite; the others are NaN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesResult:
    """Answer to `GET /runs/{id}/steps`: series over common buckets of consecutive steps."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    run_id: UUID
    first_step: list[int]
    """First step of each bucket."""
    last_step: list[int]
    series: list[Series]
