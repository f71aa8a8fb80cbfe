"""CPU time until a command is ready, beside `python -c pass` and the imports of its libraries.

    python -m benchmarks.start

In CPU seconds of the process, in turn: wall-clock time depends on what else the machine does. The files of compiled
modules are in a folder of their own, as after an installation. `serve` is measured from its start to its first answer,
with a new database and with one that is up to date. It is judged by its ratio to the import of the libraries that a
service of this kind needs in any case, which takes a bit less than a second where the target of two seconds was set.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import psutil

from benchmarks.comparison import Check, Turns, ratio_of_costs, repeat_until_decided, report
from benchmarks.servers import cpu_seconds

REFERENCE: Final = "import of the service's libraries"
REFERENCE_CODE: Final = "import numpy, fastapi, pydantic, sqlalchemy, uvicorn, msgspec"
SERVE: Final = "gradmedic serve"
SERVE_TARGET: Final = 2.5
"""Largest ratio of the start of `serve`, up to its first answer, to the import of its libraries."""
SECONDS: Final = 300.0
"""Bound of the time in which the check must be decided."""
PROGRAM: Final = str(Path(sys.executable).with_name("gradmedic"))
COMMANDS: Final = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import numpy": [sys.executable, "-c", "import numpy"],
    REFERENCE: [sys.executable, "-c", REFERENCE_CODE],
    "numpy and gradmedic.init": [sys.executable, "-c", "import numpy, gradmedic; gradmedic.init"],
    "gradmedic --version": [PROGRAM, "--version"],
    "gradmedic --help": [PROGRAM, "--help"],
    "gradmedic runs": [PROGRAM, "runs", "--base-url", "nonsense"],
    "gradmedic diagnose RUN": [PROGRAM, "diagnose", "RUN", "--base-url", "nonsense"],
    "gradmedic rerun RUN": [PROGRAM, "rerun", "RUN", "--base-url", "nonsense"],
    "gradmedic sync": [PROGRAM, "sync", "--base-url", "nonsense"],
}
"""Commands that end before they talk to anything: the address is no URL."""


def command_seconds(command: list[str], folder: Path, environment: Mapping[str, str]) -> float:
    """Return the CPU seconds of a command that ends by itself."""
    before = os.times()
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def serve_seconds(database: Path, environment: Mapping[str, str]) -> float:
    """Return the CPU seconds of `gradmedic serve` until it has answered a request."""
    command = [PROGRAM, "serve", "--port", "0", "--database-url", f"sqlite:///{database}"]
    with subprocess.Popen(
        command, cwd=database.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[3]
        with urllib.request.urlopen(f"{url}/api/v1/runs") as answer:  # noqa: S310 (our own loopback URL)
            answer.read()
        seconds = cpu_seconds(psutil.Process(process.pid))
        process.terminate()
    return seconds


def main() -> int:
    """Print the table and the verdict; return 1 if the target is missed, 2 if it could not be decided."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("GRADMEDIC_", "PYTHON"))}
        environment = kept | {"PYTHONPYCACHEPREFIX": str(folder / "compiled"), "HOME": name}
        old, numbers = folder / "old.db", count()
        serve_seconds(old, environment)  # creates the database, and compiles the modules
        measures: dict[str, Callable[[], float]] = {
            label: partial(command_seconds, command, folder, environment) for label, command in COMMANDS.items()
        }
        measures["gradmedic serve, new database"] = lambda: serve_seconds(folder / f"{next(numbers)}.db", environment)
        measures[SERVE] = lambda: serve_seconds(old, environment)
        for command in COMMANDS.values():
            command_seconds(command, folder, environment)
        turns = Turns(measures)
        check = Check(
            name="start of `serve` / import of its libraries",
            estimate=lambda: ratio_of_costs(turns.results[SERVE], turns.results[REFERENCE]),
            limit=SERVE_TARGET,
        )
        repeat_until_decided(turns.take, [check], SECONDS)
    print("| command | CPU seconds (median) | times `import numpy` |\n| --- | --- | --- |")
    numpy_seconds = statistics.median(turns.results["import numpy"])
    for label, seconds in turns.results.items():
        print(f"| {label} | {statistics.median(seconds):.2f} | {statistics.median(seconds) / numpy_seconds:.1f} |")
    return report("bench-start", [check])


if __name__ == "__main__":
    sys.exit(main())
