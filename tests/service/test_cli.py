"""The service's commands."""

from __future__ import annotations

import argparse
import json
import logging
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from tests.support.patience import PATIENCE

from gradmedic_service.access.secrets import is_secret
from gradmedic_service.commands.entry_points import API_KEY, DB, REDIAGNOSE, SERVE
from gradmedic_service.database import schema
from gradmedic_service.http.addresses import is_loopback
from gradmedic_service.settings import Settings

pytestmark = pytest.mark.slow  # services of their own


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Undo what a command that serves does to this process's logging."""
    root = logging.getLogger()
    handlers, level, events = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**events)


def run(command: Any, *arguments: str) -> int:
    """Run a command as the command line would."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    status: int = command.run(parser.parse_args(arguments))
    return status


def test_commands_join_the_command_line() -> None:
    """`gradmedic` finds the commands through their entry points."""
    commands = {entry.name: entry for entry in entry_points(group="gradmedic.commands")}
    assert commands["serve"].load() is SERVE
    assert commands["db"].load() is DB
    assert commands["api-key"].load() is API_KEY
    assert commands["rediagnose"].load() is REDIAGNOSE


def test_importing_the_commands_is_cheap() -> None:
    """`gradmedic --help` does not wait for the service's dependencies."""
    script = (
        "import sys, gradmedic_service.commands.entry_points\n"
        "print(sorted({'fastapi', 'sqlalchemy', 'uvicorn'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_schema_by_hand(empty_database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`db upgrade`, `db current` and `db downgrade` do and say what they do."""
    url = ("--database-url", empty_database_url)
    assert run(DB, "upgrade", *url) == 0
    assert f"revision {schema.head()}, this version needs {schema.head()}" in capsys.readouterr().out
    assert run(DB, "current", *url) == 0
    assert run(DB, "downgrade", "base", *url) == 0
    assert "revision none" in capsys.readouterr().out
    assert schema.current(empty_database_url) is None


def test_looking_creates_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Asking for the revision of a SQLite file that does not exist is an error that names the command to run."""
    path = tmp_path / "none" / "a.db"
    assert run(DB, "current", "--database-url", f"sqlite:///{path}") == 1
    assert "run `gradmedic db upgrade`" in capsys.readouterr().err
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["upgrade", "nonsense"], "nonsense"),
        (["upgrade", "--database-url", "mysql://h/d"], "mysql is not supported"),
        (["current", "--database-url", "postgresql://u:hidden@127.0.0.1:1/d"], "refused"),
    ],
)
def test_bad_schema_commands(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A command that cannot be carried out fails with one line that says why, without a password."""
    monkeypatch.chdir(tmp_path)
    assert run(DB, *arguments) in (1, 2)
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error
    assert "hidden" not in error


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "no.such.host.invalid"])  # noqa: S104 (refused, or asked for)
def test_other_machines_are_refused(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Listening beyond this machine is refused while nobody has a key; the error has the command that makes one."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    assert run(SERVE, "--host", host, "--database-url", url) == 2
    error = capsys.readouterr().err
    command = re.search(r"`gradmedic api-key (.*?)`", error)
    assert command is not None, error
    assert run(API_KEY, *command.group(1).split()) == 0
    assert is_secret(capsys.readouterr().out.strip())


def test_asking_this_machine_too(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--require-auth` loopback is refused as well while nobody has a key."""
    assert run(SERVE, "--require-auth", "--port", "0", "--database-url", sqlite_url) == 2
    assert "`gradmedic api-key create" in capsys.readouterr().err


def test_loopback_addresses() -> None:
    """Every loopback address is one, not only the usual."""
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.9.1", "::1", "10.0.0.1")] == [True, True, True, False]


def test_a_taken_port_is_said_so(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where another program listens, the command fails with one line."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert run(SERVE, "--port", str(port), "--database-url", sqlite_url) == 1
    assert f"cannot listen at 127.0.0.1 port {port}" in capsys.readouterr().err


def test_the_file_of_a_worker_beside_it_must_be_there(
    sqlite_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a worker wanted and without its file the service does not start, and names it."""
    missing = str(tmp_path / "none.toml")
    assert run(SERVE, "--port", "0", "--database-url", sqlite_url, "--with-worker", missing) == 2
    assert f"there is no {missing}" in capsys.readouterr().err


def test_bad_settings_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A variable of the wrong type is named, and nothing starts."""
    monkeypatch.setenv("GRADMEDIC_MAX_LAYERS", "many")
    assert run(SERVE) == 2
    assert "GRADMEDIC_MAX_LAYERS" in capsys.readouterr().err


def test_postgres_is_checked_and_not_migrated(
    empty_database_url: str, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unmigrated PostgreSQL is left alone, and the error has the command that migrates it."""
    if backend == "sqlite":
        return
    assert run(SERVE, "--port", "0", "--database-url", empty_database_url) == 1
    command = re.search(r"`gradmedic (db upgrade .*)`", capsys.readouterr().err)
    assert command is not None
    assert schema.current(empty_database_url) is None
    _, *arguments = command.group(1).split()
    assert run(DB, *arguments) == 0
    assert schema.current(empty_database_url) == schema.head()


def test_serving_from_nothing(serve: Any, tmp_path: Path, create_run: Any) -> None:
    """With a SQLite URL alone the service creates folder and database, serves, and ends well when told to."""
    url = f"sqlite:///{tmp_path}/new/folder/gradmedic.db"
    with serve(url) as served, httpx2.Client(base_url=served.url) as client:
        assert client.get("/readyz").json() == {"status": "ok"}
        path = create_run(client)
        assert client.post(f"{path}/steps", json={"steps": [0], "loss": [1.0]}).status_code == 200
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=PATIENCE) == -signal.SIGTERM
    log = (tmp_path / "serve.log").read_text()
    assert "Application shutdown complete" in log
    assert log.count(f"path={path}/steps") == 1
    assert "Traceback" not in log
    with serve(url) as served, httpx2.Client(base_url=served.url) as client:
        assert client.get(path).json()["last_step"] == 0


def test_serving_the_network(serve: Any, sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Once there is a key the service listens everywhere, and asks everybody for one, this machine too."""
    key = ("create", "--project", "p", "--scope", "ingest", "--database-url", sqlite_url)
    assert run(API_KEY, *key) == 0
    secret = capsys.readouterr().out.strip()
    with serve(sqlite_url, "--host", "0.0.0.0") as served:  # noqa: S104 (asked for)
        port = served.url.rpartition(":")[2]
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            assert client.get("/healthz").status_code == 200
            body = {"project": "p", "layers": []}
            assert client.post("/api/v1/runs", json=body).status_code == 401
            headers = {"Authorization": f"Bearer {secret}"}
            assert client.post("/api/v1/runs", json=body, headers=headers).status_code == 201
        served.process.send_signal(signal.SIGTERM)
        served.process.wait(timeout=PATIENCE)
    assert run(API_KEY, "list", "--json", "--database-url", sqlite_url) == 0
    (listed,) = capsys.readouterr().out.splitlines()
    assert json.loads(listed)["last_used_at"] is not None
    assert secret not in listed


TLS = Path(__file__).parents[1] / "data" / "tls"
CERTIFICATE, CERTIFICATE_KEY = str(TLS / "certificate.pem"), str(TLS / "key.pem")


def test_serving_https(serve: Any, sqlite_url: str) -> None:
    """With a certificate the service speaks HTTPS, says so, and answers nobody who does not."""
    with serve(sqlite_url, "--ssl-certfile", CERTIFICATE, "--ssl-keyfile", CERTIFICATE_KEY) as served:
        assert served.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=CERTIFICATE)
        assert httpx2.get(f"{served.url}/healthz", verify=trusting).status_code == 200
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f"{served.url}/healthz".replace("https", "http"))


def test_bad_certificates_are_said_so(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A certificate that is not there or none, and a key without one, end the command with one line."""
    for given in (CERTIFICATE_KEY, f"{CERTIFICATE}.none"):
        arguments = ["--port", "0", "--database-url", sqlite_url, "--ssl-certfile", given]
        assert run(SERVE, *arguments) == 1
        assert "certificate" in capsys.readouterr().err
    assert run(SERVE, "--ssl-keyfile", CERTIFICATE_KEY, "--database-url", sqlite_url) == 2
    assert capsys.readouterr().err == "gradmedic: ssl_keyfile needs ssl_certfile\n"


@pytest.mark.parametrize("option", ["--behind-proxy", "--require-auth"])
def test_forwarded_headers(option: str, serve: Any, sqlite_url: str, capsys: Any, tmp_path: Path) -> None:
    """Only behind a proxy is a client's address what `X-Forwarded-For` says; keys are needed either way."""
    assert run(API_KEY, "create", "--project", "p", "--scope", "read", "--database-url", sqlite_url) == 0
    secret = capsys.readouterr().out.strip()
    with serve(sqlite_url, option) as served:
        headers = {"Authorization": f"Bearer {secret}", "X-Forwarded-For": "192.0.2.7"}
        assert httpx2.get(f"{served.url}/api/v1/runs", headers=headers).status_code == 200
        assert httpx2.get(f"{served.url}/api/v1/runs", headers={"Host": "any.example"}).status_code == 401
    log = (tmp_path / "serve.log").read_text()
    assert ("192.0.2.7" in log) == (option == "--behind-proxy")


def test_keys_by_hand(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys are made with name and end, listed, found again by what the list shows, and revoked."""
    url = ("--database-url", database_url)
    make = ("create", "--project", "p", "--scope", "ingest", "--scope", "read", "--name", "nightly", "--expires", "30d")
    assert run(API_KEY, *make, "--json", *url) == 0
    made = json.loads(capsys.readouterr().out)
    assert is_secret(made["secret"])
    assert (made["name"], made["scopes"]) == ("nightly", ["ingest", "read"])
    days = (datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)) / timedelta(days=1)
    assert days == pytest.approx(30, abs=0.01)
    assert run(API_KEY, "list", *url) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["KEY", "NAME", "PROJECT"]
    assert row.split()[:4] == [made["prefix"], "nightly", "p", "ingest,read"]
    assert "never" in row
    assert run(API_KEY, "revoke", made["secret"][:-3], *url) == 0
    assert run(API_KEY, "revoke", "nothing", *url) == 1
    assert "no key has" in capsys.readouterr().err
    assert run(API_KEY, "list", "--project", "p", *url) == 0
    assert "revoked" in capsys.readouterr().out
    assert run(API_KEY, "list", "--project", "q", *url) == 0
    assert capsys.readouterr().out == "no keys\n"


def test_the_first_key_from_a_file(empty_database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--from-file` writes a secret that only its owner can read, once; again, it changes nothing; else it refuses."""
    schema.upgrade(empty_database_url)
    file, url = tmp_path / "key", ("--database-url", empty_database_url)
    admin = ("create", "--all-projects", "--scope", "admin", "--from-file", str(file))
    assert run(API_KEY, *admin, *url) == 0
    secret = file.read_text().strip()
    assert is_secret(secret)
    assert file.stat().st_mode & 0o777 == 0o600
    assert run(API_KEY, *admin, *url) == 0
    assert file.read_text().strip() == secret
    shown = capsys.readouterr()
    assert shown.out == ""
    assert secret not in shown.err
    run(API_KEY, "list", "--json", *url)
    assert len(capsys.readouterr().out.splitlines()) == 1
    other = ("create", "--project", "p", "--scope", "read", "--from-file", str(file))
    assert run(API_KEY, *other, *url) == 1
    run(API_KEY, "revoke", secret, *url)
    assert run(API_KEY, *admin, *url) == 1
    assert "was revoked" in capsys.readouterr().err
    file.write_text("password123")
    assert run(API_KEY, *admin, *url) == 1
    assert "password123" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "--scope", "read"], "--project"),
        (["create", "--project", "p"], "--scope"),
        (["create", "--project", "p", "--scope", "root"], "root"),
        (["create", "--project", "p", "--scope", "read", "--expires", "soon"], "30d"),
        (["create", "--project", "p", "--scope", "read", "--expires", "2020-01-01"], "future"),
        (["create", "--project", " ", "--scope", "read"], "project: must not be empty"),
    ],
)
def test_bad_key_commands(
    arguments: list[str], words: str, sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key that cannot be made is refused with what is wrong, and none is made."""
    try:
        status: int | str | None = run(API_KEY, *arguments, "--database-url", sqlite_url)
    except SystemExit as error:
        status = error.code
    assert status in (1, 2)
    assert words in capsys.readouterr().err
    run(API_KEY, "list", "--database-url", sqlite_url)
    assert capsys.readouterr().out == "no keys\n"


def test_defaults_are_loopback() -> None:
    """Without settings the service is this machine's alone, in the working directory."""
    settings = Settings()
    assert is_loopback(settings.host)
    assert settings.database_url.get_secret_value() == "sqlite:///.gradmedic/gradmedic.db"
