"""The OpenAPI document is kept: schemathesis asks a running service everything that it says.

One idea: no answer is a 5xx, none has a status or a body that is not documented, and what the schema forbids
is refused.
A schema cannot say everything that makes a request good (a page token is of one list, a statistic one of the run's), so
that a refusal of what it allows is no failure. `make fuzz` asks for longer, with examples that differ each time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gradmedic_service.access import service as access
from gradmedic_service.database.engine import Database

EXAMPLES_VARIABLE = "GRADMEDIC_FUZZ_EXAMPLES"
FEW = 2
"""Examples an operation and phase in the suite."""


@pytest.mark.slow
@pytest.mark.parametrize("is_known", [True, False], ids=["key", "stranger"])
def test_every_answer_is_documented(
    is_known: bool, serve: Any, database_url: str, database: Database, tmp_path: Path
) -> None:
    """With a key and without, on both databases, every answer to every operation is as documented."""
    with database.writing() as session:
        _, secret = access.create_key(session, project=None, name="fuzz", scopes=["admin"])
    many = os.environ.get(EXAMPLES_VARIABLE)
    options = [
        "--max-examples",
        many or str(FEW),
        "--exclude-checks",
        "positive_data_acceptance",
        "--suppress-health-check",
        "too_slow",  # says something of the machine
        "--continue-on-failure",
    ]
    if many is None:
        options += ["--generation-deterministic", "--phases", "examples,coverage,fuzzing" if is_known else "fuzzing"]
    if is_known:
        options += ["--header", f"Authorization: Bearer {secret}"]
    with serve(database_url, "--require-auth") as served:
        command = [
            str(Path(sys.executable).parent / "schemathesis"),
            "run",
            f"{served.url}/openapi.json",
            "--no-color",
            *options,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "No test cases" not in done.stdout
    assert "status=5" not in (tmp_path / "serve.log").read_text()
