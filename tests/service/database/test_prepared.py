"""Prepared statements do what SQLAlchemy's own way does: values, errors, events and transactions."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Table, bindparam, delete, event, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from gradmedic.protocol.ids import new_id
from gradmedic_service.database import models
from gradmedic_service.database.engine import Connection, Database
from gradmedic_service.database.prepared import PreparedStatement

RUNS = cast("Table", models.Run.__table__)
ADD = insert(RUNS)
READ = select(RUNS).where(RUNS.c.id == bindparam("run_id"))
UPDATE = update(RUNS).where(RUNS.c.id == bindparam("run_id"), RUNS.c.revision == bindparam("before"))
ADD_PREPARED, READ_PREPARED, UPDATE_PREPARED = (PreparedStatement(statement) for statement in (ADD, READ, UPDATE))


def new_row(**values: Any) -> dict[str, Any]:
    """Return a row of a run, with a value in each column."""
    now = datetime.now(UTC)
    row = dict.fromkeys(RUNS.c.keys())
    row |= {"id": new_id(), "project": "p", "name": "n", "status": "running", "verdict": "healthy", "score": 0.5}
    row |= {"learning": "unknown", "level": "ok", "generation": 0, "revision": 1, "created_at": now, "updated_at": now}
    row |= {"statistics": ["grad_norm"], "metrics": [], "layer_counts": [2], "facts_digest": b"d"}
    return row | values


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """A writing transaction that is rolled back."""
    with database.writing_rows() as opened:
        yield opened
        opened.rollback()


ROWS = st.fixed_dictionaries(
    {
        "name": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=9),
        "score": st.floats(allow_nan=False),
        "last_step": st.none() | st.integers(-(2**53), 2**53),
        "stalls_at": st.none()
        | st.datetimes(datetime(1971, 1, 1), datetime(9990, 1, 1), timezones=st.just(timezone(timedelta(hours=5)))),
        "metrics": st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")), max_size=3),
        "muted_detectors": st.none() | st.just([]) | st.just(["plateau"]),
        "last_values": st.none() | st.dictionaries(st.sampled_from("abc"), st.floats(allow_nan=False)),
        "progress": st.none() | st.binary(max_size=9),
    }
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(values=ROWS, changed=ROWS)
def test_values_are_those_of_sqlalchemy(connection: Connection, values: Any, changed: Any) -> None:
    """Whatever is stored and read, each of the two ways reads the same from what each of them has written."""
    rows = [new_row(**values), new_row(**values)]
    rows[1] |= {"created_at": rows[0]["created_at"], "updated_at": rows[0]["updated_at"]}
    connection.execute(ADD, rows[0])
    assert ADD_PREPARED.execute(connection, rows[1]) == 1
    for expected in (values, changed):
        found = []
        for row in rows:
            of_sqlalchemy = connection.execute(READ, {"run_id": row["id"]}).one()
            assert READ_PREPARED.fetch_one(connection, {"run_id": row["id"]}) == [*of_sqlalchemy]
            found.append(of_sqlalchemy._asdict() | {"id": None})
        assert found[0] == found[1]
        assert {name: found[1][name] for name in expected} == expected
        connection.execute(UPDATE, {"run_id": rows[0]["id"], "before": 1, **changed})
        assert UPDATE_PREPARED.execute(connection, {"run_id": rows[1]["id"], "before": 1, **changed}) == 1


def test_rows_that_are_not_found(connection: Connection) -> None:
    """An update without a row has changed none, and a query without a row returns None."""
    row = new_row()
    ADD_PREPARED.execute(connection, row)
    assert UPDATE_PREPARED.execute(connection, {"run_id": row["id"], "before": 2, "revision": 3}) == 0
    assert READ_PREPARED.fetch_one(connection, {"run_id": new_id()}) is None
    assert connection.scalar(select(RUNS.c.revision)) == 1


def test_constants_of_a_statement(connection: Connection) -> None:
    """A value that is written in a statement need not be given."""
    row = new_row()
    ADD_PREPARED.execute(connection, row)
    named_p = select(func.coalesce(RUNS.c.group, "none")).where(RUNS.c.project == "p", RUNS.c.id == bindparam("run_id"))
    assert PreparedStatement(named_p).fetch_one(connection, {"run_id": row["id"]}) == ["none"]
    remove = PreparedStatement(delete(RUNS).where(RUNS.c.project == "p"))
    assert [remove.execute(connection, {}), remove.execute(connection, {})] == [1, 0]


def test_a_parameter_that_is_missing(connection: Connection) -> None:
    """A parameter that is not given is an error, as in SQLAlchemy, and not NULL."""
    for execute in (UPDATE_PREPARED.execute, READ_PREPARED.fetch_one):
        with pytest.raises(SQLAlchemyError, match="run_id"):
            execute(connection, {})


def test_an_error_of_a_fetch(database: Database) -> None:
    """An error that comes with the first row is one of SQLAlchemy, too."""
    if database.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL computes all rows before the first one is read")
    failing = PreparedStatement(select(func.gradmedic_fail(RUNS.c.id)).where(RUNS.c.project == bindparam("project")))

    def fail(_value: object) -> None:
        raise ValueError

    with database.writing_rows() as connection:
        connection.connection.dbapi_connection.create_function("gradmedic_fail", 1, fail)  # type: ignore[union-attr]
        ADD_PREPARED.execute(connection, new_row())
        with pytest.raises(OperationalError):
            failing.fetch_one(connection, {"project": "p"})
        connection.rollback()


def test_errors_are_those_of_sqlalchemy(connection: Connection) -> None:
    """A driver's error becomes the error of SQLAlchemy that the service translates."""
    row = new_row()
    savepoint = connection.begin_nested()
    ADD_PREPARED.execute(connection, row)
    with pytest.raises(IntegrityError):
        ADD_PREPARED.execute(connection, row)
    savepoint.rollback()
    assert READ_PREPARED.fetch_one(connection, {"run_id": row["id"]}) is None


def test_a_connection_that_is_lost(database: Database) -> None:
    """A connection that the server has ended is not used again."""
    if database.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has no server")
    with database.reading_rows() as connection:
        own = connection.scalar(text("SELECT pg_backend_pid()"))
        with database.reading_rows() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": own})
        with pytest.raises(OperationalError) as caught:
            READ_PREPARED.fetch_one(connection, {"run_id": new_id()})
        assert caught.value.connection_invalidated
        assert connection.invalidated
    assert database.count_connections()[0] == 0


@pytest.mark.parametrize("place", ["connection", "engine"])
def test_events_are_those_of_sqlalchemy(place: str, connection: Connection) -> None:
    """Who listens to statements, as tools of tracing do, hears of prepared ones, and may change their context."""
    heard: list[tuple[str, str]] = []

    def hear(moment: str) -> Any:
        def listen(_connection: object, _cursor: object, sql: str, _values: object, context: Any, _many: bool) -> None:
            context.span = moment
            heard.append((moment, sql[:6]))

        return listen

    row = new_row()
    target = connection if place == "connection" else connection.engine
    listeners = {moment: hear(moment) for moment in ("before_cursor_execute", "after_cursor_execute")}
    for moment, listener in listeners.items():
        event.listen(target, moment, listener)
    try:
        assert ADD_PREPARED.execute(connection, row) == 1
        found = READ_PREPARED.fetch_one(connection, {"run_id": row["id"]})
    finally:
        for moment, listener in listeners.items():
            event.remove(target, moment, listener)
    assert heard == [(moment, word) for word in ("INSERT", "SELECT") for moment in listeners]
    assert found == tuple(READ_PREPARED.fetch_one(connection, {"run_id": row["id"]}) or ())


def test_a_reading_transaction_sees_one_state(database: Database) -> None:
    """A prepared query begins the transaction, so that later statements see what it saw."""
    row = new_row()
    with database.reading_rows() as reading:
        assert READ_PREPARED.fetch_one(reading, {"run_id": row["id"]}) is None
        with database.writing_rows() as writing:
            ADD_PREPARED.execute(writing, row)
        assert reading.scalar(select(func.count()).select_from(RUNS)) == 0
    with database.reading_rows() as reading:
        assert READ_PREPARED.fetch_one(reading, {"run_id": row["id"]}) is not None
