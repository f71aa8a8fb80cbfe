"""What a worker and the service exchange about a trial."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar
from uuid import UUID

import msgspec

from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.reruns import EXECUTORS
from gradmedic.protocol.schema import SCHEMA, Number, OneOf, StrictInt
from gradmedic.protocol.verdicts import Verdict

RESULT_STATUSES = ("done", "failed", "not_applicable", "lost")
"""What a worker may say of a trial that has ended; the service knows which it stopped or cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialClaim:
    """Body of `POST /trials/claim`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    worker: str
    """Name of whoever asks, for people."""
    trainables: list[str]
    """Those that it can run now."""
    executor: Annotated[str, OneOf(*EXECUTORS)] = EXECUTORS[0]
    """Of another one than the worker's own machine, an attempt waits until its process redeems a ticket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedTrial:
    """Answer to a claim: what to run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

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

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    attempt: StrictInt
    ticket: str
    """In the form of an API key; whoever presents it first, and nobody after, gets what the attempt needs."""
    seconds: Number
    """For which it is good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRedemption:
    """Body of `POST /trials/{id}/redeem`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    attempt: StrictInt


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialLease:
    """Answer to `GET /trials/{id}/lease` and `POST /trials/{id}/ticket`: whether anybody waits for an attempt."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    trial_id: UUID
    attempt: int
    seconds: float
    """Until the attempt is given up, unless its worker is heard of before; negative once that may happen any time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialHeartbeat:
    """Body of `POST /trials/{id}/heartbeat`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    attempt: StrictInt
    output: str | None = None
    """The end of what it has printed, if that changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatResult:
    """Answer to a heartbeat."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

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

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    attempt: StrictInt
    status: Annotated[str, OneOf(*RESULT_STATUSES)]
    """`lost`: what hosted the process was lost, and nothing can be said of the trial; another attempt is made."""
    reason: str | None = None
    """Why it failed, was lost, or could not be applied."""
    exit_code: StrictInt | None = None
    output: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    seconds: Number | None = None
    """That it took; without it, until the result arrives, which the service's absence may delay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOutput:
    """Answer to `GET /trials/{id}/output`: the end of what an attempt has printed."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    trial_id: UUID
    attempt: int
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReport:
    """What the script of a trial reports to its worker beside its steps. `GRADMEDIC_REPORT` names the file.

    >>> TrialReport(applied=1).to_fields()
    {'applied': 1}
    >>> TrialReport.from_fields({"applied": 1, "unknown": 2})
    TrialReport(watched=False, applied=1, not_applied=[], not_applicable=None, ended=None, environment={})
    """

    watched: bool = False
    """Whether the script has called `run.watch()`."""
    applied: int | None = None
    """Number of places where remedies were applied. Null before they were applied."""
    not_applied: list[str] = field(default_factory=list)
    """The reasons why remedies were not applied in some places."""
    not_applicable: str | None = None
    """The reason why the remedies cannot be applied at all. Null if they can."""
    ended: str | None = None
    """The reason why the SDK has ended the script. Null if the SDK has not."""
    environment: dict[str, str] = field(default_factory=dict)
    """Versions and device that the script runs on."""

    def to_fields(self) -> dict[str, Any]:
        """Return the fields as JSON has them, without those that have their default.

        They are left out because workers of earlier versions take each key that is there for a fact.
        """
        default = asdict(TrialReport())
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    @classmethod
    def from_fields(cls, fields: object) -> TrialReport:
        """Return the report that has these fields; an empty report where they are those of no report."""
        try:
            return msgspec.convert(fields, cls)
        except msgspec.ValidationError:
            return cls()
