"""Requests and answers about reruns and their trials."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from gradmedic.protocol.diagnosis import Outcome
from gradmedic.protocol.origins import DiagnosedOrigin, Origin
from gradmedic.protocol.paging import Page
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.schema import SCHEMA, Number, OneOf, StrictInt, Text
from gradmedic.protocol.verdicts import Verdict

RERUN_STATUSES = ("queued", "running", "done", "not_reproduced", "failed", "cancelled")


TRIAL_STATUSES = ("queued", "running", "done", "failed", "cancelled", "stopped", "not_applicable")


ATTEMPT_STATUSES = ("running", "lost", "incomplete", "done", "failed", "cancelled", "stopped", "not_applicable")


RERUN_KINDS = ("repair", "locate")
"""What a rerun is for: to race remedies, or to find the origin of the first non-finite number."""


EXECUTORS = ("local", "ray")
"""What runs the processes of trials: the worker's own machine, or a Ray cluster."""

EXECUTORS_WITH_TICKETS = ("ray",)
"""Executors whose trials may wait for a place. Their processes redeem a ticket for their key once they have started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunBudget:
    """Upper limits of a rerun. The service derives a missing limit from the run and the project."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    steps: StrictInt | None = None
    """The largest number of steps of each trial."""
    seconds: Number | None = None
    """The largest sum of all trials' durations in seconds, each from its start to its end."""
    trials: StrictInt | None = None
    """The largest number of trials (candidates times seeds). Further attempts at a trial do not count."""
    rounds: StrictInt | None = None
    """The largest number of rounds. Where a round verifies no remedy, the next one tries what follows from its trials.
    Null means 3 where the run's advice is raced, and 1 where the request names remedies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunCreate:
    """Body of `POST /runs/{id}/reruns`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    kind: Annotated[Text, OneOf(*RERUN_KINDS)] = RERUN_KINDS[0]
    """The kind: `repair` races remedies. `locate` runs the unchanged script to the step before it becomes non-finite,
    and checks each operation from there on. It takes no remedies, seeds or rounds."""
    remedies: list[list[Remedy]] | None = None
    """The candidates. Each is a list of remedies that are applied together. Null means the advice of the run. The
    remedy `set_parameter` sets parameters of the trainable by their own names."""
    seeds: StrictInt | None = None
    """Number of seeds. Null means 3."""
    budget: RerunBudget = field(default_factory=RerunBudget)
    """Upper limits of the rerun."""
    executor: Annotated[Text, OneOf(*EXECUTORS)] | None = None
    """The executor of all trials. Null means the executor of the first worker that claims a trial."""
    id: UUID | None = None
    """A UUIDv7 that the client chooses. A second request with the same id answers the same rerun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunPlan:
    """The expected cost of a rerun: that of its first round, or of the round that it is in."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    candidates: int
    """Number of candidates of all rounds so far, besides the controls."""
    trials: int
    """Expected number of trials of all rounds so far, with those that confirm the best candidates."""
    steps: int
    """Number of steps of each trial of the latest round."""
    step_seconds: float | None
    """Seconds that a step takes: in the trials that have ended, or before in the suspect run. Null if not known."""
    seconds_left: float | None
    """Expected sum of the durations in seconds of the trials that are left, at most the rest of the budget. Null if
    the duration of a step is not known. A further round is not counted."""
    budget: RerunBudget
    """Upper limits of the rerun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunSummary:
    """A rerun as lists show it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: UUID
    """Id of the rerun, a UUIDv7."""
    run_id: UUID
    """Id of the suspect run."""
    project: str
    """Name of the project."""
    trainable: str
    """Name of the trainable that is rerun."""
    status: Annotated[str, OneOf(*RERUN_STATUSES)]
    """Status of the rerun."""
    reason: str | None
    """The result of the rerun as one sentence. While no worker can run it: the reason why it waits."""
    is_automatic: bool
    """True if the service started the rerun without a request."""
    created_at: datetime
    """Time at which the rerun was created."""
    started_at: datetime | None
    """Time at which the first trial started. Null before."""
    ended_at: datetime | None
    """Time at which the rerun ended. Null before."""
    kind: Annotated[str, OneOf(*RERUN_KINDS)] = RERUN_KINDS[0]
    """The kind of the rerun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Remedies that are tried together. The first candidate of a rerun is the control, which has none.

    A round with longer trials begins with a control of its own.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    remedies: list[Remedy]
    """The remedies. Empty for the control."""
    outcome: Outcome | None
    """The outcome, once the rerun has ended. Null for the control and for candidates that were not tried."""
    reason: str | None
    """The reason of the outcome."""
    round: int = 1
    """Number of the round that the candidate belongs to, counted from 1."""
    steps: int | None = None
    """Number of steps of each of its trials. Null from a service that has no rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One process that runs, or ran, a trial. It has a run of its own."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    number: int
    """Number of the attempt, counted from 1."""
    run_id: UUID
    """Id of the attempt's own run."""
    worker: str
    """Name of the worker."""
    status: Annotated[str, OneOf(*ATTEMPT_STATUSES)]
    """Status of the attempt."""
    reason: str | None
    """The reason why the attempt ended as it did."""
    exit_code: int | None
    """Exit code of the process. A negative number is the signal that ended it."""
    started_at: datetime
    """Time at which the attempt started."""
    ended_at: datetime | None
    """Time at which the attempt ended. Null before."""
    environment: dict[str, str]
    """Versions and device that the attempt used."""
    start_seconds: float | None = None
    """Number of seconds from the claim to the first step. An attempt on a cluster counts from the start of its process.
    Null before the first step, and if the run was deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One candidate on one seed."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: UUID
    """Id of the trial."""
    candidate: int
    """Position of the candidate in the rerun's `candidates`. 0 is the first control."""
    seed: int
    """The seed of the random generators."""
    status: Annotated[str, OneOf(*TRIAL_STATUSES)]
    """Status of the trial."""
    reason: str | None
    """The reason why the trial ended as it did."""
    verdict: Verdict
    """The verdict on the run of the latest attempt."""
    step: int | None
    """The last step of the latest attempt. Null before the first step."""
    start_loss: float | None
    """The loss at the beginning. Null if the trial reported no loss."""
    loss: float | None
    """The loss at the end: the median of the last tenth. Null if the trial reported no loss."""
    seconds: float
    """Sum of the durations of all ended attempts in seconds."""
    attempts: list[Attempt]
    """The attempts, oldest first."""
    lease_expires_at: datetime | None
    """Time at which the current attempt counts as lost, unless its worker sends a heartbeat before."""
    judged_by: str | None = None
    """The measure by which the trial is judged: `loss`, `loss in eval()`, `minimize METRIC`, `maximize METRIC`,
    `maximize loss`, or `none` if no number measures progress. Null before the end, and if the trial reported no
    number."""
    judged_value: float | None = None
    """The value of this measure at the end. Null if there is none."""
    constant_level: float | None = None
    """The loss of a predictor that gives the same output for every example. Null if it is not known, or if the trial is
    not judged by a loss."""
    has_converged: bool = False
    """True if the loss is at most a tenth of the constant level, or at most a hundredth of its start where that level
    is not known. Vanishing gradients are then no failure."""
    origin: Origin | None = None
    """The origin that a trial of a rerun of the kind `locate` has found, or the reason why it found none. Null before,
    and if every number was finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunDetail(RerunSummary):
    """A rerun with its candidates, trials and attempts."""

    budget: RerunBudget
    """Upper limits of the rerun."""
    seeds: list[int]
    """The seeds on which candidates are tried."""
    executor: Annotated[str, OneOf(*EXECUTORS)] | None
    """The executor of all trials. Null until a request names it or the first trial is claimed."""
    parameters: dict[str, float | int | str | bool | None]
    """The parameters of the trainable in the control."""
    candidates: list[Candidate]
    """The candidates. The first is the control."""
    trials: list[Trial]
    """The trials."""
    cost_seconds: float
    """Sum of the durations of all ended attempts in seconds."""
    plan: RerunPlan | None = None
    """The expected cost. Null once the rerun has ended, and from a service that has no rounds."""
    origin: DiagnosedOrigin | None = None
    """The result of a rerun of the kind `locate`, with a change of the script. Null before its end, if the failure was
    not reproduced, and for other kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunList(Page):
    """A page of reruns."""

    items: list[RerunSummary]
