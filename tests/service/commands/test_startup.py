"""What each command imports before it talks to anything: this decides how soon it starts.

`make bench-start` measures the CPU time. These tests need no clock: they list the packages that take long to import and
that a command must not need yet.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

SERVICE = {"fastapi", "uvicorn", "alembic", "markdown_it", "gradmedic_diagnosis"}
HEAVY = SERVICE | {"numpy", "pydantic", "sqlalchemy", "torch", "ray", "urllib3"}
METADATA = {"importlib.metadata"}
"""Reading the entry points of every installed distribution takes longer than the start of a command of the client."""

COMMAND = """
import sys
try:
    from gradmedic.cli.main import main
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
"""
REPORT = """
import json
print()
print(json.dumps([code, sorted(sys.modules)]))
"""


def modules_after(script: str, *arguments: str) -> tuple[int, set[str]]:
    """Return `code` of a script, run by a fresh interpreter, and the names of the modules that it has imported."""
    command = [sys.executable, "-c", script + REPORT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    return code, set(modules)


def test_the_version_needs_nothing() -> None:
    """`gradmedic --version` imports no library, nor the entry points, nor the rest of the client."""
    code, modules = modules_after(COMMAND, "--version")
    assert code == 0
    assert modules & (HEAVY | METADATA | {"msgspec", "inspect", "gradmedic.exceptions", "gradmedic.api"}) == set()


@pytest.mark.parametrize("command", ["diagnose x", "rerun x", "review x right", "runs", "sync"])
def test_commands_of_the_client_start_light(command: str) -> None:
    """A command of the client needs neither numpy nor a library of HTTP before it sends its first request."""
    code, modules = modules_after(COMMAND, *command.split(), "--base-url", "nonsense")
    assert code == 2
    assert modules & (HEAVY | METADATA) == set()


@pytest.mark.parametrize("command", ["", "serve", "db", "api-key", "rediagnose", "worker", "demo"])
def test_help_is_light(command: str) -> None:
    """The help of all commands, and that of each command of the service and the worker, needs no library of theirs."""
    code, modules = modules_after(COMMAND, *command.split(), "--help")
    assert code == 0
    assert modules & HEAVY == set()


def test_serve_takes_its_port_first() -> None:
    """`gradmedic serve` fails at a port in use before it imports the service, the migrations or the diagnosis."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        code, modules = modules_after(COMMAND, "serve", "--port", str(taken.getsockname()[1]))
    assert code == 1
    assert modules & (SERVICE | {"numpy"}) == set()


def test_a_service_that_is_up_to_date_needs_no_migrations(sqlite_url: str) -> None:
    """A service whose database is at the last revision imports neither Alembic nor what renders Markdown."""
    script = """
import sys
from gradmedic_service.commands.options import prepare_database, read_settings
settings = read_settings(database_url=sys.argv[1])
prepare_database(settings)
from gradmedic_service.server import create_app
code = len(create_app(settings).routes)
"""
    routes, modules = modules_after(script, sqlite_url)
    assert routes > 40
    assert modules & {"alembic", "markdown_it", "torch", "ray", "pyarrow", "psycopg"} == set()
