"""Services in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunningService:
    """A service that runs as a process of its own."""

    url: str
    process: subprocess.Popen[str]


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
        arguments: Further arguments of the command.
        lease: Seconds after which the trials of a silent worker are given to another worker.
        prefix: A command that runs the service's command in its own place.
        environment: Further environment variables.
    """
    command = [*prefix, str(Path(sys.executable).with_name("gradmedic")), "serve", "--port", "0"]
    with (folder / "serve.log").open("a") as log:
        process = subprocess.Popen(
            [*command, "--database-url", database_url, *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={"PATH": os.environ["PATH"], "GRADMEDIC_TRIAL_LEASE": str(lease), **environment},
            cwd=folder,
        )
    with process:
        try:
            assert process.stdout is not None
            match = re.search(r"https?://\S+", process.stdout.readline())
            assert match is not None, (folder / "serve.log").read_text()
            yield RunningService(match.group(), process)
        finally:
            if process.poll() is None:
                process.kill()
