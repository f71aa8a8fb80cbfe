"""The answer that holds series of a run's steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import UUID

from gradmedic.protocol.schema import SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series over the answer's buckets.

    `min`, `mean` and `max` hold null for a bucket without a finite value. Those that the query does not name under
    `field` are empty.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    statistic: str
    """Name of a statistic, of a step's series (`loss`, ...) or of a metric."""
    layer: str | None
    """Name of the layer. Null for a step's series and a metric."""
    min: list[float | None]
    """The smallest finite value of each bucket."""
    mean: list[float | None]
    """The mean of the finite values of each bucket."""
    max: list[float | None]
    """The largest finite value of each bucket."""
    count: list[int]
    """Number of values in each bucket, non-finite ones included."""
    nonfinite: list[int]
    """Number of NaN and infinite values in each bucket."""
    infinite: list[int] = field(default_factory=list)
    """Number of infinite values in each bucket. The other non-finite values are NaN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesResult:
    """Answer to `GET /runs/{id}/steps`: several series over the same buckets of consecutive steps."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    run_id: UUID
    """Id of the run."""
    first_step: list[int]
    """First step of each bucket."""
    last_step: list[int]
    """Last step of each bucket."""
    series: list[Series]
    """The series, in the order of the query."""
