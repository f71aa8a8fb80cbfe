"""The database: one engine and two kinds of transaction.

A reading transaction sees one snapshot. A writing transaction may write from its first statement on, and commits once,
at its end. `reading()` and `writing()` yield a session, which maps rows to objects. `reading_rows()` and
`writing_rows()` yield a connection for statements over tables, which costs less; appending a block uses them. Errors of
the driver become errors of `database.errors`.

SQLite runs with a write-ahead log and `synchronous=FULL`, so that an acknowledged step survives a power cut. Writing
transactions begin with `BEGIN IMMEDIATE`: a transaction that reads first and then writes would fail if another one
wrote in between. PostgreSQL uses row locks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from gradmedic.protocol.encoding import encode_json
from gradmedic_service.database.errors import DatabaseBusy, DatabaseUnavailable, StorageFull
from gradmedic_service.database.private_files import create_private_file
from gradmedic_service.database.urls import parse_url
from gradmedic_service.database.write_turns import RETRY_AFTER_SECONDS, WriteTurns
from gradmedic_service.settings import Settings

__all__ = ["SQLITE_BEGIN", "Connection", "Database", "Session", "make_engine", "translating_errors"]

SQLITE_BEGIN = "gradmedic_sqlite_begin"
"""Name of the execution option that holds the statement which begins a transaction on SQLite."""

POSTGRES_BUSY_STATES = {"55P03", "57014", "40001", "40P01", "53300"}
"""SQLSTATE of: lock not available, statement timeout, serialization failure, deadlock, too many connections."""
POSTGRES_FULL_STATES = {"53100"}
"""SQLSTATE of: disk full."""
POSTGRES_INTERNAL_STATE = "XX000"
"""SQLSTATE of errors of the operating system that have none of their own, such as a file that has become too large."""
POSTGRES_GROWING_FUNCTIONS = {"mdextend", "mdzeroextend"}
"""Functions of PostgreSQL that make a table's file longer. Their names, unlike messages, are in no language."""
SQLITE_FULL_ERRORS = {"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE"}
"""SQLite's errors where a file cannot become longer. Only a full disk is `SQLITE_FULL`: a limit of the size of a file
(`ulimit -f`) and a quota are errors of the write."""


class Database:
    """The engine of a process, and its transactions."""

    def __init__(self, settings: Settings) -> None:
        url = parse_url(settings.database_url.get_secret_value())
        self.engine = make_engine(url, pool_size=settings.database_pool_size, timeout=settings.database_timeout)
        self._read_engine: Engine
        self._write_engine: Engine
        self._write_turns: WriteTurns | None = None
        """The turns of the writers on SQLite. PostgreSQL has a lock for each row, and shares the waits of commits."""
        if url.get_backend_name() == "sqlite":
            self._read_engine = self.engine
            self._write_engine = self.engine.execution_options(**{SQLITE_BEGIN: "BEGIN IMMEDIATE"})
            self._write_turns = WriteTurns(self._write_engine, settings.database_timeout)
        else:
            self._read_engine = self.engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            self._write_engine = self.engine

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a reading transaction and yield its session."""
        with self.reading_rows() as connection, Session(connection, autoflush=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a writing transaction and yield its session. It commits at the end, or rolls back if the block raises.

        Raises DatabaseBusy if the lock does not become free in time, StorageFull, DatabaseUnavailable.
        """
        with self.writing_rows() as connection, Session(connection, expire_on_commit=False) as session:
            yield session
            session.flush()

    @contextmanager
    def reading_rows(self) -> Iterator[Connection]:
        """Open a reading transaction and yield its connection."""
        with translating_errors(), self._read_engine.connect() as connection:
            yield connection

    @contextmanager
    def writing_rows(self, *, shares_commit: bool = False) -> Iterator[Connection]:
        """Open a writing transaction and yield its connection. It commits, rolls back and raises as `writing()`.

        With `shares_commit`, it may be committed together with others of this process: for many short transactions at
        once. An error of one of them does not undo the others.
        """
        with translating_errors():
            if self._write_turns is None:
                with self._write_engine.begin() as connection:
                    yield connection
            else:
                with self._write_turns.write(shares_commit=shares_commit) as connection:
                    yield connection

    def count_connections(self) -> tuple[int, int]:
        """Return the number of connections in use, and the largest number that the pool opens."""
        pool = cast("QueuePool", self.engine.pool)
        return pool.checkedout(), pool.size()

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def make_engine(url: URL, *, pool_size: int = 1, timeout: float = 15.0, foreign_keys: bool = True) -> Engine:
    """Return an engine with the options of its backend.

    Args:
        url: the parsed URL.
        pool_size: largest number of connections.
        timeout: seconds to wait for a connection or a lock.
        foreign_keys: whether SQLite enforces foreign keys; False for migrations, which rebuild tables.
    """
    options: dict[str, Any] = {
        "pool_size": pool_size,
        "max_overflow": 0,
        "pool_timeout": timeout,
        "json_serializer": lambda value: encode_json(value).decode(),
    }
    milliseconds = int(timeout * 1000)
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, **options)

        @event.listens_for(engine, "do_connect")
        def create_file(_dialect: Any, _record: Any, arguments: list[str], parameters: dict[str, Any]) -> None:
            if not parameters.get("uri"):
                with suppress(OSError):  # SQLite fails for the same reason, with an error that is translated
                    create_private_file(Path(arguments[0]))  # SQLite gives the files beside it the same mode

        @event.listens_for(engine, "connect")
        def set_up(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # `begin` below begins transactions, not the driver
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout={milliseconds}")
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
            cursor.close()

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            statement = connection.get_execution_options().get(SQLITE_BEGIN, "BEGIN")
            try:  # by the driver alone: SQLAlchemy's way to it takes ten times as long
                cast("sqlite3.Connection", connection.connection.dbapi_connection).execute(statement)
            except sqlite3.OperationalError as error:
                raise exc.OperationalError(statement, None, error) from error

        return engine
    return create_engine(
        url,
        pool_pre_ping=True,
        connect_args={"connect_timeout": max(2, int(timeout)), "options": f"-c lock_timeout={milliseconds}"},
        **options,
    )


@contextmanager
def translating_errors() -> Iterator[None]:
    """Raise the database's errors as errors of the service; errors that show a bug pass unchanged."""
    try:
        yield
    except exc.TimeoutError as error:
        raise DatabaseBusy("No connection became free in time.", retry_after=RETRY_AFTER_SECONDS) from error
    except exc.DBAPIError as error:
        raise _translate(error) from error


def _translate(error: exc.DBAPIError) -> Exception:
    text = str(error.orig)
    state = getattr(error.orig, "sqlstate", None)
    if _cannot_grow(error.orig, state):
        return StorageFull(
            "The database cannot grow: its disk is full, or a file has reached a limit of its size or a quota. Nothing "
            "of this request was stored."
        )
    if state in POSTGRES_BUSY_STATES or "database is locked" in text:
        return DatabaseBusy("Another transaction took too long.", retry_after=RETRY_AFTER_SECONDS)
    if error.connection_invalidated or isinstance(error, exc.OperationalError | exc.InterfaceError):
        return DatabaseUnavailable("The database cannot be used now.", retry_after=RETRY_AFTER_SECONDS)
    return error


def _cannot_grow(error: Any, state: str | None) -> bool:
    """Whether a driver's error means that the database's files cannot become larger."""
    if getattr(error, "sqlite_errorname", None) in SQLITE_FULL_ERRORS or state in POSTGRES_FULL_STATES:
        return True
    return state == POSTGRES_INTERNAL_STATE and error.diag.source_function in POSTGRES_GROWING_FUNCTIONS
