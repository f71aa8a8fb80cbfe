"""The service answers as its OpenAPI document promises: schemathesis sends generated requests to every operation.

No answer is a 5xx, every status and body is documented, and every request that the schema forbids is refused. The
refusal of a request that the schema allows is no failure, because a schema cannot express every rule: a page token, for
example, belongs to one list. `make fuzz` runs longer, on both databases, with other examples each time.

A second run puts odd values into the requests: text that PostgreSQL cannot store, huge integers, times at the edge.
Then only the answers are checked, because an odd value may make a bad request good.
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
ODD_EXAMPLES = 5
"""Examples of each operation with odd values in the test suite: half of them have one."""
DATABASES = ["sqlite", "postgresql"] if EXAMPLES_VARIABLE in os.environ else ["postgresql"]
"""The databases of the service. The suite has the one that refuses more values: test_odd_values.py compares both."""
ODD_REQUESTS = "tests.support.odd_requests"
CONFIGURATION = "max-stream-events = 1\n"
"""Without it, each event stream is read for ten seconds. A request decides only which events come at once, and `status`
always does; tests/service/web/test_events.py reads further."""
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("backend", DATABASES)
@pytest.mark.parametrize("has_key", [True, False], ids=["with key", "without key"])
def test_every_answer_is_documented(
    has_key: bool, serve: Any, database_url: str, database: Database, tmp_path: Path
) -> None:
    """With and without a key, every answer of every operation is as documented."""
    options = ["--exclude-checks", "positive_data_acceptance"]
    phases = "examples,coverage,fuzzing" if has_key else "fuzzing"
    secret = new_key(database)
    with serve(database_url, "--require-auth") as served:
        fuzz(served.url, secret if has_key else None, options, phases, DEFAULT_EXAMPLES, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("backend", DATABASES)
def test_no_odd_value_fails(serve: Any, database_url: str, database: Database, tmp_path: Path) -> None:
    """No request with an odd value makes the service fail, and every answer is documented."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    secret = new_key(database)
    with serve(database_url, "--require-auth") as served:
        fuzz(served.url, secret, ["--checks", checks], "fuzzing", ODD_EXAMPLES, tmp_path, hooks=ODD_REQUESTS)


def new_key(database: Database) -> str:
    """Return the secret of a new key for everything."""
    with database.writing() as session:
        _, secret = access.create_key(session, project=None, name="fuzz", scopes=["admin"])
    return secret


def fuzz(
    url: str, secret: str | None, options: list[str], phases: str, examples: int, folder: Path, hooks: str = ""
) -> None:
    """Run schemathesis against a service whose log is in a folder, and fail with what it finds."""
    given = os.environ.get(EXAMPLES_VARIABLE)
    repeatable = ["--generation-deterministic", "--phases", phases] if given is None else []
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"{url}/openapi.json",
        "--no-color",
        "--max-examples",
        given or str(examples),
        "--suppress-health-check",
        "too_slow",  # depends on the machine
        "--continue-on-failure",
        *options,
        *repeatable,
        *(["--header", f"Authorization: Bearer {secret}"] if secret else []),
    ]
    (folder / "schemathesis.toml").write_text(CONFIGURATION)
    environment = os.environ | {"SCHEMATHESIS_HOOKS": hooks, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "No test cases" not in done.stdout
    assert "status=5" not in (folder / "serve.log").read_text()
