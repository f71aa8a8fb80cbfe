"""Requests and answers about the steps of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from gradmedic.protocol.schema import SCHEMA, NumberOrNull, StrictBool, StrictInt
from gradmedic.protocol.verdicts import Verdict


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

    step: StrictInt
    """The last step that stays; -1 drops every step."""
    generation: StrictInt
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsAppend:
    """JSON body of `POST /runs/{id}/steps`: consecutive steps of one run, column by column.

    The msgpack form has the same fields, but each of `statistics` is the bytes of a little-endian float32 array
    `[sampled step, layer]`, and `present` may be given: the bits of a boolean array of that shape, packed with the
    first element in the lowest bit (`numpy.packbits(..., bitorder="little")`). Values of absent layers are ignored. A
    series or metric that has a value in every step may also be the bytes of a little-endian float64 array `[step]`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    steps: list[StrictInt]
    """Strictly increasing, each at least 0."""
    generation: StrictInt | None = None
    """How often the run was rewound; without it, the current generation."""
    loss: list[NumberOrNull] | None = None
    learning_rate: list[NumberOrNull] | None = None
    time: list[NumberOrNull] | None = None
    """Seconds since the Unix epoch; must be finite."""
    sampled: list[StrictBool] | None = None
    """Which steps carry statistics; without it, all do where `statistics` is given, else none."""
    skipped: list[StrictBool] | None = None
    """Which steps a loss scaler skipped on purpose."""
    loss_scale: list[NumberOrNull] | None = None
    clip_coefficient: list[NumberOrNull] | None = None
    """What the script's own clipping multiplied the gradients by; 1 where it left them alone."""
    metrics: dict[str, list[NumberOrNull]] = field(default_factory=dict)
    statistics: dict[str, list[list[NumberOrNull]]] = field(default_factory=dict)
    """`[sampled step][layer]`; null where the layer was not touched by an optimizer in that step."""
