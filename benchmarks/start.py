"""CPU time until a command is ready, beside `python -c pass` and `import numpy`.

    python -m benchmarks.start

The smallest of several starts each, in CPU seconds of the process: wall-clock time depends on what else the machine
does. The files of compiled modules are in a folder of their own, as after an installation. `serve` is measured from its
start to its first answer, with a new database and with one that is up to date.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil

from benchmarks.servers import cpu_seconds

STARTS: Final = 7
PROGRAM: Final = str(Path(sys.executable).with_name("gradmedic"))
COMMANDS: Final = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import numpy": [sys.executable, "-c", "import numpy"],
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


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("GRADMEDIC_", "PYTHON"))}
        environment = kept | {"PYTHONPYCACHEPREFIX": str(folder / "compiled"), "HOME": name}
        serve_seconds(folder / "warm-up.db", environment)
        smallest = {
            label: min(command_seconds(command, folder, environment) for _ in range(STARTS))
            for label, command in COMMANDS.items()
        }
        databases = [folder / f"{number}.db" for number in range(STARTS)]
        smallest["gradmedic serve, new database"] = min(serve_seconds(path, environment) for path in databases)
        smallest["gradmedic serve"] = min(serve_seconds(path, environment) for path in databases)
    print("| command | CPU seconds | times `import numpy` |\n| --- | --- | --- |")
    for label, seconds in smallest.items():
        print(f"| {label} | {seconds:.2f} | {seconds / smallest['import numpy']:.1f} |")


if __name__ == "__main__":
    main()
