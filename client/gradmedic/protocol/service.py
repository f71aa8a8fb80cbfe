"""What is true of every request: versions, media types, limits and error answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from gradmedic.protocol.schema import SCHEMA

WIRE_VERSIONS = (1,)
"""Versions of this schema that this package speaks, oldest first; published by `GET /limits`."""


API_PATH = "/api/v1"


JSON_MEDIA_TYPE = "application/json"


MSGPACK_MEDIA_TYPE = "application/vnd.msgpack"


PROBLEM_MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the service accepts; a client splits its blocks accordingly."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    wire_versions: list[int]
    max_body_bytes: int
    """Of a request, as sent and after decompression."""
    max_layers: int
    max_steps_per_block: int
    max_values_per_block: int
    """Sampled steps x layers x statistics."""
    max_metrics: int
    """Metric names per block."""
    max_name_length: int
    """Characters of a name: run, project, layer, metric, tag, group."""
    max_notes_length: int
    max_tags: int
    max_config_bytes: int
    """Of `config` as compact JSON."""
    max_config_depth: int
    max_points: int
    """Buckets of a series."""
    max_results: int
    """Items of a page."""
    max_rerun_steps: int = 1_000_000
    """Steps of a trial."""
    max_rerun_trials: int = 200
    """Trials of a rerun."""
    max_requests_per_minute: int | None = None
    """Of one API key, to each process of the service; null from a service that sets no bound."""
    max_runs_per_project: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldError:
    """One bad field of a request."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    path: str
    """Where it is, for example `layers[3].name`."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """RFC 9457 `application/problem+json`: every error answer."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    type: str
    title: str
    status: int
    detail: str
    error_code: str
    """Stable, snake_case."""
    request_id: str
    errors: list[FieldError] = field(default_factory=list)
