"""Writers that share a commit on SQLite: none goes on before it is durable; an error of one undoes its part alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from gradmedic_service.database import write_turns
from gradmedic_service.database.engine import Connection, Database
from gradmedic_service.database.errors import DatabaseBusy, DatabaseUnavailable, StorageFull
from gradmedic_service.settings import Settings

WaitUntil = Callable[[Callable[[], bool]], None]


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    """A SQLite database with a table of names."""
    database = Database(Settings(database_url=SecretStr(sqlite_url)))
    with database.writing_rows() as connection:
        connection.execute(text("CREATE TABLE names (name TEXT)"))
    yield database
    database.close()


@pytest.fixture
def commits(database: Database) -> list[object]:
    """The commits so far."""
    found: list[object] = []
    event.listen(database.engine, "commit", found.append)
    return found


def add_name(connection: Connection, name: str) -> None:
    """Write a row."""
    connection.execute(text("INSERT INTO names VALUES (:name)"), {"name": name})


def read_names(database: Database) -> list[str]:
    """Return the names that are stored."""
    with database.reading_rows() as connection:
        return sorted(connection.scalars(text("SELECT name FROM names")))


class Writer(threading.Thread):
    """A thread that writes its name, and may do something else before its part is complete."""

    def __init__(
        self, database: Database, name: str, act: Callable[[Connection], Any] = lambda _: None, *, shares: bool = True
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.error: BaseException | None = None
        self._database, self._act, self._shares = database, act, shares

    def run(self) -> None:
        """Write."""
        try:
            with self._database.writing_rows(shares_commit=self._shares) as connection:
                add_name(connection, self.name)
                self._act(connection)
        except BaseException as error:
            self.error = error


def write_together(database: Database, wait_until: WaitUntil, writers: list[Writer]) -> None:
    """Start the writers one by one while a first one named "first" has the turn; wait until all have ended."""
    turns = database._write_turns
    assert turns is not None

    def start_writers(_connection: Connection) -> None:
        for count, writer in enumerate(writers, start=1):
            writer.start()
            wait_until(lambda count=count: turns._waiting == count)  # type: ignore[misc]  # a default binds the count

    first = Writer(database, "first", start_writers)
    writers_and_first = [first, *writers]
    first.start()
    for writer in writers_and_first:
        wait_until(lambda writer=writer: writer.ident is not None and not writer.is_alive())  # type: ignore[misc]
    assert first.error is None


def test_waiting_writers_share_a_commit(database: Database, commits: list[object], wait_until: WaitUntil) -> None:
    """Writers that wait for their turn are committed together with the one that has it."""
    write_together(database, wait_until, [Writer(database, name) for name in "abc"])
    assert read_names(database) == ["a", "b", "c", "first"]
    assert len(commits) == 1


def test_a_commit_has_a_largest_number_of_parts(
    database: Database, commits: list[object], wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More writers than `MAX_PARTS` need another commit."""
    monkeypatch.setattr(write_turns, "MAX_PARTS", 2)
    write_together(database, wait_until, [Writer(database, name) for name in "abc"])
    assert read_names(database) == ["a", "b", "c", "first"]
    assert len(commits) == 2


def test_an_error_undoes_its_own_part(database: Database, commits: list[object], wait_until: WaitUntil) -> None:
    """A writer that fails stores nothing, and those before and after it are stored."""

    def fail(_connection: Connection) -> None:
        raise LookupError

    failing = [Writer(database, name, fail) for name in ("bad", "worse")]
    good = [Writer(database, name) for name in "ab"]
    write_together(database, wait_until, [failing[0], good[0], good[1], failing[1]])
    assert read_names(database) == ["a", "b", "first"]
    assert [type(writer.error) for writer in failing] == [LookupError] * 2
    assert [writer.error for writer in good] == [None] * 2
    assert len(commits) == 1


def test_no_writer_goes_on_before_the_commit(database: Database, wait_until: WaitUntil) -> None:
    """While a later writer of the same commit computes, the earlier one waits, and no reader sees its row."""
    seen: list[tuple[bool, list[str]]] = []
    writers: list[Writer] = []

    def look(_connection: Connection) -> None:
        seen.append((writers[0].is_alive(), read_names(database)))

    writers = [Writer(database, "a"), Writer(database, "b", look)]
    write_together(database, wait_until, writers)
    assert seen == [(True, [])]
    assert read_names(database) == ["a", "b", "first"]


def test_a_failed_commit_fails_for_all(
    database: Database, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the shared commit fails, every writer of it gets the error, and nothing is stored."""

    def fail(_connection: object) -> None:
        raise OperationalError("COMMIT", None, OSError("no disk"))

    writers = [Writer(database, name) for name in "ab"]

    def break_commits(_connection: Connection) -> None:
        event.listen(database.engine, "commit", fail)

    last = Writer(database, "c", break_commits)
    with pytest.raises(AssertionError):  # the first writer fails, too
        write_together(database, wait_until, [*writers, last])
    event.remove(database.engine, "commit", fail)
    assert [type(writer.error) for writer in (*writers, last)] == [DatabaseUnavailable] * 3
    assert read_names(database) == []
    with database.writing_rows() as connection:  # the next transaction is not concerned
        add_name(connection, "later")
    assert read_names(database) == ["later"]


def test_a_transaction_that_sqlite_rolls_back_fails_for_all(database: Database, wait_until: WaitUntil) -> None:
    """Where an error of one writer makes SQLite roll back the whole transaction, no writer of it is told otherwise."""

    def lose_all(connection: Connection) -> None:
        connection.execute(text("ROLLBACK"))
        raise LookupError

    writers = [Writer(database, "a"), Writer(database, "bad", lose_all), Writer(database, "later")]
    with pytest.raises(AssertionError):  # the first writer fails, too
        write_together(database, wait_until, writers)
    assert [type(writer.error) for writer in writers] == [DatabaseUnavailable, LookupError, type(None)]
    assert read_names(database) == ["later"]


def test_a_full_disk_is_the_reason_for_all(database: Database, wait_until: WaitUntil) -> None:
    """Where SQLite rolls back the whole transaction because the disk is full, every writer of it hears that."""

    def fill(connection: Connection) -> None:
        pages = connection.scalar(text("PRAGMA page_count"))
        connection.execute(text(f"PRAGMA max_page_count = {pages}"))
        add_name(connection, "x" * 2**20)

    writers = [Writer(database, "a"), Writer(database, "full", fill)]
    with pytest.raises(AssertionError):  # the first writer fails, too
        write_together(database, wait_until, writers)
    assert [type(writer.error) for writer in writers] == [StorageFull] * 2
    assert read_names(database) == []


def test_other_writers_share_nothing(database: Database, commits: list[object], wait_until: WaitUntil) -> None:
    """A writer that does not share its commit ends the open one first; its error undoes no other."""

    def fail(_connection: Connection) -> None:
        raise LookupError

    alone = Writer(database, "alone", fail, shares=False)
    write_together(database, wait_until, [Writer(database, "a"), alone, Writer(database, "b")])
    assert read_names(database) == ["a", "b", "first"]
    assert isinstance(alone.error, LookupError)
    assert len(commits) == 2


def test_a_writer_that_gives_up_leaves_no_open_transaction(sqlite_url: str, wait_until: WaitUntil) -> None:
    """If the only waiting writer runs out of time, the one that has the turn commits by itself."""
    database = Database(Settings(database_url=SecretStr(sqlite_url), database_timeout=0.05))
    with database.writing_rows() as connection:
        connection.execute(text("CREATE TABLE names (name TEXT)"))
    late = Writer(database, "late")

    def wait_for_late(_connection: Connection) -> None:
        late.start()
        wait_until(lambda: not late.is_alive())

    Writer(database, "first", wait_for_late).run()
    assert isinstance(late.error, DatabaseBusy)
    assert read_names(database) == ["first"]
    database.close()
