"""The tables.

One idea: what an append touches is apart from what it does not. A run's row is small and is rewritten by every block;
its layers and its settings are not. Telemetry is never a row per value.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

NAME_LENGTH = 512
"""Columns that hold names; `Settings.max_name_length` is not larger."""

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(TypeDecorator[datetime]):
    """A time with its zone, which SQLite would forget."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 (protocol)
        """Store in UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 (protocol)
        """Read as UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of every table."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's own protocol)
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
    }


class Project(Base):
    """What runs are grouped by. Runs refer to it by name without a foreign key: what a project says is optional."""

    __tablename__ = "projects"

    name: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    muted_detectors: Mapped[list[Any]]
    created_at: Mapped[datetime]
    rerun_automatically: Mapped[bool | None]
    """Null, here and below, where nothing was ever said about it."""
    max_concurrent_trials: Mapped[int | None]
    max_rerun_seconds: Mapped[float | None] = mapped_column(Double)


class Run(Base):
    """One training job: who it is and how it stands.

    No index holds a column that an append changes, so that PostgreSQL can update the row in place (HOT). The index of
    running runs is for the periodic task: an append changes the status of a stalled run only.
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
    last_step: Mapped[int | None] = mapped_column(BigInteger)
    generation: Mapped[int] = mapped_column(Integer)
    revision: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    statistics: Mapped[list[Any]]
    """Names, in the order that the client gave."""
    metrics: Mapped[list[Any]]
    """Names of every metric that was ever sent."""
    layer_counts: Mapped[list[Any]]
    """How many layers the run has had, ascending: a block that was made before layers were added has fewer."""
    facts_digest: Mapped[bytes] = mapped_column(LargeBinary(16))
    """Of the layers, the training facts and the framework: the key of what is derived from them."""
    muted_detectors: Mapped[list[Any] | None]
    """Ids; null where nothing was ever said about them."""
    rewound_to: Mapped[int | None] = mapped_column(BigInteger)
    """Step of the last rewind: by it a repeated request is recognized."""
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    """The suspect run, where this is an attempt at a trial."""
    stop_after: Mapped[int | None] = mapped_column(BigInteger)
    """The last step that is taken, of a trial's run; -1 once the trial is over, whatever its process still sends."""
    patience: Mapped[float | None] = mapped_column(Double)
    """Seconds that the run may be silent; null until a version that knows of it has stored a step."""
    stalls_at: Mapped[datetime | None]
    """When that time is over: the periodic task then marks the run as stalled."""

    details: Mapped[RunDetails] = relationship(cascade="all, delete-orphan", passive_deletes=True)
    tags: Mapped[list[RunTag]] = relationship(
        cascade="all, delete-orphan", passive_deletes=True, order_by="RunTag.position"
    )


class RunDetails(Base):
    """What was said about a run and seldom changes; apart from `runs` since SQLite rewrites a row as a whole."""

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


class DiagnosisState(Base):
    """Where the diagnostician of a run stands after its first block."""

    __tablename__ = "diagnosis_states"

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    state: Mapped[bytes] = mapped_column(LargeBinary)
    steps_since_snapshot: Mapped[int | None] = mapped_column(Integer)
    """Null, from the version before, counts as none."""


class DiagnosisSnapshot(Base):
    """Where the diagnostician of a run stood after a step; going back replays the steps behind it."""

    __tablename__ = "diagnosis_snapshots"

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    state: Mapped[bytes] = mapped_column(LargeBinary)
    """Compressed."""


class VerdictChange(Base):
    """The verdict of a run from a step on."""

    __tablename__ = "verdict_changes"
    __table_args__ = (Index(None, "run_id", "step"),)

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    step: Mapped[int] = mapped_column(BigInteger)
    verdict: Mapped[str] = mapped_column(String(16))
    score: Mapped[float] = mapped_column(Double)
    finding: Mapped[str | None] = mapped_column(String(NAME_LENGTH))


class TelemetryChunk(Base):
    """Consecutive steps of a run as one compressed array; `telemetry.chunks` reads `data`."""

    __tablename__ = "telemetry_chunks"

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    first_step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    last_step: Mapped[int] = mapped_column(BigInteger)
    step_count: Mapped[int] = mapped_column(Integer)
    position: Mapped[int | None] = mapped_column(Integer)
    """Chunks of the run before it; null where the version before wrote it, and from then on: such have no rollups."""
    data: Mapped[bytes] = mapped_column(LargeBinary)


class TelemetryRollup(Base):
    """Buckets of many steps, one for each of the rows of the level below; `telemetry.rollups` reads `data`."""

    __tablename__ = "telemetry_rollups"

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    level: Mapped[int] = mapped_column(Integer, primary_key=True)
    first_step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    last_step: Mapped[int] = mapped_column(BigInteger)
    position: Mapped[int] = mapped_column(Integer)
    """Rows of the level before it."""
    data: Mapped[bytes] = mapped_column(LargeBinary)


class ApiKey(Base):
    """A key by its hash. It outlives its project and its run, and its revocation: what it did is on record."""

    __tablename__ = "api_keys"
    __table_args__ = (Index(None, "project", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    prefix: Mapped[str] = mapped_column(String(32))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    """SHA-256 of the secret, which has 256 random bits: nothing slower is needed."""
    project: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    run_id: Mapped[UUID | None]
    scopes: Mapped[list[Any]]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class BrowserSession(Base):
    """A key exchanged for a cookie. It is the key's: it ends with it."""

    __tablename__ = "browser_sessions"
    __table_args__ = (Index(None, "expires_at"),)

    digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    """SHA-256 of the cookie's value."""
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class AuditRecord(Base):
    """Who did what. It refers to nothing by foreign key, since it outlives what it speaks of."""

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
    """A command that may be rerun, as its worker describes it."""

    __tablename__ = "trainables"

    name: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    owner: Mapped[str] = mapped_column(String(NAME_LENGTH))
    """Who registered it and alone may run it: the id of a key; empty where there are no keys."""
    project: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    """Of whose runs it may be; null for any."""
    gpus: Mapped[int]
    timeout: Mapped[float] = mapped_column(Double)
    parameters: Mapped[list[Any]]
    updated_at: Mapped[datetime]
    """When it was last offered."""
    worker: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    """Who offered it last."""
    withdrawn_at: Mapped[datetime | None]
    """Since when its worker is there without it, and no other offers it."""


class Rerun(Base):
    """A race of remedies. Everything but how it stands and came out is said when it is made."""

    __tablename__ = "reruns"
    __table_args__ = (Index(None, "run_id"), Index(None, "created_at", "id"), Index(None, "status"))

    id: Mapped[UUID] = mapped_column(primary_key=True)
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    project: Mapped[str] = mapped_column(String(NAME_LENGTH))
    trainable: Mapped[str] = mapped_column(String(NAME_LENGTH))
    owner: Mapped[str] = mapped_column(String(NAME_LENGTH))
    """Of the trainable, when the rerun was made: a name that changes hands is not run for it."""
    executor: Mapped[str | None] = mapped_column(String(16))
    """Null until it was named or a first trial was taken."""
    is_automatic: Mapped[bool]
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    candidates: Mapped[list[Any]]
    """Remedies of each; none of the first, the control."""
    parameters: Mapped[dict[str, Any]]
    seeds: Mapped[list[Any]]
    steps: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float] = mapped_column(Double)
    max_trials: Mapped[int]
    outcomes: Mapped[list[Any] | None]
    """Written once, when it ends."""
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
    """In the order in which they are started."""
    candidate: Mapped[int]
    seed: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    attempt: Mapped[int]
    """The latest; 0 before the first."""
    lease_expires_at: Mapped[datetime | None]
    reason_to_stop: Mapped[str | None] = mapped_column(Text)
    """Why it is to end early; its worker is told with the next heartbeat."""
    verdict: Mapped[str] = mapped_column(String(16))
    rungs: Mapped[list[Any]]
    curve: Mapped[dict[str, Any] | None]
    seconds: Mapped[float] = mapped_column(Double)


class Attempt(Base):
    """A process that ran, or runs, a trial."""

    __tablename__ = "attempts"
    __table_args__ = (Index(None, "run_id", unique=True),)

    trial_id: Mapped[UUID] = mapped_column(ForeignKey("trials.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[UUID]
    """Of its run, which is there once the script has created it."""
    worker: Mapped[str] = mapped_column(String(NAME_LENGTH))
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    exit_code: Mapped[int | None]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    environment: Mapped[dict[str, Any]]
    key_id: Mapped[UUID | None]
    """Of the key that it streams with; of its ticket while it waits."""
    is_waiting: Mapped[bool | None]
    """Whether its executor has no process for it yet: no time counts, and its ticket is not redeemed."""
    output: Mapped[str] = mapped_column(Text)
    """The end of what it has printed."""
