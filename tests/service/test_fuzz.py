"""The service answers as its OpenAPI document promises: schemathesis sends generated requests to every operation.

No answer is a 5xx, every status and body is documented, and every request that the schema forbids is refused. The
refusal of a request that the schema allows is no failure, because a schema cannot express every rule: a page token, for
example, belongs to one list. `make fuzz` runs longer, with other examples each time.
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
DEFAULT_EXAMPLES = 2
"""Examples of each operation and phase in the test suite."""


@pytest.mark.slow
@pytest.mark.parametrize("has_key", [True, False], ids=["with key", "without key"])
def test_every_answer_is_documented(
    has_key: bool, serve: Any, database_url: str, database: Database, tmp_path: Path
) -> None:
    """With and without a key, on both databases, every answer of every operation is as documented."""
    with database.writing() as session:
        _, secret = access.create_key(session, project=None, name="fuzz", scopes=["admin"])
    examples = os.environ.get(EXAMPLES_VARIABLE)
    options = [
        "--max-examples",
        examples or str(DEFAULT_EXAMPLES),
        "--exclude-checks",
        "positive_data_acceptance",
        "--suppress-health-check",
        "too_slow",  # depends on the machine
        "--continue-on-failure",
    ]
    if examples is None:
        options += ["--generation-deterministic", "--phases", "examples,coverage,fuzzing" if has_key else "fuzzing"]
    if has_key:
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
