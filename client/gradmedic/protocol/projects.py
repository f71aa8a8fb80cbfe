"""Requests and answers about projects."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from gradmedic.protocol.paging import Page
from gradmedic.protocol.schema import SCHEMA, Number, StrictBool, StrictInt, Text, Time


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A group of runs. The first run that names a project creates it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: str
    """Name of the project."""
    muted_detectors: list[str]
    """Ids of detectors whose findings are hidden in every run of the project."""
    created_at: datetime
    """Time at which the project was created."""
    rerun_automatically: bool = False
    """True if a run that turns vanishing or exploding is rerun without a request. Its key needs the scope `rerun`."""
    max_concurrent_trials: int = 8
    """The largest number of the project's trials that run at the same time."""
    max_rerun_seconds: float = 86400.0
    """The largest budget, in seconds, that one rerun of the project may have."""
    alerts_muted_until: datetime | None = None
    """Time until which the project makes no alerts. Null if it was never muted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectUpdate:
    """Body of `PATCH /projects/{name}`. A field that is null or missing stays as it is."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    muted_detectors: list[Text] | None = None
    """Ids of detectors whose findings are hidden in every run of the project. The findings change at once, the verdict
    of a run with its next block."""
    rerun_automatically: StrictBool | None = None
    """True if a run that turns vanishing or exploding is rerun without a request. Its key needs the scope `rerun`."""
    max_concurrent_trials: StrictInt | None = None
    """The largest number of the project's trials that run at the same time, 1 to 1000. Running trials continue."""
    max_rerun_seconds: Number | None = None
    """The largest budget, in seconds, that one rerun of the project may have."""
    alerts_muted_until: Time | None = None
    """Time until which the project makes no alerts, at most a year from now. A time that has passed ends the mute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectList(Page):
    """A page of projects."""

    items: list[Project]
