"""Requests and answers about runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from gradmedic.protocol.origins import Origin
from gradmedic.protocol.paging import Page
from gradmedic.protocol.reviews import Review
from gradmedic.protocol.schema import SCHEMA, Number, OneOf, StrictBool, StrictInt, Text
from gradmedic.protocol.verdicts import Learning, Level, Verdict

STATUSES = ("running", "stalled", "finished", "failed")


LAYER_ROLES = ("weight", "recurrent", "bias", "gain", "embedding")


Status = Annotated[Text, OneOf(*STATUSES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One parameter tensor of a run. Only `name` is needed. Every other field makes the diagnosis more precise."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: Text
    """Name of the layer, unique in the run, for example `encoder.0.weight`."""
    kind: Text | None = None
    """Type of the module that owns the layer, for example `Linear`, `Conv2d`, `RNN`."""
    shape: list[StrictInt] | None = None
    """Shape of the tensor."""
    numel: StrictInt | None = None
    """Number of elements. The service computes it from `shape` if it is missing."""
    depth: StrictInt | None = None
    """Place of the layer in forward order. Null means the position in the list."""
    frozen: StrictBool = False
    """True if no optimizer updates the layer."""
    role: Annotated[Text, OneOf(*LAYER_ROLES)] | None = None
    """Role of the layer in its module. `recurrent` is a hidden-to-hidden matrix."""
    fan_in: StrictInt | None = None
    """Fan-in: the number of inputs of one output unit."""
    fan_out: StrictInt | None = None
    """Fan-out: the number of outputs of one input unit."""
    activation: Text | None = None
    """Activation that follows the module, in lower case: `relu`, `sigmoid`, `tanh`, `linear`, ..."""
    normalized: StrictBool | None = None
    """True if a normalization layer directly follows the module."""
    branch: StrictBool | None = None
    """True if the layer lies on a branch beside an identity path (a residual block)."""
    initial_rms: Number | None = None
    """Root mean square of the elements before the first update."""
    spectral_norm: Number | None = None
    """Largest singular value before the first update. The SDK measures it for recurrent matrices."""
    input_normalized: StrictBool | None = None
    """True if a normalization layer directly precedes the module, as in a pre-norm transformer."""
    block: Text | None = None
    """Name of the module that holds the layer and whose output is joined with its input (a residual block)."""
    calls: StrictInt | None = None
    """Number of times that one forward pass uses the layer, if it is more than once: tied or repeated modules."""
    requires_grad: StrictBool | None = None
    """False if no gradient of the layer is computed. A frozen layer with a gradient is in no optimizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """An optimizer at the beginning of the run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: Text
    """Class name, for example `SGD`, `AdamW`."""
    learning_rate: Number | None = None
    """Learning rate at the beginning."""
    momentum: Number | None = None
    """Momentum, or the first beta of Adam and its relatives."""
    weight_decay: Number | None = None
    """Weight decay at the beginning."""
    beta2: Number | None = None
    """Second beta of Adam and its relatives, or the smoothing constant of RMSprop."""
    epsilon: Number | None = None
    """Number that is added to the denominator of the update (`eps`)."""


LOSS_KINDS = (
    "cross_entropy", "binary_cross_entropy", "negative_log_likelihood", "squared_error", "absolute_error", "huber",
    "kl_divergence", "ctc", "margin", "other",
)  # fmt: skip
"""The kinds of loss functions. `other` is a loss that is seen and has none of these kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Facts about the loss, as the SDK saw it. Every field is optional."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    kind: Annotated[Text, OneOf(*LOSS_KINDS)] | None = None
    """Kind of the loss function."""
    operations: list[Text] = field(default_factory=list)
    """Operations that computed the loss, from the loss backwards, for example `NllLoss`, `LogSoftmax`, `Softmax`."""
    classes: StrictInt | None = None
    """Number of classes."""
    constant_level: Number | None = None
    """Loss of a predictor that gives the same output for every example, estimated from the first batches: `ln k` or
    the entropy of the targets for a cross-entropy, the variance of the targets for a squared error."""
    broadcasts: StrictBool | None = None
    """True if the shapes of output and target broadcast to a larger shape, as `[n, 1]` and `[n]` do to `[n, n]`."""
    surrogate: StrictBool | None = None
    """True if the loss does not measure progress: that of a policy gradient, of adversaries, or a contrast within the
    batch."""


LAYER_ORDERS = ("execution", "registration")

OBJECTIVE_KINDS = ("loss", "metric", "none")

DIRECTIONS = ("minimize", "maximize")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Measure of progress, as the user declared it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    kind: Annotated[Text, OneOf(*OBJECTIVE_KINDS)]
    """`none` if no logged number measures progress."""
    metric: Text | None = None
    """Name of the metric. Null unless the kind is `metric`."""
    direction: Annotated[Text, OneOf(*DIRECTIONS)] | None = None
    """Direction of progress: to smaller or to larger values. Null if the kind is `none`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Facts about the training that do not belong to one layer. Every field is optional."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    optimizers: list[Optimizer] = field(default_factory=list)
    """The optimizers of the run."""
    precision: Text | None = None
    """Dtype of the parameters, or `float16` or `bfloat16` under autocast."""
    parameter_dtype: Text | None = None
    """Dtype of the parameters, also under autocast."""
    input_rms: Number | None = None
    """Root mean square of the first batch's floating-point input."""
    input_abs_max: Number | None = None
    """Largest absolute value of the first batch's floating-point input."""
    target_rms: Number | None = None
    """Root mean square of the first batch's floating-point targets."""
    batch_size: StrictInt | None = None
    """Number of examples in the first batch."""
    clips_gradients: StrictBool | None = None
    """True if the SDK saw that the script clips gradients."""
    carries_gradients: StrictBool | None = None
    """True if gradients of earlier optimizer steps were still there when the next backward pass began, as they are
    where `zero_grad` is missing."""
    layer_order: Annotated[Text, OneOf(*LAYER_ORDERS)] | None = None
    """Source of the layers' depth: `execution` if it is the order in which the first forward pass used the layers,
    `registration` if that order could not be seen."""
    loss: Loss | None = None
    """Facts about the loss, as the SDK saw it."""
    objective: Objective | None = None
    """Measure of progress, as the user declared it. Null means the loss."""
    dropped_steps: StrictInt | None = None
    """Number of steps that the SDK dropped because the service was away and the disk space for waiting steps was used
    up. The run lacks them."""
    origin: Origin | None = None
    """Origin of the first non-finite number, which the SDK looks for with `on_nonfinite="locate"`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCreate:
    """Body of `POST /runs`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    project: Text
    """Name of the project. The first run of a project creates it."""
    layers: list[Layer]
    """The layers, in forward order unless `depth` is given. The list may be empty: layers can be appended later."""
    name: Text | None = None
    """Name of the run. The service chooses one if it is missing."""
    config: dict[str, Any] = field(default_factory=dict)
    """Hyperparameters of the run. They may be nested."""
    tags: list[Text] = field(default_factory=list)
    """Tags of the run."""
    notes: Text | None = None
    """Notes on the run, as free text."""
    group: Text | None = None
    """Name of a group of runs."""
    framework: Text | None = None
    """Framework and its version, for example `torch 2.13.0`."""
    statistics: list[Text] = field(default_factory=lambda: ["grad_norm"])
    """The statistics that every sampled step carries, in this order."""
    training: Training | None = None
    """Facts about the training that do not belong to one layer."""
    trainable: Text | None = None
    """Name of the trainable with which the run can be rerun."""
    muted_detectors: list[Text] = field(default_factory=list)
    """Ids of detectors whose findings are hidden in this run. The project may mute further detectors."""
    id: UUID | None = None
    """A UUIDv7 that the client chooses. A second request with the same id answers the same run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunUpdate:
    """Body of `PATCH /runs/{id}`. A field that is null or missing stays as it is."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: Text | None = None
    """Name of the run."""
    notes: Text | None = None
    """Notes on the run, as free text."""
    tags: list[Text] | None = None
    """Tags of the run. They replace the tags that it has."""
    config: dict[str, Any] | None = None
    """Hyperparameters of the run. They replace the hyperparameters that it has."""
    status: Status | None = None
    """Status of the run: `running`, `finished` or `failed`. Only the service sets `stalled`."""
    training: Training | None = None
    """Facts about the training that do not belong to one layer."""
    muted_detectors: list[Text] | None = None
    """Ids of detectors whose findings are hidden in this run. The findings change at once, the verdict with the next
    block."""
    append_layers: list[Layer] | None = None
    """Layers to add behind the run's layers, whose order never changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLoss:
    """The loss of a run in short."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    last: float
    """The last loss."""
    step: int
    """Step of the last loss."""
    sparkline: list[float | None] = field(default_factory=list)
    """Course of the loss as at most 40 means over equal numbers of steps, to four digits. Null without a loss, NaN
    without a finite one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run as lists show it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: UUID
    """Id of the run, a UUIDv7."""
    project: str
    """Name of the project."""
    name: str
    """Name of the run."""
    status: Status
    """Status of the run. `stalled` means that a running run has sent nothing for some time."""
    verdict: Verdict
    """The verdict on the run."""
    score: float
    """Confidence in the verdict, 0 to 1."""
    since_step: int | None
    """First step of the verdict. Null while the verdict is undetermined."""
    last_step: int | None
    """The largest stored step. Null before the first step."""
    generation: int
    """Number of times that the run was rewound."""
    revision: int
    """Number of changes of the run so far."""
    tags: list[str]
    """Tags of the run."""
    group: str | None
    """Name of a group of runs."""
    framework: str | None
    """Framework and its version, for example `torch 2.13.0`."""
    trainable: str | None
    """Name of the trainable with which the run can be rerun."""
    created_at: datetime
    """Time at which the run was created."""
    updated_at: datetime
    """Time of the last change of the run. Steps that were sent late changed it when the last of them was recorded."""
    parent_id: UUID | None = None
    """Id of the suspect run, if this run is an attempt at a trial of a rerun."""
    learning: Learning = "unknown"
    """Course of the loss, apart from the gradients."""
    level: Level = "unknown"
    """Level that a person reads first."""
    first_bad_layer: str | None = None
    """First layer of the finding that decided a vanishing or exploding verdict. Null for other verdicts."""
    loss: RunLoss | None = None
    """The loss in short. Null before the first loss."""
    last_metrics: dict[str, float] = field(default_factory=dict)
    """Last values of the first 64 metrics that the run has sent, by name. Probes are left out."""
    duration: float | None = None
    """Seconds from the first step to the last one. Null before the first step."""
    guard_actions: int = 0
    """Number of things that guards did in the run, of all generations: steps left out, rewinds and others."""
    config: dict[str, Any] = field(default_factory=dict)
    """The hyperparameters that the query of a list names under `config_keys`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetail(RunSummary):
    """A run with its layers, configuration and facts about the training."""

    notes: str | None
    """Notes on the run, as free text."""
    config: dict[str, Any]
    """Hyperparameters of the run. They may be nested."""
    statistics: list[str]
    """The statistics that every sampled step carries, in this order."""
    layers: list[Layer]
    """The layers of the run."""
    training: Training | None
    """Facts about the training that do not belong to one layer."""
    muted_detectors: list[str] = field(default_factory=list)
    """Ids of detectors whose findings are hidden in this run. The project may mute further detectors."""
    is_end_reported: bool = True
    """False if the run is stalled, or failed because it stayed so: its process may have left steps for
    `gradmedic sync`."""
    review: Review | None = None
    """A user's review of the verdict. Null if there is none."""
    metrics: list[str] = field(default_factory=list)
    """Names of the metrics that the run has sent, in the order in which they arrived. Those of probes begin with
    `gradmedic/`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunList(Page):
    """A page of runs."""

    items: list[RunSummary]
