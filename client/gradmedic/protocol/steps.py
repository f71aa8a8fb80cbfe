"""Requests and answers about the steps of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from gradmedic.protocol.guards import GuardAction
from gradmedic.protocol.schema import SCHEMA, NumberOrNull, StrictBool, StrictInt, Text
from gradmedic.protocol.verdicts import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendResult:
    """Answer to a block: the number of stored steps, and the state of the run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    accepted: int
    """Number of steps that this request stored."""
    ignored: int
    """Number of steps that were stored before this request."""
    last_step: int | None
    """The largest stored step. Null before the first step."""
    generation: int
    """Number of times that the run was rewound."""
    revision: int
    """Number of changes of the run so far."""
    verdict: Verdict
    """The verdict on the run after this block."""
    since_step: int | None
    """First step of the verdict. Null while the verdict is undetermined."""
    alerts: list[str]
    """Summaries of the changes of the verdict that this block caused."""
    stop: bool
    """True if the training must stop: the trial has spent its budget or was cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRewind:
    """Body of `POST /runs/{id}/rewind`: the job resumed from a checkpoint."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    step: StrictInt
    """The last step that stays. -1 drops every step."""
    generation: StrictInt
    """The generation of the run before this request. With it, a repeated request rewinds only once."""
    guard_action: GuardAction | None = None
    """The action `rewind` of a guard, if a guard went back. Null if the user resumed from a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewindResult:
    """Answer to a rewind: the state of the run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    generation: int
    """The new generation of the run. Blocks that carry another generation are refused."""
    last_step: int | None
    """The largest step that stayed. Null if no step stayed."""
    revision: int
    """Number of changes of the run so far."""
    verdict: Verdict
    """The verdict on the run after the rewind."""
    since_step: int | None
    """First step of the verdict. Null while the verdict is undetermined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsAppend:
    """JSON body of `POST /runs/{id}/steps`: consecutive steps of one run, column by column.

    The msgpack form has the same fields, with two differences. Each of `statistics` is the bytes of a little-endian
    float32 array `[sampled step, layer]`. A field `present` may be added: the bits of a boolean array of that shape,
    packed with the first element in the lowest bit (`numpy.packbits(..., bitorder="little")`). Values of absent layers
    are ignored.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    steps: list[StrictInt]
    """The numbers of the steps. They increase strictly, and the first is at least 0."""
    generation: StrictInt | None = None
    """Number of times that the run was rewound. Null means the current generation."""
    loss: list[NumberOrNull] | None = None
    """The training loss of each step."""
    learning_rate: list[NumberOrNull] | None = None
    """The learning rate of each step."""
    time: list[NumberOrNull] | None = None
    """The time of each step in seconds since the Unix epoch. Every time is finite."""
    sampled: list[StrictBool] | None = None
    """True for each step that carries statistics. Null means all steps if `statistics` is given, otherwise none."""
    skipped: list[StrictBool] | None = None
    """True for each step that a loss scaler or a guard skipped on purpose."""
    loss_scale: list[NumberOrNull] | None = None
    """The factor by which a loss scaler multiplied the loss of each step."""
    clip_coefficient: list[NumberOrNull] | None = None
    """The factor by which the script's own clipping multiplied the gradients of each step. 1 if it did not clip."""
    output_gradient_norm: list[NumberOrNull] | None = None
    """The L2 norm of the gradient of the loss at the output of the watched model, on the steps where it was measured. 0
    if the loss sends no gradient into the model."""
    metrics: dict[Text, list[NumberOrNull]] = field(default_factory=dict)
    """The values of each metric, one for each step, by the metric's name."""
    statistics: dict[Text, list[list[NumberOrNull]]] = field(default_factory=dict)
    """The values of each statistic as `[sampled step][layer]`, by the statistic's name. Null means that no optimizer
    touched the layer in that step."""
    guard_actions: list[GuardAction] = field(default_factory=list)
    """The actions of guards in these steps, in the order of the steps. At most `max_guard_actions` of `/limits`."""
