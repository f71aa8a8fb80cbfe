"""`gradmedic serve`."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from tests.support.commands import run
from tests.support.patience import PATIENCE

import gradmedic
from gradmedic_service.access.secrets import is_secret
from gradmedic_service.commands.api_key import API_KEY
from gradmedic_service.commands.db import DB
from gradmedic_service.commands.serve import SERVE
from gradmedic_service.database import schema

TLS = Path(__file__).parents[2] / "data" / "tls"
CERTIFICATE, CERTIFICATE_KEY = str(TLS / "certificate.pem"), str(TLS / "key.pem")

pytestmark = pytest.mark.slow  # these tests start services as processes of their own


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """Restore this process's logging, which the command sets up anew."""
    root = logging.getLogger()
    handlers, level, events = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**events)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])  # noqa: S104 (refused)
def test_other_machines_need_keys(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without any key the service does not serve other machines; the error has the command that makes one."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    assert run(SERVE, "--host", host, "--port", "0", "--database-url", url) == 2
    error = capsys.readouterr().err
    command = re.search(r"`gradmedic api-key (.*?)`", error)
    assert command is not None, error
    assert run(API_KEY, *command.group(1).split()) == 0
    assert is_secret(capsys.readouterr().out.strip())


def test_required_keys_on_loopback(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--require-auth` and without any key the service does not listen at loopback either."""
    assert run(SERVE, "--require-auth", "--port", "0", "--database-url", sqlite_url) == 2
    assert "`gradmedic api-key create" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "no host"])
def test_an_address_of_another_machine(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An address that this machine does not have ends the command with one line, before there is a database."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    assert run(SERVE, "--host", host, "--port", "0", "--database-url", url) == 1
    assert re.fullmatch(rf"gradmedic: cannot listen at {host} port 0: [^()]+\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 200 OK\r\n\r\n[]", b"HTTP/1.0 404 x\r\n\r\n", b"SSH-2.0-x\r\n"])
def test_a_port_of_another_program(answer: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If another program has the port, the command fails with one line that says so, and creates no database."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer_all() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = other.accept()[0]
                    with connection:
                        connection.recv(1000)
                        connection.sendall(answer)

        threading.Thread(target=answer_all, daemon=True).start()
        port = other.getsockname()[1]
        assert run(SERVE, "--port", str(port), "--database-url", f"sqlite:///{tmp_path / 'a.db'}") == 1
    assert capsys.readouterr().err == (
        f"gradmedic: cannot listen at 127.0.0.1 port {port}. Another program has this port: stop it, or choose another "
        "port with --port.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_service_that_runs_already(
    serve: Any, sqlite_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a service has the port, the error names its address, version, start and database; no second database is made.

    Where API keys are required, it does not name the database. HTTPS makes no difference.
    """
    tls = ("--ssl-certfile", CERTIFICATE, "--ssl-keyfile", CERTIFICATE_KEY)
    key = ("create", "--project", "p", "--scope", "read", "--database-url", sqlite_url)
    assert run(API_KEY, *key) == 0
    for options in ((), (*tls, "--require-auth")):
        with serve(sqlite_url, *options) as served:
            port = served.url.rpartition(":")[2]
            capsys.readouterr()
            assert run(SERVE, "--port", port, "--database-url", f"sqlite:///{tmp_path}/second/a.db") == 1
        named = "" if options else f", database {sqlite_url}"
        assert re.fullmatch(
            rf"gradmedic: cannot listen at 127.0.0.1 port {port}. A gradmedic service answers at {served.url} already: "
            rf"version {gradmedic.__version__}, started \d{{4}}-\d\d-\d\d \d\d:\d\d UTC{re.escape(named)}. Use it, or "
            r"start another one with --port 0.\n",
            capsys.readouterr().err,
        )
    assert not (tmp_path / "second").exists()


def test_a_missing_worker_file(sqlite_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If the worker's file is missing, the service does not start, and the error names the file."""
    missing = str(tmp_path / "none.toml")
    assert run(SERVE, "--port", "0", "--database-url", sqlite_url, "--with-worker", missing) == 2
    assert f"there is no {missing}" in capsys.readouterr().err


def test_an_invalid_setting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """If a variable has the wrong type, the service does not start, and the error names the variable."""
    monkeypatch.setenv("GRADMEDIC_MAX_LAYERS", "many")
    assert run(SERVE) == 2
    assert "GRADMEDIC_MAX_LAYERS" in capsys.readouterr().err


def test_serve_does_not_migrate_postgres(
    empty_database_url: str, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A PostgreSQL database without a schema stays as it is, and the error has the command that migrates it."""
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
    """With only a SQLite URL the service creates folder and database, serves, and ends cleanly on SIGTERM."""
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
    """With a key in the database the service listens at every address, and requires a key from this machine too."""
    key = ("create", "--project", "p", "--scope", "ingest", "--database-url", sqlite_url)
    assert run(API_KEY, *key) == 0
    secret = capsys.readouterr().out.strip()
    with serve(sqlite_url, "--host", "0.0.0.0") as served:  # noqa: S104 (meant)
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


def test_serving_https(serve: Any, sqlite_url: str) -> None:
    """With a certificate the service serves HTTPS, prints an https URL, and does not answer plain HTTP."""
    with serve(sqlite_url, "--ssl-certfile", CERTIFICATE, "--ssl-keyfile", CERTIFICATE_KEY) as served:
        assert served.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=CERTIFICATE)
        assert httpx2.get(f"{served.url}/healthz", verify=trusting).status_code == 200
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f"{served.url}/healthz".replace("https", "http"))


def test_invalid_certificates(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing or invalid certificate, and a private key without a certificate, end the command with one line."""
    for given in (CERTIFICATE_KEY, f"{CERTIFICATE}.none"):
        arguments = ["--port", "0", "--database-url", sqlite_url, "--ssl-certfile", given]
        assert run(SERVE, *arguments) == 1
        assert "certificate" in capsys.readouterr().err
    assert run(SERVE, "--ssl-keyfile", CERTIFICATE_KEY, "--database-url", sqlite_url) == 2
    assert capsys.readouterr().err == "gradmedic: ssl_keyfile needs ssl_certfile\n"


@pytest.mark.parametrize("option", ["--behind-proxy", "--require-auth"])
def test_forwarded_headers(option: str, serve: Any, sqlite_url: str, capsys: Any, tmp_path: Path) -> None:
    """Only with `--behind-proxy` is a client's address read from `X-Forwarded-For`; both options require keys."""
    assert run(API_KEY, "create", "--project", "p", "--scope", "read", "--database-url", sqlite_url) == 0
    secret = capsys.readouterr().out.strip()
    with serve(sqlite_url, option) as served:
        headers = {"Authorization": f"Bearer {secret}", "X-Forwarded-For": "192.0.2.7"}
        assert httpx2.get(f"{served.url}/api/v1/runs", headers=headers).status_code == 200
        assert httpx2.get(f"{served.url}/api/v1/runs", headers={"Host": "any.example"}).status_code == 401
    log = (tmp_path / "serve.log").read_text()
    assert ("192.0.2.7" in log) == (option == "--behind-proxy")
