"""Databases for the tests: every test of the data layer runs on SQLite and on PostgreSQL.

PostgreSQL is a real server: `GRADMEDIC_TEST_POSTGRES_URL` names one. Without it, a server is started once for each test
process. The migrations make the schema, once.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import hypothesis
import pytest
from httpx2._config import DEFAULT_TIMEOUT_CONFIG
from tests.support.databases import LentDatabases
from tests.support.patience import PATIENCE
from tests.support.postgres import PostgresServer
from tests.support.services import Serve, run_service

from gradmedic_service.database import schema

POSTGRES_VARIABLE = "GRADMEDIC_TEST_POSTGRES_URL"

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: its threads would wait for each other busily

hypothesis.settings.register_profile(
    "suite",
    deadline=None,  # a busy machine exceeds the default of 200 milliseconds an example
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=True,  # a failure must be repeatable, and a pass must not depend on chance
)
hypothesis.settings.load_profile("suite")


@pytest.hookimpl(trylast=True)  # after the hooks that mark tests as slow
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the slow tests where several processes share the suite, so that none runs alone at the end.

    Tests of a group share what is expensive, or would disturb each other. A release of pytest that xdist does not know
    ran them side by side, and said nothing.
    """
    if not hasattr(config, "workerinput"):
        return
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        group = item.get_closest_marker("xdist_group")
        if config.option.loadgroup and group is not None and not item.nodeid.endswith(f"@{group.args[0]}"):
            raise pytest.UsageError(f"pytest-xdist does not know the group {group.args[0]!r} of {item.nodeid}")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect no garbage while tests are collected: what they import stays. Leave it out of later collections."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let processes of tests receive interrupts: a shell that starts the suite in the background disables them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the database of the user who runs the tests out of them: the default one is in the user's folder of data."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _patient_requests() -> None:
    """Wait for the answers of a slow machine. The library's default is five seconds."""
    for kind in ("connect", "read", "write", "pool"):
        setattr(DEFAULT_TIMEOUT_CONFIG, kind, PATIENCE)


@pytest.fixture(scope="session")
def postgres() -> Iterator[LentDatabases]:
    """A PostgreSQL server's databases."""
    given = os.environ.get(POSTGRES_VARIABLE)
    if given:
        databases = LentDatabases(given.rpartition("/")[0] if given.count("/") > 2 else given)
        yield databases
        databases.drop_spare()
        return
    with tempfile.TemporaryDirectory(prefix="gradmedic-postgres-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder), is_durable=False)
        server.start()
        yield LentDatabases(server.base_url)
        server.stop()


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
def postgres_url(postgres: LentDatabases) -> Iterator[str]:
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
    server: LentDatabases = request.getfixturevalue("postgres")
    name = server.create()
    yield server.url(name)
    server.drop(name)


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A migrated PostgreSQL server that only this test uses."""
    with tempfile.TemporaryDirectory(prefix="gradmedic-faults-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder))
        try:
            server.start()
            schema.upgrade(server.url)
            yield server
        finally:
            server.stop(signal.SIGINT)


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Run a service in the test's folder."""
    return partial(run_service, tmp_path)


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Wait for a condition, and fail if it does not come true within minutes."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            time.sleep(0.02)

    return wait
