"""The bounds of connections, at real servers: deadlines, number, and what is closed to make room."""

from __future__ import annotations

import json
import resource
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from tests.support.api_keys import create_secret
from tests.support.patience import PATIENCE, START_SECONDS
from tests.support.raw_requests import connect, read_status, read_to_end, request_head

RUNS = "/api/v1/runs"
TLS = Path(__file__).parents[2] / "data" / "tls"
WITH_TLS = ("--ssl-certfile", str(TLS / "certificate.pem"), "--ssl-keyfile", str(TLS / "key.pem"))
SHORT = "0.5"
"""A deadline that passes soon."""
LONG = str(PATIENCE)
"""A deadline that does not pass."""
ATTACKER = "127.0.0.2"

pytestmark = pytest.mark.slow  # services of their own

Waiting = Callable[[Callable[[], bool]], None]


@pytest.fixture
def log(tmp_path: Path) -> Callable[[], str]:
    """Return what a service in the test's folder has logged."""
    return (tmp_path / "serve.log").read_text


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_headers_have_a_deadline(
    scheme: str, serve: Any, sqlite_url: str, log: Callable[[], str], wait_until: Waiting
) -> None:
    """A connection that sends no request, or a part of its headers, is closed; the log names its address."""
    trusting = ssl.create_default_context(cafile=TLS / "certificate.pem") if scheme == "https" else None
    options = () if trusting is None else WITH_TLS
    with serve(sqlite_url, *options, GRADMEDIC_HEADER_TIMEOUT=SHORT) as served:
        for sent in (b"", b"\r\n", b"GET /heal", request_head("GET", "/healthz")[:-2]):
            with connect(served.url, trusting, source=ATTACKER) as connection:
                connection.sendall(sent)
                assert read_to_end(connection) == b"", sent
        wait_until(lambda: f"address={ATTACKER}" in log() and "no headers of a request arrived" in log())


def test_the_tls_handshake_has_a_deadline(serve: Any, sqlite_url: str) -> None:
    """A connection that never begins TLS is closed."""
    with serve(sqlite_url, *WITH_TLS, GRADMEDIC_HEADER_TIMEOUT=SHORT) as served, connect(served.url) as connection:
        assert read_to_end(connection) == b""


def test_a_later_request_has_a_deadline(serve: Any, sqlite_url: str) -> None:
    """On a connection that stays open the deadline begins anew with each request, and not before its first byte."""
    with serve(sqlite_url, GRADMEDIC_HEADER_TIMEOUT="3") as served, connect(served.url) as connection:
        connection.sendall(request_head("GET", "/healthz"))
        assert read_status(connection) == 200
        connection.settimeout(5)  # longer than the deadline
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(PATIENCE)
        connection.sendall(request_head("GET", "/healthz"))
        assert read_status(connection) == 200
        connection.sendall(b"GET")
        assert read_to_end(connection) == b""


@pytest.mark.parametrize("has_key", [True, False])
def test_a_whole_request_has_a_deadline(has_key: bool, serve: Any, sqlite_url: str) -> None:
    """A body that does not arrive gets 408 with a key, 401 without one, and the connection is closed."""
    secret = create_secret(sqlite_url, "ingest")
    headers = {"Content-Length": 100, "Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {secret}"} if has_key else {}
    with (
        serve(sqlite_url, "--require-auth", GRADMEDIC_REQUEST_TIMEOUT=SHORT) as served,
        connect(served.url) as connection,
    ):
        connection.sendall(request_head("POST", RUNS, headers) + b"{")
        assert read_to_end(connection).startswith(b"HTTP/1.1 408 " if has_key else b"HTTP/1.1 401 ")


def test_headers_are_bounded(serve: Any, sqlite_url: str) -> None:
    """Headers without an end are not collected: the connection is closed."""
    with serve(sqlite_url) as served, connect(served.url) as connection:
        connection.sendall(request_head("GET", "/healthz")[:-2])
        endless = b"".join(f"X-{number}: {'x' * 1000}\r\n".encode() for number in range(10_000))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(endless)
        assert httpx2.get(f"{served.url}/healthz").status_code == 200


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_silent_connections_push_out_themselves(
    scheme: str, serve: Any, sqlite_url: str, log: Callable[[], str], wait_until: Waiting
) -> None:
    """Silent connections, more than a process keeps, close neither others nor the way in for their own address."""
    trusting = ssl.create_default_context(cafile=TLS / "certificate.pem") if scheme == "https" else None
    options = () if trusting is None else WITH_TLS
    limits = {"GRADMEDIC_MAX_CONNECTIONS": "40", "GRADMEDIC_HEADER_TIMEOUT": LONG}
    with serve(sqlite_url, *options, **limits) as served, ExitStack() as silent:
        honest = [silent.enter_context(connect(served.url, trusting, source=name)) for name in ("127.0.0.1", ATTACKER)]
        for connection in honest:
            connection.sendall(request_head("GET", RUNS))
            assert read_status(connection) == 200
        for _ in range(200):
            silent.enter_context(connect(served.url, source=ATTACKER))
        for connection in honest:
            connection.sendall(request_head("GET", RUNS))
            assert read_status(connection) == 200
        for source in ("127.0.0.1", ATTACKER):
            with connect(served.url, trusting, source=source) as connection:
                connection.sendall(request_head("GET", RUNS))
                assert read_status(connection) == 200
        wait_until(lambda: f"address={ATTACKER}" in log())
        assert "address=127.0.0.1" not in log()
        assert psutil.Process(served.process.pid).num_fds() < 150


def test_connections_of_one_address_are_bounded(
    serve: Any, sqlite_url: str, log: Callable[[], str], wait_until: Waiting
) -> None:
    """One address keeps a bounded number of connections without an authenticated request, and any number with one."""
    limits = {"GRADMEDIC_MAX_CONNECTIONS_PER_ADDRESS": "10", "GRADMEDIC_HEADER_TIMEOUT": LONG}
    with serve(sqlite_url, **limits) as served, ExitStack() as opened:
        authenticated = []
        for _ in range(30):
            authenticated.append(opened.enter_context(connect(served.url)))
            authenticated[-1].sendall(request_head("GET", RUNS))
            assert read_status(authenticated[-1]) == 200
        silent = [opened.enter_context(connect(served.url)) for _ in range(30)]
        wait_until(lambda: "too many connections of its address" in log())
        for connection in authenticated:
            connection.sendall(request_head("GET", RUNS))
            assert read_status(connection) == 200
        assert read_to_end(silent[0]) == b""


def test_a_proxy_may_have_any_number_of_connections(serve: Any, sqlite_url: str) -> None:
    """The bound of an address does not hold for a trusted proxy, whose connections belong to many clients."""
    create_secret(sqlite_url, "read")
    limits = {"GRADMEDIC_MAX_CONNECTIONS_PER_ADDRESS": "2", "GRADMEDIC_HEADER_TIMEOUT": LONG}
    with serve(sqlite_url, "--behind-proxy", **limits) as served, ExitStack() as opened:
        connections = [opened.enter_context(connect(served.url)) for _ in range(20)]
        for connection in connections:
            connection.sendall(request_head("GET", "/healthz"))
            assert read_status(connection) == 200


def test_a_process_without_files_goes_on(
    serve: Any, sqlite_url: str, log: Callable[[], str], wait_until: Waiting
) -> None:
    """Where the operating system allows no further file, silent connections are closed and others are served."""
    with serve(sqlite_url, GRADMEDIC_HEADER_TIMEOUT=LONG) as served, ExitStack() as silent:
        assert httpx2.get(f"{served.url}{RUNS}").status_code == 200
        files = psutil.Process(served.process.pid).num_fds() + 20
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (files, files))
        for _ in range(60):
            silent.enter_context(connect(served.url, source=ATTACKER))
        wait_until(lambda: "no connection can be accepted" in log())
        assert httpx2.get(f"{served.url}/healthz").status_code == 200


def test_connections_fit_into_the_limit_of_files() -> None:
    """The limit of open files is raised as far as possible, and connections leave files to the rest of the process."""
    program = (
        "import json, resource, sys; from gradmedic_service.http.listener import bound_by_files; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, int(sys.argv[1]))); "
        "print(json.dumps([bound_by_files(1000), resource.getrlimit(resource.RLIMIT_NOFILE)[0]]))"
    )
    for hard, expected in ((2000, [1000, 1256]), (1000, [744, 1000]), (100, [50, 100])):
        done = subprocess.run(
            [sys.executable, "-c", program, str(hard)],
            capture_output=True,
            text=True,
            check=True,
            timeout=START_SECONDS,
        )
        assert json.loads(done.stdout.splitlines()[-1]) == expected


@pytest.mark.parametrize("options", [(), WITH_TLS])
def test_the_end_of_a_service_waits_for_no_silent_connection(options: Any, serve: Any, sqlite_url: str) -> None:
    """A service ends at once, although silent connections and unfinished handshakes are open."""
    with serve(sqlite_url, *options, GRADMEDIC_SHUTDOWN_TIMEOUT=LONG) as served, connect(served.url) as silent:
        with connect(served.url) as other:
            other.sendall(b"GET")
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(timeout=START_SECONDS) == -signal.SIGTERM
        assert read_to_end(silent) == b""


def test_requests_in_one_packet(serve: Any, sqlite_url: str) -> None:
    """Requests that arrive together, also in the middle of one, are answered in order."""
    with serve(sqlite_url, GRADMEDIC_HEADER_TIMEOUT=LONG) as served, connect(served.url) as connection:
        requests = request_head("GET", "/healthz") * 3 + request_head("GET", "/healthz", {"Connection": "close"})
        connection.sendall(requests[:-10])
        connection.sendall(requests[-10:])
        assert read_to_end(connection).count(b"HTTP/1.1 200 OK") == 4
