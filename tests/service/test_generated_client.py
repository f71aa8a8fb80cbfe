"""A client that openapi-python-client generates from the OpenAPI document works, as `docs/api.md` describes it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr
from tests.support.patience import PATIENCE
from tests.support.services import Serve

from gradmedic import Client
from gradmedic_service.access import service as access
from gradmedic_service.database.engine import Database
from gradmedic_service.settings import Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"
WITHOUT_JSON = {"POST /api/v1/runs/{run_id}/steps", "GET /api/v1/runs/{run_id}/blocks"}
"""Operations with a form that the generator does not know: msgpack."""


@pytest.mark.slow
def test_a_generated_client_reads_a_diagnosis(serve: Serve, sqlite_url: str, tmp_path: Path) -> None:
    """The five lines of the documentation print the summary of a diagnosis, with a key, from a real service."""
    database = Database(Settings(database_url=SecretStr(sqlite_url)))
    with database.writing() as session:
        _, secret = access.create_key(session, project=None, name="test", scopes=["admin"])
    database.close()
    with serve(sqlite_url, "--require-auth") as served, Client(served.url, secret) as client:
        run_id = create_run(served.url, secret)
        generate(f"{served.url}/openapi.json", tmp_path)
        printed = run_python(documented_lines(served.url, secret, run_id), tmp_path / "gradmedic-client")
        assert printed == f"{client.runs.diagnosis(run_id).summary}\n"


def create_run(url: str, secret: str) -> str:
    """Return the id of a new run."""
    headers = {"Authorization": f"Bearer {secret}"}
    body = {"project": "p", "layers": [{"name": "w"}]}
    run_id: str = httpx2.post(f"{url}/api/v1/runs", headers=headers, json=body).json()["id"]
    return run_id


def documented_lines(url: str, secret: str, run_id: str) -> str:
    """Return the five lines of the documentation, with the address, key and run of the test."""
    block = re.search(r"^```python\n(from uuid.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    lines = block[1]
    assert len(lines.splitlines()) == 5
    for pattern, value in (
        (r"http://127\.0\.0\.1:8642", url),
        (r"gradmedic_\.\.\.", secret),
        (r"0199b7f0[-\w]+", run_id),
    ):
        lines, count = re.subn(pattern, value, lines)
        assert count == 1, pattern
    return lines


def generate(url: str, folder: Path) -> None:
    """Generate the client. Warnings about other forms than msgpack are failures."""
    programs = Path(sys.executable).parent
    command = [str(programs / "openapi-python-client"), "generate", "--url", url]
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "COLUMNS": "200"}  # it formats the files with ruff
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(re.findall(r"WARNING parsing (.*) within", done.stdout + done.stderr)) <= WITHOUT_JSON


def run_python(lines: str, package: Path) -> str:
    """Return what a script prints that can import the generated package."""
    done = subprocess.run(
        [sys.executable, "-c", lines],
        env={"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
