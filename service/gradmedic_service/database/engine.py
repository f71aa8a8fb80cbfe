"""The database: one engine, two kinds of transaction.

One idea: reading sees one snapshot, writing holds the right to write from its first statement and commits once, at its
end. `reading()` and `writing()` give objects; `reading_rows()` and `writing_rows()` take statements over tables alone,
which is cheaper: for what is done with every block. What the driver raises leaves here as an error of the service's
own.

SQLite: write-ahead log, `synchronous=FULL` (an acknowledged step survives a power cut), `BEGIN IMMEDIATE` for writes: a
transaction that first reads and then writes would otherwise fail where another wrote in between. PostgreSQL: row locks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, Engine, create_engine, event, exc, make_url
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from gradmedic_service.database.errors import DatabaseBusy, DatabaseUnavailable, StorageFull
from gradmedic_service.http.responses import to_json
from gradmedic_service.settings import Settings

__all__ = [
    "Connection",
    "Database",
    "Session",
    "create_parent_folder",
    "is_missing",
    "is_sqlite",
    "make_engine",
    "parse_url",
    "printable_url",
    "service_errors",
]

SQLITE_BEGIN = "gradmedic_sqlite_begin"
"""Execution option: the statement that opens a transaction on SQLite."""

POSTGRES_BUSY_STATES = {"55P03", "57014", "40001", "40P01", "53300"}
"""Lock not available, statement timeout, serialization failure, deadlock, too many connections."""
POSTGRES_FULL_STATES = {"53100"}
"""Disk full."""
RETRY_AFTER_SECONDS = 1


class Database:
    """The engine and its transactions; one for each process."""

    def __init__(self, settings: Settings) -> None:
        url = parse_url(settings.database_url.get_secret_value())
        self.engine = make_engine(url, pool_size=settings.database_pool_size, timeout=settings.database_timeout)
        self._timeout = settings.database_timeout
        self._read_engine: Engine
        self._write_engine: Engine
        self._is_sqlite = url.get_backend_name() == "sqlite"
        self._writer = threading.Lock()
        if self._is_sqlite:
            self._read_engine = self.engine
            self._write_engine = self.engine.execution_options(**{SQLITE_BEGIN: "BEGIN IMMEDIATE"})
        else:
            self._read_engine = self.engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            self._write_engine = self.engine

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a transaction that sees one snapshot and changes nothing."""
        with self.reading_rows() as connection, Session(connection, autoflush=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a transaction that commits at the end of the block, or rolls back if the block raises.

        Raises DatabaseBusy where the lock is not to be had in time, StorageFull, DatabaseUnavailable.
        """
        with self.writing_rows() as connection, Session(connection, expire_on_commit=False) as session:
            yield session
            session.flush()

    @contextmanager
    def reading_rows(self) -> Iterator[Connection]:
        """Open the transaction of `reading()` without objects."""
        with service_errors(), self._read_engine.connect() as connection:
            yield connection

    @contextmanager
    def writing_rows(self) -> Iterator[Connection]:
        """Open the transaction of `writing()` without objects."""
        with service_errors(), self._turn_to_write(), self._write_engine.begin() as connection:
            yield connection

    @staticmethod
    @contextmanager
    def objects(connection: Connection) -> Iterator[Session]:
        """Give objects within a transaction of `writing_rows()`."""
        with Session(connection, expire_on_commit=False) as session:
            yield session
            session.flush()

    @contextmanager
    def _turn_to_write(self) -> Iterator[None]:
        """Queue up the writers of this process: SQLite itself only lets them poll, which is slow and unfair."""
        if not self._is_sqlite:
            yield
            return
        if not self._writer.acquire(timeout=self._timeout):
            raise DatabaseBusy("Other writes took too long.", retry_after=RETRY_AFTER_SECONDS)
        try:
            yield
        finally:
            self._writer.release()

    def connections(self) -> tuple[int, int]:
        """Return how many connections are in use, and how many may be."""
        pool = cast("QueuePool", self.engine.pool)
        return pool.checkedout(), pool.size()

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def parse_url(text: str) -> URL:
    """Return the URL with the driver that is used here. Raises ValueError for what is not supported."""
    try:
        url = make_url(text)
    except exc.ArgumentError:
        raise ValueError("the database URL is not one: expected sqlite:///... or postgresql://...") from None
    backend = url.get_backend_name()
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ValueError(f"{backend} is not supported: use sqlite:///... or postgresql://...")
    if url.database in (None, "", ":memory:"):
        raise ValueError("a SQLite database needs a file: sqlite:///path/to/file.db")
    return url.set(drivername="sqlite")


def is_sqlite(text: str) -> bool:
    """Whether the URL is a SQLite file's. Raises ValueError for what is not supported."""
    return parse_url(text).get_backend_name() == "sqlite"


def printable_url(text: str) -> str:
    """Return the URL with its password hidden."""
    return parse_url(text).render_as_string(hide_password=True)


def create_parent_folder(text: str) -> None:
    """Create the folder of a SQLite file."""
    database = parse_url(text).database
    if is_sqlite(text) and database is not None:
        Path(database).parent.mkdir(parents=True, exist_ok=True)


def is_missing(text: str) -> bool:
    """Whether the URL is that of a SQLite file that does not exist; connecting would create it."""
    database = parse_url(text).database
    return is_sqlite(text) and database is not None and not Path(database).exists()


def make_engine(url: URL, *, pool_size: int = 1, timeout: float = 15.0, foreign_keys: bool = True) -> Engine:
    """Return an engine set up for its backend; `foreign_keys=False` is for migrations that rebuild SQLite tables."""
    options: dict[str, Any] = {
        "pool_size": pool_size,
        "max_overflow": 0,
        "pool_timeout": timeout,
        "json_serializer": to_json,
    }
    milliseconds = int(timeout * 1000)
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, **options)

        @event.listens_for(engine, "connect")
        def set_up(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # transactions are begun below, not guessed by the driver
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout={milliseconds}")
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
            cursor.close()

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql(connection.get_execution_options().get(SQLITE_BEGIN, "BEGIN"))

        return engine
    return create_engine(
        url,
        pool_pre_ping=True,
        connect_args={"connect_timeout": max(2, int(timeout)), "options": f"-c lock_timeout={milliseconds}"},
        **options,
    )


@contextmanager
def service_errors() -> Iterator[None]:
    """Turn what the database raises into the service's errors; what is a bug of ours passes."""
    try:
        yield
    except exc.TimeoutError as error:
        raise DatabaseBusy("No connection became free in time.", retry_after=RETRY_AFTER_SECONDS) from error
    except exc.DBAPIError as error:
        raise _translate(error) from error


def _translate(error: exc.DBAPIError) -> Exception:
    text = str(error.orig)
    state = getattr(error.orig, "sqlstate", None)
    if state in POSTGRES_FULL_STATES or "disk is full" in text:
        return StorageFull("The database's disk is full; nothing of this request was stored.")
    if state in POSTGRES_BUSY_STATES or "database is locked" in text:
        return DatabaseBusy("Another transaction took too long.", retry_after=RETRY_AFTER_SECONDS)
    if error.connection_invalidated or isinstance(error, exc.OperationalError | exc.InterfaceError):
        return DatabaseUnavailable("The database cannot be used now.", retry_after=RETRY_AFTER_SECONDS)
    return error
