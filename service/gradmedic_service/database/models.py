"""The tables.

Each block rewrites the row of its run, so that row is small: what an append does not change, such as the layers, is in
another table. Telemetry is stored in compressed arrays, never as one row per value.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    false,
    func,
    text,
)
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column, relationship

from gradmedic_service.database.alert_models import Alert, AlertDelivery, AlertDestination, AlertEvent
from gradmedic_service.database.base import NAME_LENGTH, Base

__all__ = [
    "NAME_LENGTH",
    "Alert",
    "AlertDelivery",
    "AlertDestination",
    "AlertEvent",
    "ApiKey",
    "Attempt",
    "AuditRecord",
    "Base",
    "BrowserSession",
    "DiagnosisSnapshot",
    "DiagnosisState",
    "GuardAction",
    "Project",
    "Rerun",
    "Run",
    "RunDetails",
    "RunReview",
    "RunTag",
    "TelemetryChunk",
    "TelemetryRollup",
    "Trainable",
    "Trial",
    "VerdictChange",
]


class Project(Base):
    """A project. Runs refer to it by name, without a foreign key, because its row only holds optional settings."""

    __tablename__ = "projects"

    name: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    muted_detectors: Mapped[list[Any]]
    created_at: Mapped[datetime]
    rerun_automatically: Mapped[bool | None]
    """Null, here and in the columns below, until it is set for the first time."""
    max_concurrent_trials: Mapped[int | None]
    max_rerun_seconds: Mapped[float | None] = mapped_column(Double)
    alerts_muted_until: Mapped[datetime | None]
    """Time until which the project makes no alerts."""


class Run(Base):
    """One training job: its identity and its current state.

    No index contains a column that an append changes, so that PostgreSQL can update the row in place (HOT). The index
    of running runs is for the due work: an append changes the status of a stalled run only.
    """

    __tablename__ = "runs"
    __table_args__ = (
        Index(None, "created_at", "id"),
        Index(None, "name", "id"),
        Index(None, "project", "created_at", "id"),
        Index(None, "parent_id"),
        Index(
            "ix_runs_running",
            "id",
            postgresql_where=text("status = 'running'"),
            sqlite_where=text("status = 'running'"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(String(NAME_LENGTH))
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    group: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    framework: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    trainable: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    status: Mapped[str] = mapped_column(String(16))
    verdict: Mapped[str] = mapped_column(String(16))
    score: Mapped[float] = mapped_column(Double)
    since_step: Mapped[int | None] = mapped_column(BigInteger)
    learning: Mapped[str] = mapped_column(String(16), server_default="unknown")
    level: Mapped[str] = mapped_column(String(16), server_default="unknown")
    last_step: Mapped[int | None] = mapped_column(BigInteger)
    generation: Mapped[int] = mapped_column(Integer)
    revision: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    statistics: Mapped[list[Any]]
    """Names of the statistics, in the client's order."""
    metrics: Mapped[list[Any]]
    """Names of all metrics that the run has sent."""
    layer_counts: Mapped[list[Any]]
    """Every number of layers that the run has had, ascending. A block made before layers were added has fewer."""
    facts_digest: Mapped[bytes] = mapped_column(LargeBinary(16))
    """Digest of the layers, the training facts and the framework: the key of a cache of what is derived from them."""
    muted_detectors: Mapped[list[Any] | None]
    """Ids of detectors; null until they are set for the first time."""
    rewound_to: Mapped[int | None] = mapped_column(BigInteger)
    """Step of the last rewind, by which a repeated request is recognized."""
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    """The suspect run, if this run is an attempt at a trial."""
    stop_after: Mapped[int | None] = mapped_column(BigInteger)
    """Last step that is accepted of a trial's run; -1 once the trial is over. Null for other runs."""
    patience: Mapped[float | None] = mapped_column(Double)
    """Seconds that the run may be silent; null until a version with this column has stored a step."""
    stalls_at: Mapped[datetime | None]
    """Time at which the run becomes stalled unless it sends new steps."""
    progress: Mapped[bytes | None] = mapped_column(LargeBinary)
    """Progress up to a step, which `runs.progress` reads. Null, here and below, until a version with this
    column has stored a step."""
    last_values: Mapped[dict[str, Any] | None]
    """Last loss and last metrics, under the names by which lists sort and filter."""
    duration: Mapped[float | None] = mapped_column(Double)
    """Seconds from the first step to the last one."""
    first_bad_layer: Mapped[str | None] = mapped_column(Text)
    """First layer of the finding that decided an unhealthy verdict."""

    details: Mapped[RunDetails] = relationship(cascade="all, delete-orphan", passive_deletes=True)
    tags: Mapped[list[RunTag]] = relationship(
        cascade="all, delete-orphan", passive_deletes=True, order_by="RunTag.position"
    )
    review: Mapped[RunReview | None] = relationship(cascade="all, delete-orphan", passive_deletes=True)


class RunDetails(Base):
    """The parts of a run that seldom change. They are not in `runs` because SQLite rewrites a row as a whole."""

    __tablename__ = "run_details"

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    notes: Mapped[str | None] = mapped_column(Text)
    config: Mapped[dict[str, Any]]
    training: Mapped[dict[str, Any] | None]
    layers: Mapped[list[Any]]


class RunTag(Base):
    """A tag of a run."""

    __tablename__ = "run_tags"
    __table_args__ = (Index(None, "tag", "run_id"),)

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    tag: Mapped[str] = mapped_column(String(NAME_LENGTH))


class RunReview(Base):
    """A user's answer to the question whether the verdict on a run is right. A rewind and a new diagnosis keep it."""

    __tablename__ = "run_reviews"
    __table_args__ = (Index(None, "answer", "run_id"),)

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    answer: Mapped[str] = mapped_column(String(16))
    verdict: Mapped[str | None] = mapped_column(String(16))
    level: Mapped[str | None] = mapped_column(String(16))
    note: Mapped[str | None] = mapped_column(Text)
    step: Mapped[int | None] = mapped_column(BigInteger)
    judged_verdict: Mapped[str] = mapped_column(String(16))
    judged_level: Mapped[str] = mapped_column(String(16))
    diagnosis_version: Mapped[str] = mapped_column(String(32))
    reviewed_at: Mapped[datetime]


class DiagnosisState(Base):
    """The latest stored state of a run's diagnostician, from its first block on."""

    __tablename__ = "diagnosis_states"

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    state: Mapped[bytes] = mapped_column(LargeBinary)
    steps_since_snapshot: Mapped[int | None] = mapped_column(Integer)
    """Null, which an earlier version wrote, counts as zero."""


class DiagnosisSnapshot(Base):
    """The state of a run's diagnostician after a step. Going back to a later step replays the steps in between."""

    __tablename__ = "diagnosis_snapshots"

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    state: Mapped[bytes] = mapped_column(LargeBinary)
    """The state, compressed."""


class VerdictChange(Base):
    """A change of a run's verdict, learning or level at a step."""

    __tablename__ = "verdict_changes"
    __table_args__ = (Index(None, "run_id", "step"),)

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    step: Mapped[int] = mapped_column(BigInteger)
    verdict: Mapped[str] = mapped_column(String(16))
    score: Mapped[float] = mapped_column(Double)
    learning: Mapped[str] = mapped_column(String(16), server_default="unknown")
    level: Mapped[str] = mapped_column(String(16), server_default="unknown")
    finding: Mapped[str | None] = mapped_column(String(NAME_LENGTH))


class GuardAction(Base):
    """An action of a guard of a run. A rewind keeps it, also if its step is dropped."""

    __tablename__ = "guard_actions"

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    """Number of the action among those of its run, from 1 on."""
    generation: Mapped[int] = mapped_column(Integer)
    step: Mapped[int] = mapped_column(BigInteger)
    to_step: Mapped[int | None] = mapped_column(BigInteger)
    """The last step that a rewind kept. Null for every other action."""
    verdict: Mapped[str | None] = mapped_column(String(16))
    """The verdict that a rewind took back, and its first step. Null for every other action."""
    since_step: Mapped[int | None] = mapped_column(BigInteger)
    action: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(32))
    numbers: Mapped[dict[str, Any]]
    """Non-finite numbers are their names."""
    explanation: Mapped[str] = mapped_column(Text)
    is_dropped: Mapped[bool] = mapped_column(server_default=false())
    """Whether a later rewind dropped the step. False of a rewind itself."""
    created_at: Mapped[datetime]


class TelemetryChunk(Base):
    """Consecutive steps of a run as one compressed array; `telemetry.chunks` reads `data`."""

    __tablename__ = "telemetry_chunks"

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    first_step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    last_step: Mapped[int] = mapped_column(BigInteger)
    step_count: Mapped[int] = mapped_column(Integer)
    position: Mapped[int | None] = mapped_column(Integer)
    """Number of chunks before this one. Null for chunks of an earlier version and all later ones of that run; they have
    no rollups."""
    data: Mapped[bytes] = mapped_column(LargeBinary)


class TelemetryRollup(Base):
    """Buckets of many steps, one for each of several rows of the level below; `telemetry.rollups` reads `data`."""

    __tablename__ = "telemetry_rollups"

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    level: Mapped[int] = mapped_column(Integer, primary_key=True)
    first_step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    last_step: Mapped[int] = mapped_column(BigInteger)
    position: Mapped[int] = mapped_column(Integer)
    """Number of rows of the same level before this one."""
    data: Mapped[bytes] = mapped_column(LargeBinary)


class ApiKey(Base):
    """An API key, stored as a hash. It stays after its revocation and after its project, for the audit records."""

    __tablename__ = "api_keys"
    __table_args__ = (Index(None, "project", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    prefix: Mapped[str] = mapped_column(String(32))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    """SHA-256 of the secret. The secret has 256 random bits, so no slower hash is needed."""
    project: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    run_id: Mapped[UUID | None]
    scopes: Mapped[list[Any]]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class BrowserSession(Base):
    """A browser's session: a key that was exchanged for a cookie. It ends with its key."""

    __tablename__ = "browser_sessions"
    __table_args__ = (Index(None, "expires_at"),)

    digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    """SHA-256 of the cookie's value."""
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class AuditRecord(Base):
    """An action and the principal that did it. It has no foreign key, because it outlives the objects that it names."""

    __tablename__ = "audit_records"
    __table_args__ = (Index(None, "project", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(NAME_LENGTH))
    actor_key_id: Mapped[UUID | None]
    action: Mapped[str] = mapped_column(String(64))
    project: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    object_id: Mapped[UUID]


class Trainable(Base):
    """A command that workers may rerun, as its worker describes it. Its name is unique in its project.

    The version before revision 0011 finds a trainable by the column `name` alone. So that column holds the name where
    no other project has it, otherwise a text that is no name. The next release can make project and name the key.
    """

    __tablename__ = "trainables"
    __table_args__ = (Index(None, "owner"),)

    place: Mapped[str] = mapped_column("name", String(NAME_LENGTH), primary_key=True)
    """The name, or a text that stands for project and name."""
    given_name: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    """The name where it is not the place; null otherwise."""
    owner: Mapped[str] = mapped_column(String(NAME_LENGTH))
    """Id of the API key that registered the trainable and that alone may run it; empty where no keys are required."""
    project: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    """The project whose runs may name it; null for every project."""
    gpus: Mapped[int]
    timeout: Mapped[float] = mapped_column(Double)
    parameters: Mapped[list[Any]]
    updated_at: Mapped[datetime]
    """Time of the latest offer."""
    worker: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    """Name of the worker that made the latest offer."""
    withdrawn_at: Mapped[datetime | None]
    """Time since which its worker no longer offers it, and no other worker does."""

    @hybrid_property
    def name(self) -> str:
        """The name."""
        return self.place if self.given_name is None else self.given_name

    @name.inplace.expression
    @classmethod
    def _name_in_queries(cls) -> ColumnElement[str]:
        return func.coalesce(cls.given_name, cls.place)


class Rerun(Base):
    """A race of remedies.

    After its creation only its status, reason, executor, outcomes and times change, and further rounds are added to its
    candidates and its plan.
    """

    __tablename__ = "reruns"
    __table_args__ = (Index(None, "run_id"), Index(None, "created_at", "id"), Index(None, "status"))

    id: Mapped[UUID] = mapped_column(primary_key=True)
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    project: Mapped[str] = mapped_column(String(NAME_LENGTH))
    trainable: Mapped[str] = mapped_column(String(NAME_LENGTH))
    owner: Mapped[str] = mapped_column(String(NAME_LENGTH))
    """Owner of the trainable when the rerun was made. Another owner of the same name does not run it."""
    executor: Mapped[str | None] = mapped_column(String(16))
    """Null until the request named it or the first trial was claimed."""
    is_automatic: Mapped[bool]
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    candidates: Mapped[list[Any]]
    """Remedies of each candidate. The first candidate, the control, has none."""
    parameters: Mapped[dict[str, Any]]
    seeds: Mapped[list[Any]]
    steps: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float] = mapped_column(Double)
    max_trials: Mapped[int]
    plan: Mapped[dict[str, Any] | None]
    """The rounds of the race, which `reruns.stored_plan` reads. Null where an earlier version has made the rerun."""
    outcomes: Mapped[list[Any] | None]
    """Outcomes of the candidates, written once, when the rerun ends."""
    kind: Mapped[str] = mapped_column(String(16), server_default="repair")
    origin: Mapped[dict[str, Any] | None]
    """Result of a rerun of the kind `locate`, written once, when the rerun ends."""
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class Trial(Base):
    """One candidate on one seed."""

    __tablename__ = "trials"
    __table_args__ = (Index(None, "rerun_id", "candidate", "seed", unique=True), Index(None, "status"))

    id: Mapped[UUID] = mapped_column(primary_key=True)
    rerun_id: Mapped[UUID] = mapped_column(ForeignKey("reruns.id", ondelete="CASCADE"))
    position: Mapped[int]
    """Place of the trial in the order of their starts."""
    candidate: Mapped[int]
    seed: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    attempt: Mapped[int]
    """Number of the latest attempt; 0 before the first."""
    lease_expires_at: Mapped[datetime | None]
    reason_to_stop: Mapped[str | None] = mapped_column(Text)
    """Why the trial must end early. The answer to the next heartbeat carries it to the worker."""
    verdict: Mapped[str] = mapped_column(String(16))
    rungs: Mapped[list[Any]]
    curve: Mapped[dict[str, Any] | None]
    origin: Mapped[dict[str, Any] | None]
    """What a trial of a rerun of the kind `locate` has found."""
    seconds: Mapped[float] = mapped_column(Double)


class Attempt(Base):
    """A process that runs or has run a trial."""

    __tablename__ = "attempts"
    __table_args__ = (Index(None, "run_id", unique=True),)

    trial_id: Mapped[UUID] = mapped_column(ForeignKey("trials.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[UUID]
    """Id of the attempt's run, which the training script creates."""
    worker: Mapped[str] = mapped_column(String(NAME_LENGTH))
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    exit_code: Mapped[int | None]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    environment: Mapped[dict[str, Any]]
    key_id: Mapped[UUID | None]
    """Id of the API key that the attempt streams with; while the attempt waits, the id of its ticket."""
    is_waiting: Mapped[bool | None]
    """Whether the executor has no process for the attempt yet. Until then no time counts, and its ticket is valid."""
    output: Mapped[str] = mapped_column(Text)
    """The last lines that the process has printed."""
