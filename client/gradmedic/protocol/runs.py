"""Requests and answers about runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from gradmedic.protocol.schema import SCHEMA, Number, OneOf, StrictBool, StrictInt
from gradmedic.protocol.verdicts import Verdict

STATUSES = ("running", "stalled", "finished", "failed")


LAYER_ROLES = ("weight", "recurrent", "bias", "gain", "embedding")


Status = Annotated[str, OneOf(*STATUSES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One parameter tensor of a run. Only `name` is needed; every other field sharpens the diagnosis."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: str
    """Unique in the run, for example `encoder.0.weight`."""
    kind: str | None = None
    """Type of the module that owns it, for example `Linear`, `Conv2d`, `RNN`."""
    shape: list[StrictInt] | None = None
    numel: StrictInt | None = None
    """Number of elements; follows from `shape` where that is given."""
    depth: StrictInt | None = None
    """Place in forward order; without it, the position in the list."""
    frozen: StrictBool = False
    """No optimizer updates it."""
    role: Annotated[str, OneOf(*LAYER_ROLES)] | None = None
    """What it is to its module; `recurrent` for a hidden-to-hidden matrix."""
    fan_in: StrictInt | None = None
    fan_out: StrictInt | None = None
    activation: str | None = None
    """Activation its output goes through, lower case: `relu`, `sigmoid`, `tanh`, `linear`, ..."""
    normalized: StrictBool | None = None
    """Whether a normalization layer directly follows the module."""
    branch: StrictBool | None = None
    """Whether it lies on a branch beside an identity path (a residual block)."""
    initial_rms: Number | None = None
    """Root mean square of its elements before the first update."""
    spectral_norm: Number | None = None
    """Largest singular value before the first update; measured for recurrent matrices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """An optimizer as it was when the run began."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: str
    """Class name, for example `SGD`, `AdamW`."""
    learning_rate: Number | None = None
    momentum: Number | None = None
    weight_decay: Number | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What the client knows about how the run trains, beyond its layers. Everything is optional."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    optimizers: list[Optimizer] = field(default_factory=list)
    precision: str | None = None
    """Dtype of the parameters, or `float16`/`bfloat16` under autocast."""
    input_rms: Number | None = None
    """Root mean square of the first batch's floating-point input."""
    input_abs_max: Number | None = None
    target_rms: Number | None = None
    batch_size: StrictInt | None = None
    clips_gradients: StrictBool | None = None
    """Whether the client saw the script clip gradients."""
    dropped_steps: StrictInt | None = None
    """Steps that the client gave up: the service was away for longer than its disk had room. They are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCreate:
    """Body of `POST /runs`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    project: str
    layers: list[Layer]
    """In forward order unless `depth` says otherwise. May be empty and appended to later."""
    name: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    group: str | None = None
    framework: str | None = None
    """For example `torch 2.13.0`."""
    statistics: list[str] = field(default_factory=lambda: ["grad_norm"])
    """The statistics that every sampled step carries, in this order."""
    training: Training | None = None
    trainable: str | None = None
    muted_detectors: list[str] = field(default_factory=list)
    """Ids of detectors that are not to be heard about this run, beside those that its project mutes."""
    id: UUID | None = None
    """UUIDv7 chosen by the client; creating the same id again answers the same run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunUpdate:
    """Body of `PATCH /runs/{id}`. What is left out or null stays as it is."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: str | None = None
    notes: str | None = None
    tags: list[str] | None = None
    config: dict[str, Any] | None = None
    status: Status | None = None
    training: Training | None = None
    muted_detectors: list[str] | None = None
    """Takes effect on the findings at once, on the verdict with the next block."""
    append_layers: list[Layer] | None = None
    """Layers to add behind those the run has. Existing ones are never reordered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run as lists show it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: UUID
    project: str
    name: str
    status: Status
    verdict: Verdict
    score: float
    """Confidence in the verdict, 0 to 1."""
    since_step: int | None
    """First step of the verdict; null while it is undetermined."""
    last_step: int | None
    """Largest stored step; null before the first."""
    generation: int
    revision: int
    tags: list[str]
    group: str | None
    framework: str | None
    trainable: str | None
    created_at: datetime
    updated_at: datetime
    parent_id: UUID | None = None
    """The suspect run, if this is an attempt at a trial of a rerun of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetail(RunSummary):
    """A run with everything that was said about it."""

    notes: str | None
    config: dict[str, Any]
    statistics: list[str]
    layers: list[Layer]
    training: Training | None
    muted_detectors: list[str] = field(default_factory=list)
    """The run's own; its project may mute more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunList:
    """A page of runs."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    items: list[RunSummary]
    next_page_token: str | None
    """Opaque; pass it as `page_token` to read on. Null on the last page."""
