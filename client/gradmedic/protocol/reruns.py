"""Requests and answers about reruns and their trials."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from gradmedic.protocol.diagnosis import Outcome
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.schema import SCHEMA, Number, OneOf, StrictInt
from gradmedic.protocol.verdicts import Verdict

RERUN_STATUSES = ("queued", "running", "done", "not_reproduced", "failed", "cancelled")


TRIAL_STATUSES = ("queued", "running", "done", "failed", "cancelled", "stopped", "not_applicable")


ATTEMPT_STATUSES = ("running", "lost", "done", "failed", "cancelled", "stopped", "not_applicable")


EXECUTORS = ("local", "ray")
"""What hosts the processes of trials: the worker's own machine, or a Ray cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunBudget:
    """What a rerun may spend; what is left out follows from the run and the project."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    steps: StrictInt | None = None
    """Of each trial."""
    seconds: Number | None = None
    """Of all trials together, each from its start to its end."""
    trials: StrictInt | None = None
    """Candidates times seeds; further attempts at one trial do not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunCreate:
    """Body of `POST /runs/{id}/reruns`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    remedies: list[list[Remedy]] | None = None
    """The candidates, each some remedies that are applied together; without it, the run's advice is raced. The remedy
    `set_parameter` sets parameters of the trainable by their own names."""
    seeds: StrictInt | None = None
    """How many; 3 unless given."""
    budget: RerunBudget = field(default_factory=RerunBudget)
    executor: Annotated[str | None, OneOf(*EXECUTORS)] = None
    """Without it the first worker that takes a trial decides for all of them, so that all are run by one kind."""
    id: UUID | None = None
    """UUIDv7 chosen by the client; asking with the same id again answers the same rerun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunSummary:
    """A rerun as lists show it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

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

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    remedies: list[Remedy]
    outcome: Outcome | None
    """Once the rerun is over; null for the control and for what was not tried."""
    reason: str | None
    """Of the outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One process that ran, or runs, a trial; its steps are those of a run of its own."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

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

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

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

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    items: list[RerunSummary]
    next_page_token: str | None
    """Opaque; pass it as `page_token` to read on. Null on the last page."""
