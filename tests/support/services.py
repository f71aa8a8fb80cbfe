"""Services in processes of their own.

They are forked from a process that has imported all that they need (`process_starter`), because a test of a real
service would spend most of its time on imports. The tests of the client, the pages and the wheel start the command
itself, and so do `tests/service/commands/test_startup.py` and the documents' readers.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.support.forked_processes import ForkedProcess, process_starter


class ServiceProcess(ForkedProcess):
    """The process of a service.

    Args:
        arguments: Arguments of `gradmedic`.
        environment: Its environment.
        folder: Its working directory.
        errors: Gets its standard error.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, errors: IO[str]) -> None:
        reader, writer = os.pipe()
        super().__init__(process_starter("services"), arguments, environment, folder, writer, errors.fileno())
        os.close(writer)
        self.stdout = open(reader)  # noqa: PTH123, SIM115  # a descriptor has no path; `__exit__` closes it

    def __exit__(self, *details: object) -> None:
        """Wait for the end."""
        super().__exit__(*details)
        self.stdout.close()


@dataclass(frozen=True)
class RunningService:
    """A service that runs as a process of its own."""

    url: str
    process: subprocess.Popen[str] | ServiceProcess


Serve = Callable[..., AbstractContextManager[RunningService]]
"""Runs a service: `run_service` in the test's folder."""


@contextmanager
def run_service(
    folder: Path,
    database_url: str,
    *arguments: str,
    lease: float = 15.0,
    prefix: Sequence[str] = (),
    **environment: str,
) -> Iterator[RunningService]:
    """Run `gradmedic serve` on a free port in `folder`, and kill it at the end if it still runs.

    Args:
        folder: Working directory; `serve.log` in it gets the standard error.
        database_url: The service's database.
        arguments: Further arguments of the command. With `--with-worker` the service is a program of its own, whose
            environment a trial might read.
        lease: Seconds after which the trials of a silent worker are given to another worker.
        prefix: A command that runs the service's command in its own place.
        environment: Further environment variables.
    """
    command = ["serve", "--port", "0", "--database-url", database_url, *arguments]
    variables = {"PATH": os.environ["PATH"], "GRADMEDIC_TRIAL_LEASE": str(lease), **environment}
    process: subprocess.Popen[str] | ServiceProcess
    with (folder / "serve.log").open("a") as log:
        if prefix or "--with-worker" in arguments:
            program = [*prefix, str(Path(sys.executable).with_name("gradmedic"))]
            process = subprocess.Popen(
                [*program, *command], stdout=subprocess.PIPE, stderr=log, text=True, env=variables, cwd=folder
            )
        else:
            process = ServiceProcess(command, variables, folder, log)
    with process:
        try:
            assert process.stdout is not None
            match = re.search(r"https?://\S+", process.stdout.readline())
            assert match is not None, (folder / "serve.log").read_text()
            yield RunningService(match.group(), process)
        finally:
            if process.poll() is None:
                process.kill()
