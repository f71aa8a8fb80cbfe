"""The part of the schema that a training job and the service exchange while steps are streamed.

One idea: a dataclass takes a millisecond to make, and there are sixty. A training imports those that it needs; whoever
asks for more - `Client`, the service - imports `gradmedic.wire`, which has all of them, and says how they are used.
"""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, ClassVar, get_args
from uuid import UUID

WIRE_VERSIONS = (1,)
"""Versions of this schema that this package speaks, oldest first; published by `GET /limits`."""

API_PATH = "/api/v1"
JSON_MEDIA_TYPE = "application/json"
MSGPACK_MEDIA_TYPE = "application/vnd.msgpack"
PROBLEM_MEDIA_TYPE = "application/problem+json"

STATISTICS = (
    "grad_norm",
    "grad_abs_max",
    "grad_mean",
    "grad_zero_fraction",
    "nonfinite_count",
    "weight_norm",
    "update_norm",
    "activation_zero_fraction",
    "activation_saturation",
)
"""Every statistic there is: one number per layer per step."""

SERIES = ("loss", "learning_rate", "time", "loss_scale", "clip_coefficient")
"""Numbers of a step as a whole, one each per step; free-form ones go under `metrics`."""

VERDICTS = ("undetermined", "healthy", "vanishing", "exploding")
STATUSES = ("running", "stalled", "finished", "failed")
LAYER_ROLES = ("weight", "recurrent", "bias", "gain", "embedding")
NONFINITE_NAMES = ("NaN", "Infinity", "-Infinity")


class OneOf:
    """The values a string field has today. Documents them in OpenAPI without refusing one that a newer peer adds."""

    def __init__(self, *values: str) -> None:
        self.values = values

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        """Add the values to the field's JSON schema (called by pydantic, in the service)."""
        return {**handler(schema), "enum": list(self.values)}


Verdict = Annotated[str, OneOf(*VERDICTS)]
Status = Annotated[str, OneOf(*STATUSES)]


def without_trailing_underscore(name: str) -> str:
    """Name a field on the wire: `class_` is a Python name for `class`."""
    return name.rstrip("_")


class Strictly:
    """Nothing of another type becomes a value of this: neither "2" nor true is 2. Pydantic asks it, in the service."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Make the field's validation strict."""
        return {**handler(source), "strict": True}


class NumberOnly:
    """A number or the name of a non-finite one; a float would also be made of "1.5" and of true.

    A block has thousands of them, so the schema is one that pydantic checks without calling Python.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Try the usual case first (called by pydantic, in the service)."""
        named = {"type": "chain", "steps": [{"type": "literal", "expected": list(NONFINITE_NAMES)}, {"type": "float"}]}
        number = {"type": "float", "strict": True}
        is_nullable = type(None) in get_args(source)
        return {
            "type": "union",
            "mode": "left_to_right",
            "choices": [number, *([{"type": "none"}] if is_nullable else []), named],
            "custom_error_type": "number_only",
            "custom_error_message": f"must be a number or one of {', '.join(NONFINITE_NAMES)}",
        }

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        """Say of it in OpenAPI what is said of a float."""
        has_null = any(choice["type"] == "none" for choice in schema["choices"])
        return {"anyOf": [{"type": "number"}, {"type": "null"}]} if has_null else {"type": "number"}


Whole = Annotated[int, Strictly()]
Flag = Annotated[bool, Strictly()]
Number = Annotated[float, NumberOnly()]
NumberOrNull = Annotated[float | None, NumberOnly()]
"""A third faster than `Number | None`."""


@cache
def _field_docstrings(module: str) -> dict[str, dict[str, str]]:
    """Read what a file says below its fields, by class and by the field's name on the wire."""
    described: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(node, ast.ClassDef):
            for statement, following in pairwise(node.body):
                match statement, following:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        described.setdefault(node.name, {})[without_trailing_underscore(name)] = inspect.cleandoc(text)
    return described


def _describe_fields(schema: dict[str, Any], cls: type) -> None:
    """Put the fields' docstrings into OpenAPI. Pydantic's `use_attribute_docstrings` would, parsing at every start."""
    for base in reversed(cls.__mro__):
        if base is object:
            continue
        for name, text in _field_docstrings(base.__module__).get(base.__name__, {}).items():
            schema["properties"][name].setdefault("description", text)


SCHEMA: dict[str, Any] = {
    "extra": "forbid",
    "json_schema_extra": _describe_fields,
    "alias_generator": without_trailing_underscore,
}
"""How pydantic treats every dataclass of the schema."""


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One parameter tensor of a run. Only `name` is needed; every other field sharpens the diagnosis."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: str
    """Unique in the run, for example `encoder.0.weight`."""
    kind: str | None = None
    """Type of the module that owns it, for example `Linear`, `Conv2d`, `RNN`."""
    shape: list[Whole] | None = None
    numel: Whole | None = None
    """Number of elements; follows from `shape` where that is given."""
    depth: Whole | None = None
    """Place in forward order; without it, the position in the list."""
    frozen: Flag = False
    """No optimizer updates it."""
    role: Annotated[str, OneOf(*LAYER_ROLES)] | None = None
    """What it is to its module; `recurrent` for a hidden-to-hidden matrix."""
    fan_in: Whole | None = None
    fan_out: Whole | None = None
    activation: str | None = None
    """Activation its output goes through, lower case: `relu`, `sigmoid`, `tanh`, `linear`, ..."""
    normalized: Flag | None = None
    """Whether a normalization layer directly follows the module."""
    branch: Flag | None = None
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
    batch_size: Whole | None = None
    clips_gradients: Flag | None = None
    """Whether the client saw the script clip gradients."""
    dropped_steps: Whole | None = None
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


# --- steps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendResult:
    """Answer to a block: what was stored, and what the training loop should know now."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    accepted: int
    """Steps stored by this request."""
    ignored: int
    """Steps that were stored before."""
    last_step: int | None
    generation: int
    revision: int
    verdict: Verdict
    since_step: int | None
    alerts: list[str]
    """Summaries of verdict changes that this block caused."""
    stop: bool
    """The budget of the trial is spent or it was cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRewind:
    """Body of `POST /runs/{id}/rewind`: the job resumed from a checkpoint."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    step: Whole
    """The last step that stays; -1 drops every step."""
    generation: Whole
    """The run's generation before this request, so that repeating it rewinds once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewindResult:
    """Answer to a rewind: how the run stands now."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    generation: int
    """What blocks must carry from now on, where they carry one."""
    last_step: int | None
    revision: int
    verdict: Verdict
    since_step: int | None


# --- trials -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One fix, by id and parameters."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: str
    parameters: dict[str, float | int | str | bool] = field(default_factory=dict)


# --- service ----------------------------------------------------------------------------------------------------------


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
