"""The schema that client and service share: what travels in requests and answers.

One idea: plain dataclasses say it once. The client decodes into them with msgspec, which ignores fields it does not
know; the service validates them with pydantic, which refuses such fields (`__pydantic_config__` below is data, nothing
here imports pydantic). Numbers may be non-finite: JSON carries those as the strings "NaN", "Infinity", "-Infinity".

A field named with a trailing underscore (`class_`) travels without it (`class`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from gradmedic.wire_stream import API_PATH as API_PATH
from gradmedic.wire_stream import JSON_MEDIA_TYPE as JSON_MEDIA_TYPE
from gradmedic.wire_stream import LAYER_ROLES as LAYER_ROLES
from gradmedic.wire_stream import MSGPACK_MEDIA_TYPE as MSGPACK_MEDIA_TYPE
from gradmedic.wire_stream import NONFINITE_NAMES as NONFINITE_NAMES
from gradmedic.wire_stream import PROBLEM_MEDIA_TYPE as PROBLEM_MEDIA_TYPE
from gradmedic.wire_stream import SCHEMA as _SCHEMA
from gradmedic.wire_stream import SERIES as SERIES
from gradmedic.wire_stream import STATISTICS as STATISTICS
from gradmedic.wire_stream import STATUSES as STATUSES
from gradmedic.wire_stream import VERDICTS as VERDICTS
from gradmedic.wire_stream import WIRE_VERSIONS as WIRE_VERSIONS
from gradmedic.wire_stream import AppendResult as AppendResult
from gradmedic.wire_stream import FieldError as FieldError
from gradmedic.wire_stream import Flag as Flag
from gradmedic.wire_stream import Layer as Layer
from gradmedic.wire_stream import Limits as Limits
from gradmedic.wire_stream import Number as Number
from gradmedic.wire_stream import NumberOnly as NumberOnly
from gradmedic.wire_stream import NumberOrNull as NumberOrNull
from gradmedic.wire_stream import OneOf as OneOf
from gradmedic.wire_stream import Optimizer as Optimizer
from gradmedic.wire_stream import Problem as Problem
from gradmedic.wire_stream import Remedy as Remedy
from gradmedic.wire_stream import RewindResult as RewindResult
from gradmedic.wire_stream import RunCreate as RunCreate
from gradmedic.wire_stream import RunDetail as RunDetail
from gradmedic.wire_stream import RunRewind as RunRewind
from gradmedic.wire_stream import RunSummary as RunSummary
from gradmedic.wire_stream import RunUpdate as RunUpdate
from gradmedic.wire_stream import Status as Status
from gradmedic.wire_stream import Strictly as Strictly
from gradmedic.wire_stream import Training as Training
from gradmedic.wire_stream import Verdict as Verdict
from gradmedic.wire_stream import Whole as Whole
from gradmedic.wire_stream import without_trailing_underscore as without_trailing_underscore

SIGNED_STATISTICS = ("grad_mean",)
"""Those that may be negative; of the others NaN may mean anything, a number below 0 nothing."""
FRACTIONS = ("grad_zero_fraction", "activation_zero_fraction", "activation_saturation")
"""Those that are at most 1."""
OUTCOME_STATES = ("verified", "healthy", "failed", "not_applicable")
SEVERITIES = ("note", "warning", "critical")
SCOPES = ("ingest", "read", "rerun", "worker", "admin")
"""What an API key may do; `admin` includes the others."""
RERUN_STATUSES = ("queued", "running", "done", "not_reproduced", "failed", "cancelled")
TRIAL_STATUSES = ("queued", "running", "done", "failed", "cancelled", "stopped", "not_applicable")
RESULT_STATUSES = ("done", "failed", "not_applicable", "lost")
"""What a worker may say of a trial that has ended; the service knows which it stopped or cancelled."""
ATTEMPT_STATUSES = ("running", "lost", "done", "failed", "cancelled", "stopped", "not_applicable")
EXECUTORS = ("local", "ray")
"""What hosts the processes of trials: the worker's own machine, or a Ray cluster."""
PARAMETER_TYPES = ("float", "int", "str", "bool")
LONGEST_TIMEOUT = 30 * 86400.0
"""Seconds that a trial may be given."""


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunList:
    """A page of runs."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    items: list[RunSummary]
    next_page_token: str | None
    """Opaque; pass it as `page_token` to read on. Null on the last page."""


# --- projects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What runs are grouped by; it appears with its first run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

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

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    muted_detectors: list[str] | None = None
    """Takes effect on findings at once, on a run's verdict with its next block."""
    rerun_automatically: Flag | None = None
    max_concurrent_trials: Whole | None = None
    """From 1 to 1000. Trials that run already go on."""
    max_rerun_seconds: Number | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectList:
    """A page of projects."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    items: list[Project]
    next_page_token: str | None
    """Opaque; pass it as `page_token` to read on. Null on the last page."""


# --- steps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsAppend:
    """JSON body of `POST /runs/{id}/steps`: consecutive steps of one run, column by column.

    The msgpack form has the same fields, but each of `statistics` is the bytes of a little-endian float32 array
    `[sampled step, layer]`, and `present` may be given: the bits of a boolean array of that shape, packed with the
    first element in the lowest bit (`numpy.packbits(..., bitorder="little")`). Values of absent layers are ignored. A
    series or metric that has a value in every step may also be the bytes of a little-endian float64 array `[step]`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    steps: list[Whole]
    """Strictly increasing, each at least 0."""
    generation: Whole | None = None
    """How often the run was rewound; without it, the current generation."""
    loss: list[NumberOrNull] | None = None
    learning_rate: list[NumberOrNull] | None = None
    time: list[NumberOrNull] | None = None
    """Seconds since the Unix epoch; must be finite."""
    sampled: list[Flag] | None = None
    """Which steps carry statistics; without it, all do where `statistics` is given, else none."""
    skipped: list[Flag] | None = None
    """Which steps a loss scaler skipped on purpose."""
    loss_scale: list[NumberOrNull] | None = None
    clip_coefficient: list[NumberOrNull] | None = None
    """What the script's own clipping multiplied the gradients by; 1 where it left them alone."""
    metrics: dict[str, list[NumberOrNull]] = field(default_factory=dict)
    statistics: dict[str, list[list[NumberOrNull]]] = field(default_factory=dict)
    """`[sampled step][layer]`; null where the layer was not touched by an optimizer in that step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series over the answer's buckets; null where a bucket holds no finite value of it.

    Of `min`, `mean` and `max`, those are empty that the question did not name under `field`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    statistic: str
    """A statistic, a name in SERIES, or a metric."""
    layer: str | None
    min: list[float | None]
    """Over the finite values of the bucket."""
    mean: list[float | None]
    max: list[float | None]
    count: list[int]
    """Values in the bucket, non-finite ones included."""
    nonfinite: list[int]
    """How many of them are NaN or infinite."""
    infinite: list[int] = field(default_factory=list)
    """How many of those are infinite; the others are NaN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesResult:
    """Answer to `GET /runs/{id}/steps`: series over common buckets of consecutive steps."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    run_id: UUID
    first_step: list[int]
    """First step of each bucket."""
    last_step: list[int]
    series: list[Series]


# --- diagnosis --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One detector's evidence."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    detector: str
    class_: Verdict
    """The verdict it speaks for."""
    severity: Annotated[str, OneOf(*SEVERITIES)]
    layers: list[str]
    """First bad layer first."""
    first_step: int
    last_step: int
    resolved_step: int | None
    """Step at which it no longer held; null while it holds."""
    evidence: dict[str, float]
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What probably made it so."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    cause: str
    score: float
    """0 to 1; causes are independent, the scores need not add up."""
    evidence: dict[str, float]
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happened when a remedy was tried on the run's own trainable."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    state: Annotated[str, OneOf(*OUTCOME_STATES)]
    rerun_id: UUID
    seeds: int
    healthy: int
    loss: float | None
    control_loss: float | None
    cost_seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    """Versions and device that it was tried on; several are separated by commas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One ranked remedy with its reason."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    remedy: Remedy
    rank: int
    """1 is tried first."""
    reason: str
    cost: str
    """What it takes away: time, signal, exactness, or work."""
    snippet: str
    """Code to paste, in the run's framework."""
    sources: list[str]
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """Remedies that were tried together, and what happened."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    remedies: list[Remedy]
    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What is wrong with a run, why, and what fixes it, as of `step`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    run_id: UUID
    step: int | None
    verdict: Verdict
    score: float
    since_step: int | None
    summary: str
    findings: list[Finding]
    causes: list[Cause]
    advice: list[Advice]
    tried: list[Tried] = field(default_factory=list)
    """What reruns of this run have shown, the latest first; combinations of remedies too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictChange:
    """The verdict from `step` on."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    step: int
    """The step whose data changed it."""
    verdict: Verdict
    score: float
    finding: str | None
    """Detector of the finding that decided it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictHistory:
    """Every change of a run's verdict, oldest first."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    items: list[VerdictChange]


# --- access -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyCreate:
    """Body of `POST /api-keys`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    scopes: list[Annotated[str, OneOf(*SCOPES)]]
    """What the key may do; `admin` includes the others."""
    project: str | None = None
    """The project whose objects it reaches; null reaches every project."""
    name: str | None = None
    """Who or what uses it: a job, a person, a worker."""
    run_id: UUID | None = None
    """The only run that it reaches, of `project`; with the scopes `ingest` and `read` alone."""
    expires_at: datetime | None = None
    """When it stops being accepted; null for never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key, without its secret."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    id: UUID
    name: str
    prefix: str
    """How the secret begins, so that its owner recognizes it."""
    project: str | None
    run_id: UUID | None
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To within a minute or so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyCreated(ApiKey):
    """Answer to `POST /api-keys`: the only time that the secret is shown."""

    secret: str
    """Send it as `Authorization: Bearer <secret>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserSession:
    """Who asks, and what they may do."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    name: str
    """Of the key."""
    key_id: UUID | None
    """Null at the service's own machine, where no key is needed."""
    project: str | None
    """The only one that it reaches; null reaches every project."""
    run_id: UUID | None
    scopes: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyList:
    """A page of API keys, newest first."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    items: list[ApiKey]
    next_page_token: str | None
    """Opaque; pass it as `page_token` to read on. Null on the last page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """Who did what, when."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    id: UUID
    at: datetime
    actor: str
    """Name of the key, `loopback` where no key was needed, or `command line`."""
    actor_key_id: UUID | None
    action: str
    """`create_run`, `delete_run`, `create_rerun`, `create_api_key`, `revoke_api_key`, ..."""
    project: str | None
    object_id: UUID
    """Of the run, the rerun, the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecordList:
    """A page of audit records, newest first."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    items: list[AuditRecord]
    next_page_token: str | None
    """Opaque; pass it as `page_token` to read on. Null on the last page."""


# --- reruns -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunBudget:
    """What a rerun may spend; what is left out follows from the run and the project."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    steps: Whole | None = None
    """Of each trial."""
    seconds: Number | None = None
    """Of all trials together, each from its start to its end."""
    trials: Whole | None = None
    """Candidates times seeds; further attempts at one trial do not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunCreate:
    """Body of `POST /runs/{id}/reruns`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    remedies: list[list[Remedy]] | None = None
    """The candidates, each some remedies that are applied together; without it, the run's advice is raced. The remedy
    `set_parameter` sets parameters of the trainable by their own names."""
    seeds: Whole | None = None
    """How many; 3 unless given."""
    budget: RerunBudget = field(default_factory=RerunBudget)
    executor: Annotated[str | None, OneOf(*EXECUTORS)] = None
    """Without it the first worker that takes a trial decides for all of them, so that all are run by one kind."""
    id: UUID | None = None
    """UUIDv7 chosen by the client; asking with the same id again answers the same rerun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunSummary:
    """A rerun as lists show it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    id: UUID
    run_id: UUID
    """The suspect run."""
    project: str
    trainable: str
    status: Annotated[str, OneOf(*RERUN_STATUSES)]
    reason: str | None
    """How it came out, in a sentence; before that, what it waits for, if there is no worker for it."""
    is_automatic: bool
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Remedies that are tried together; none of them in the control, which comes first."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    remedies: list[Remedy]
    outcome: Outcome | None
    """Once the rerun is over; null for the control and for what was not tried."""
    reason: str | None
    """Of the outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One process that ran, or runs, a trial; its steps are those of a run of its own."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    number: int
    """From 1."""
    run_id: UUID
    worker: str
    status: Annotated[str, OneOf(*ATTEMPT_STATUSES)]
    reason: str | None
    exit_code: int | None
    """Negative: the signal that ended it."""
    started_at: datetime
    ended_at: datetime | None
    environment: dict[str, str]
    """Versions and device that it ran on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One candidate on one seed."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    id: UUID
    candidate: int
    """Position in the rerun's `candidates`; 0 is the control."""
    seed: int
    status: Annotated[str, OneOf(*TRIAL_STATUSES)]
    reason: str | None
    verdict: Verdict
    step: int | None
    """The last step of its latest attempt."""
    start_loss: float | None
    loss: float | None
    """The final one: median of the last tenth."""
    seconds: float
    """Of all its attempts that have ended."""
    attempts: list[Attempt]
    lease_expires_at: datetime | None
    """When whoever runs it is given up, unless heard of before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunDetail(RerunSummary):
    """A rerun with everything that belongs to it."""

    budget: RerunBudget
    seeds: list[int]
    executor: Annotated[str | None, OneOf(*EXECUTORS)]
    """Null until it was named or a first trial was taken."""
    parameters: dict[str, float | int | str | bool | None]
    """Of the trainable, as the control has them."""
    candidates: list[Candidate]
    trials: list[Trial]
    cost_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunList:
    """A page of reruns."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    items: list[RerunSummary]
    next_page_token: str | None
    """Opaque; pass it as `page_token` to read on. Null on the last page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableParameter:
    """What a rerun may set of a trainable."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    name: str
    """Of its placeholder, and of its key in the run's config: dots lead into nested mappings."""
    type: Annotated[str, OneOf(*PARAMETER_TYPES)]
    minimum: Number | None = None
    maximum: Number | None = None
    choices: list[str] | None = None
    """Of a `str`, every value that it may have."""
    default: float | int | str | bool | None = None
    """Where the run's config has no such key."""
    is_optional: Flag = False
    """Whether it may have no value; its argument is then left out."""
    remedy: str | None = None
    """The remedy, or the parameter of one (`truncate_backpropagation.time_steps`), that it carries out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """A command that a worker's operator has allowed to be rerun. The command itself stays with the worker."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    name: str
    parameters: list[TrainableParameter] = field(default_factory=list)
    gpus: Whole = 0
    timeout: Number = 3600.0
    """Seconds after which a trial of it is ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainablesOffer:
    """Body of `PUT /trainables`. A worker repeats it every few seconds, as long as it offers them."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    items: list[Trainable]
    worker: str | None = None
    """Name of whoever offers them: what it offered before and no longer does is withdrawn, unless another offers it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainables:
    """Answer to `PUT /trainables` and to `GET /trainables`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    items: list[Trainable]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialClaim:
    """Body of `POST /trials/claim`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    worker: str
    """Name of whoever asks, for people."""
    trainables: list[str]
    """Those that it can run now."""
    executor: Annotated[str, OneOf(*EXECUTORS)] = EXECUTORS[0]
    """Of another one than the worker's own machine, an attempt waits until its process redeems a ticket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedTrial:
    """Answer to a claim: what to run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    trial_id: UUID
    attempt: int
    rerun_id: UUID
    run_id: UUID
    """Of the attempt: a run of its own, which the script creates."""
    parent_id: UUID
    """The suspect run."""
    project: str
    candidate: int
    trainable: str
    parameters: dict[str, float | int | str | bool | None]
    seed: int
    remedies: list[Remedy]
    steps: int
    """After which the trial ends."""
    seconds: float
    """After which it must have ended."""
    lease_seconds: float
    """Without a heartbeat for so long, another attempt is made."""
    api_key: str | None = None
    """That the trial streams with: for its own run alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialTicket:
    """Body of `POST /trials/{id}/ticket`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    attempt: Whole
    ticket: str
    """In the form of an API key; whoever presents it first, and nobody after, gets what the attempt needs."""
    seconds: Number
    """For which it is good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRedemption:
    """Body of `POST /trials/{id}/redeem`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    attempt: Whole


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialLease:
    """Answer to `GET /trials/{id}/lease` and `POST /trials/{id}/ticket`: whether anybody waits for an attempt."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    trial_id: UUID
    attempt: int
    seconds: float
    """Until the attempt is given up, unless its worker is heard of before; negative once that may happen any time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialHeartbeat:
    """Body of `POST /trials/{id}/heartbeat`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    attempt: Whole
    output: str | None = None
    """The end of what it has printed, if that changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatResult:
    """Answer to a heartbeat."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    stop: bool
    """End the trial: others are better, or the budget is spent."""
    reason: str | None
    seconds: float
    """That it may still take."""
    step: int | None
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """Body of `POST /trials/{id}/result`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    attempt: Whole
    status: Annotated[str, OneOf(*RESULT_STATUSES)]
    """`lost`: what hosted the process was lost, and nothing can be said of the trial; another attempt is made."""
    reason: str | None = None
    """Why it failed, was lost, or could not be applied."""
    exit_code: Whole | None = None
    output: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    seconds: Number | None = None
    """That it took; without it, until the result arrives, which the service's absence may delay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOutput:
    """Answer to `GET /trials/{id}/output`: the end of what an attempt has printed."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _SCHEMA

    trial_id: UUID
    attempt: int
    output: str


# --- service ----------------------------------------------------------------------------------------------------------
