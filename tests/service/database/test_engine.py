"""Transactions, and answers of the service when its database has trouble."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from starlette.testclient import TestClient

from gradmedic.protocol.ids import new_id
from gradmedic_service.app import create_app
from gradmedic_service.database.engine import Database
from gradmedic_service.database.errors import DatabaseBusy, DatabaseUnavailable
from gradmedic_service.database.models import Run, RunTag
from gradmedic_service.database.urls import is_missing, parse_url, printable_url
from gradmedic_service.services import services_of
from gradmedic_service.settings import Settings

pytestmark = pytest.mark.slow  # services of their own


def file_of(url: str) -> Path:
    """Return the file of a SQLite URL."""
    return Path(url.removeprefix("sqlite:///"))


def test_sqlite_is_durable(sqlite_url: str) -> None:
    """SQLite commits synchronously, to a write-ahead log, and enforces foreign keys."""
    database = Database(Settings(database_url=SecretStr(sqlite_url)))
    with database.reading() as session:
        found = {
            name: session.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    database.close()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_foreign_keys(database: Database) -> None:
    """A row that refers to a run that does not exist cannot be stored."""
    with pytest.raises(IntegrityError), database.writing() as session:
        session.add(RunTag(run_id=new_id(), position=0, tag="a"))


def test_an_error_rolls_back(database: Database, client: TestClient, create_run: Any) -> None:
    """A transaction that raises stores nothing."""
    run = create_run(client)

    def rename_and_fail() -> None:
        with database.writing() as session:
            session.execute(text("UPDATE runs SET name = 'changed'"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        rename_and_fail()
    assert client.get(run).json()["name"] != "changed"


def test_reading_sees_one_snapshot(database: Database, client: TestClient, create_run: Any) -> None:
    """Commits of other transactions do not change what a reading transaction sees."""
    run = create_run(client, name="before")
    with database.reading() as session:
        names = [session.scalar(select(Run.name))]
        client.patch(run, json={"name": "after"})
        names.append(session.scalar(select(Run.name)))
    assert names == ["before", "before"]


def test_sqlite_locked_by_another_process_is_busy(sqlite_url: str, create_run: Any) -> None:
    """While another process holds SQLite's write lock, writes get 503 with Retry-After, and reads work."""
    with TestClient(create_app(Settings(database_url=SecretStr(sqlite_url), database_timeout=0.2))) as client:
        run = create_run(client)
        other = sqlite3.connect(file_of(sqlite_url), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        response = client.post(f"{run}/steps", json={"steps": [0], "loss": [1]})
        assert (response.status_code, response.json()["error_code"]) == (503, "database_busy")
        assert response.headers["retry-after"] == "1"
        assert client.get(run).status_code == 200
        other.execute("ROLLBACK")
        other.close()
        assert client.post(f"{run}/steps", json={"steps": [0], "loss": [1]}).status_code == 200


def test_a_locked_row_is_busy(postgres_url: str, create_run: Any) -> None:
    """On PostgreSQL an append waits for the run's row at most for the timeout; appends to other runs work."""
    settings = Settings(database_url=SecretStr(postgres_url), database_timeout=0.5)
    database = Database(settings)
    with TestClient(create_app(settings)) as client:
        locked, free = create_run(client), create_run(client)
        with database.writing() as session:
            session.execute(text("SELECT 1 FROM runs WHERE id = :id FOR UPDATE"), {"id": locked.rpartition("/")[2]})
            response = client.post(f"{locked}/steps", json={"steps": [0], "loss": [1]})
            assert (response.status_code, response.json()["error_code"]) == (503, "database_busy")
            assert client.post(f"{free}/steps", json={"steps": [0], "loss": [1]}).status_code == 200
        assert client.post(f"{locked}/steps", json={"steps": [0], "loss": [1]}).status_code == 200
    database.close()


def test_writers_of_one_process_take_turns(sqlite_url: str) -> None:
    """A writing transaction that waits too long for another one of its process raises DatabaseBusy."""
    database = Database(Settings(database_url=SecretStr(sqlite_url), database_timeout=0.1))
    raised: list[BaseException] = []

    def write() -> None:
        try:
            with database.writing():
                pass
        except DatabaseBusy as error:
            raised.append(error)

    with database.writing():
        writer = threading.Thread(target=write)
        writer.start()
        writer.join()
    database.close()
    assert len(raised) == 1


def test_a_full_disk(sqlite_url: str, create_run: Any) -> None:
    """While the database cannot grow, an append gets 507 and stores nothing; it works again afterwards."""
    app = create_app(Settings(database_url=SecretStr(sqlite_url), database_pool_size=1))
    with TestClient(app) as client:
        run = create_run(client)
        noise = random.Random(0)
        metrics = {f"m{index}": [noise.random() for _ in range(500)] for index in range(20)}
        body = {"steps": list(range(500)), "metrics": metrics}
        with services_of(app).database.reading() as session:
            pages = session.scalar(text("PRAGMA page_count"))
            session.execute(text(f"PRAGMA max_page_count = {pages}"))
        response = client.post(f"{run}/steps", json=body)
        assert (response.status_code, response.json()["error_code"]) == (507, "storage_full")
        assert client.get(run).json()["last_step"] is None
        with services_of(app).database.reading() as session:
            session.execute(text("PRAGMA max_page_count = 100000"))
        assert client.post(f"{run}/steps", json=body).json()["accepted"] == 500


def test_an_unreachable_database() -> None:
    """Without a database requests and readiness get 503, and the process is alive."""
    settings = Settings(database_url=SecretStr("postgresql://user:hidden@127.0.0.1:1/none"), database_timeout=1)
    with TestClient(create_app(settings)) as client:
        for response in (client.get("/readyz"), client.get("/api/v1/runs")):
            assert (response.status_code, response.json()["error_code"]) == (503, "database_unavailable")
            assert "hidden" not in response.text
        assert client.get("/healthz").status_code == 200


def test_lost_connections_are_replaced(
    postgres_url: str, create_run: Any, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    """After the database has closed every connection, later requests work."""
    settings = Settings(database_url=SecretStr(postgres_url))
    with TestClient(create_app(settings)) as client:
        run = create_run(client)
        database = Database(settings)
        with pytest.raises(DatabaseUnavailable), database.writing() as session:
            session.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()")
            )
        database.close()
        wait_until(lambda: client.get(run).status_code == 200)
        assert client.post(f"{run}/steps", json={"steps": [0], "loss": [1]}).status_code == 200


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://host/name", "mysql is not supported"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("nonsense", "expected sqlite"),
    ],
)
def test_unsupported_urls(url: str, words: str) -> None:
    """An unsupported URL is refused with the supported forms."""
    with pytest.raises(ValueError, match=words):
        parse_url(url)


def test_postgres_urls() -> None:
    """All usual forms of a PostgreSQL URL have one driver, and the password is never printed."""
    for prefix in ("postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"):
        assert parse_url(f"{prefix}://u:hunter2@h/d").drivername == "postgresql+psycopg"
    assert "hunter2" not in printable_url("postgresql://u:hunter2@h/d")
    assert "hunter2" not in repr(Settings(database_url=SecretStr("postgresql://u:hunter2@h/d")))


def test_missing_files(tmp_path: Path) -> None:
    """Checking whether a SQLite file is missing does not create it."""
    path = tmp_path / "a.db"
    assert is_missing(f"sqlite:///{path}")
    assert not path.exists()
    path.touch()
    assert not is_missing(f"sqlite:///{path}")
    assert not is_missing("postgresql://h/d")
