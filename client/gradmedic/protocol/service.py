"""What every request has in common: versions, media types, limits and error answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from gradmedic.protocol.schema import SCHEMA

WIRE_VERSIONS = (1,)
"""Versions of the protocol that this package supports, oldest first. `GET /limits` publishes them."""

API_PATH = "/api/v1"

JSON_MEDIA_TYPE = "application/json"
MSGPACK_MEDIA_TYPE = "application/vnd.msgpack"
PROBLEM_MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The sizes that the service accepts. A client splits its blocks accordingly."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    wire_versions: list[int]
    """Versions of the protocol that the service supports, oldest first."""
    max_body_bytes: int
    """The largest size of a request body in bytes, both as sent and after decompression."""
    max_layers: int
    """The largest number of layers of a run."""
    max_steps_per_block: int
    """The largest number of steps in a block."""
    max_values_per_block: int
    """The largest number of values in a block: sampled steps x layers x statistics."""
    max_metrics: int
    """The largest number of metrics in a block."""
    max_name_length: int
    """The largest number of characters in the name of a run, project, layer, metric, tag or group."""
    max_notes_length: int
    """The largest number of characters in the notes of a run."""
    max_tags: int
    """The largest number of tags of a run."""
    max_config_bytes: int
    """The largest size of `config` in bytes, written as compact JSON."""
    max_config_depth: int
    """The largest number of levels by which `config` may be nested."""
    max_points: int
    """The largest number of buckets in a series."""
    max_results: int
    """The largest number of items on a page."""
    max_rerun_steps: int = 1_000_000
    """The largest number of steps of a trial."""
    max_rerun_trials: int = 200
    """The largest number of trials of a rerun."""
    max_requests_per_minute: int | None = None
    """The number of requests a minute that each process of the service accepts from one API key. Null: no limit."""
    max_trainables: int = 1_000
    """The largest number of trainables of an API key."""
    max_runs_per_project: int | None = None
    """The largest number of runs in a project. Null: no limit."""
    max_alert_destinations: int = 20
    """The largest number of alert destinations of a project."""
    max_guard_actions: int = 0
    """The largest number of guard actions in a block. 0: the service takes none, neither with steps nor with a
    rewind. Services before this field take none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldError:
    """One bad field of a request."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    path: str
    """Path of the field, for example `layers[3].name`."""
    message: str
    """The reason why the field is bad."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """RFC 9457 `application/problem+json`. Every error has this form."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    type: str
    """URI of the kind of error."""
    title: str
    """Short name of the kind of error, for people."""
    status: int
    """HTTP status of the answer."""
    detail: str
    """Explanation of this error, for people."""
    error_code: str
    """Identifier of the kind of error, in snake_case, for programs. It never changes."""
    request_id: str
    """Id of the request. The service's log has the same id."""
    errors: list[FieldError] = field(default_factory=list)
    """Every bad field of the request. Empty for errors that concern no field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """Answer of a process that serves requests."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    status: str = "ok"
    """The word `ok`."""
    version: str
    """The version of the service."""
    started_at: datetime
    """The time at which the process began to serve requests."""
    database: str | None = None
    """The URL of the database, without its password. Null if the service requires API keys: this answer needs none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Answer of a health check that succeeded. A check that fails is answered with an error."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    status: str = "ok"
    """The word `ok`."""
