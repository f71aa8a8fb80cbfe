"""Requests and answers about projects."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from gradmedic.protocol.schema import SCHEMA, Number, StrictBool, StrictInt


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What runs are grouped by; it appears with its first run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: str
    muted_detectors: list[str]
    """Ids of detectors that are not to be heard about any of its runs."""
    created_at: datetime
    rerun_automatically: bool = False
    """Whether a run that turns vanishing or exploding is rerun without being asked, if its key may."""
    max_concurrent_trials: int = 8
    """Trials of its reruns that run at the same time at most."""
    max_rerun_seconds: float = 86400.0
    """The largest budget of seconds that one of its reruns may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectUpdate:
    """Body of `PATCH /projects/{name}`. What is left out or null stays as it is."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    muted_detectors: list[str] | None = None
    """Takes effect on findings at once, on a run's verdict with its next block."""
    rerun_automatically: StrictBool | None = None
    max_concurrent_trials: StrictInt | None = None
    """From 1 to 1000. Trials that run already go on."""
    max_rerun_seconds: Number | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectList:
    """A page of projects."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    items: list[Project]
    next_page_token: str | None
    """Opaque; pass it as `page_token` to read on. Null on the last page."""
