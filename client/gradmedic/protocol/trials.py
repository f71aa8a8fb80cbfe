"""Requests and answers between a worker and the service about a trial."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar
from uuid import UUID

from gradmedic.protocol.numbers import LARGEST_INT32, MAX_EXACT_INTEGER
from gradmedic.protocol.origins import Origin
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.reruns import EXECUTORS
from gradmedic.protocol.schema import SCHEMA, Between, Number, OneOf, StrictInt, Text
from gradmedic.protocol.trial_report import TrialEvaluation
from gradmedic.protocol.verdicts import Verdict

RESULT_STATUSES = ("done", "failed", "not_applicable", "lost")
"""Statuses that a worker may report for an ended trial. The service itself sets `stopped` and `cancelled`."""

AttemptNumber = Annotated[StrictInt, Between(1, LARGEST_INT32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialClaim:
    """Body of `POST /trials/claim`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    worker: Text
    """Name of the worker, for people."""
    trainables: list[Text]
    """Names of the trainables that the worker can run now."""
    executor: Annotated[Text, OneOf(*EXECUTORS)] = EXECUTORS[0]
    """The executor of the worker. With another executor than `local`, the process of the attempt redeems a ticket
    before it starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedTrial:
    """Answer to a claim: the trial that the worker has to run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    trial_id: UUID
    """Id of the trial."""
    attempt: int
    """Number of the attempt, counted from 1."""
    rerun_id: UUID
    """Id of the rerun."""
    run_id: UUID
    """Id of the attempt's own run, which the script creates."""
    parent_id: UUID
    """Id of the suspect run."""
    project: str
    """Name of the project."""
    candidate: int
    """Position of the candidate in the rerun's `candidates`. 0 is the control."""
    trainable: str
    """Name of the trainable."""
    parameters: dict[str, float | int | str | bool | None]
    """The parameters of the trainable."""
    seed: int
    """The seed of the random generators."""
    remedies: list[Remedy]
    """The remedies that the SDK applies in the script."""
    steps: int
    """Number of steps after which the trial ends."""
    seconds: float
    """Number of seconds after which the worker ends the trial."""
    lease_seconds: float
    """Length of the lease in seconds. After so long without a heartbeat the attempt counts as lost."""
    api_key: str | None = None
    """API key of the attempt. It reaches the attempt's own run only."""
    locate_from: int | None = None
    """Step from which on each operation is checked, in a rerun of the kind `locate`. Null in other reruns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialTicket:
    """Body of `POST /trials/{id}/ticket`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    attempt: AttemptNumber
    """Number of the attempt, counted from 1."""
    ticket: Text
    """Secret in the form of an API key. It can be exchanged once for what the attempt needs."""
    seconds: Number
    """Number of seconds for which the ticket is valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRedemption:
    """Body of `POST /trials/{id}/redeem`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    attempt: AttemptNumber
    """Number of the attempt, counted from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialLease:
    """Answer to `GET /trials/{id}/lease` and `POST /trials/{id}/ticket`: the lease of an attempt."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    trial_id: UUID
    """Id of the trial."""
    attempt: int
    """Number of the attempt, counted from 1."""
    seconds: float
    """Number of seconds until the lease expires, unless the worker sends a heartbeat before. A negative number means
    that the lease has expired: the attempt may count as lost at any time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialHeartbeat:
    """Body of `POST /trials/{id}/heartbeat`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    attempt: AttemptNumber
    """Number of the attempt, counted from 1."""
    output: str | None = None
    """The end of the script's output. Null if it has not changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatResult:
    """Answer to a heartbeat."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    stop: bool
    """True if the worker must end the trial, because other candidates are better or the budget is spent."""
    reason: str | None
    """The reason why the worker must end the trial."""
    seconds: float
    """Number of seconds that the trial may still take."""
    step: int | None
    """The last step of the attempt. Null before the first step."""
    verdict: Verdict
    """The verdict on the attempt's run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """Body of `POST /trials/{id}/result`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    attempt: AttemptNumber
    """Number of the attempt, counted from 1."""
    status: Annotated[Text, OneOf(*RESULT_STATUSES)]
    """The way in which the attempt ended. `lost` means that the machine or cluster lost the process. Another attempt
    follows."""
    reason: Text | None = None
    """The reason why the trial failed, was lost or could not be applied."""
    exit_code: Annotated[StrictInt, Between(-LARGEST_INT32 - 1, LARGEST_INT32)] | None = None
    """Exit code of the process. A negative number is the signal that ended it."""
    output: str | None = None
    """The end of the script's output."""
    environment: dict[Text, Text] = field(default_factory=dict)
    """Versions and device that the attempt used."""
    seconds: Number | None = None
    """Duration of the attempt in seconds. Null means the time until the service receives the result."""
    last_step: Annotated[StrictInt, Between(-1, MAX_EXACT_INTEGER)] | None = None
    """Number of the last step that the script has logged, -1 if none is known. If the service lacks it, the attempt is
    incomplete. Another attempt follows. Null means that the attempt counts with the steps that the service has."""
    judge_by: Text | None = None
    """The objective by which the operator of the worker wants trials to be judged: `minimize loss`, `minimize METRIC`,
    `maximize METRIC` or `none`. Null means the objective of the script, or the loss if the script declares none."""
    evaluation: TrialEvaluation | None = None
    """The evaluation of the models at the end of the attempt. Null if there was none."""
    origin: Origin | None = None
    """The origin of the first non-finite number, or the reason why it was not found. Null if the trial does not look
    for it, and if every number was finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOutput:
    """Answer to `GET /trials/{id}/output`: the end of an attempt's output."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    trial_id: UUID
    """Id of the trial."""
    attempt: int
    """Number of the attempt, counted from 1."""
    output: str
    """The end of the script's output."""
