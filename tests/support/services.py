"""Services in processes of their own.

They are forked from a process that has imported all that they need (`service_starter`), because a test of a real
service would spend most of its time on imports. The tests of the client, the pages and the wheel start the command
itself, and so do `tests/service/commands/test_startup.py` and the documents' readers.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from tests.support.service_starter import MESSAGE_BYTES

ROOT = Path(__file__).parents[2]


class ServiceProcess:
    """The process of a service, with the methods of `subprocess.Popen` that tests need.

    Args:
        starter: Starts it.
        arguments: Arguments of `gradmedic`.
        environment: Its environment.
        folder: Its working directory.
        errors: Gets its standard error.
    """

    def __init__(
        self,
        starter: ServiceStarter,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        errors: IO[str],
    ) -> None:
        self._starter = starter
        reader, writer = os.pipe()
        message = {"arguments": arguments, "environment": environment, "folder": str(folder)}
        self.pid = starter.ask(message, writer, errors.fileno())
        os.close(writer)
        self.stdout = open(reader)  # noqa: PTH123, SIM115  # a descriptor has no path; `__exit__` closes it
        self._end = os.pidfd_open(self.pid)
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once the process has ended. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._end], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("gradmedic serve", timeout or 0.0)
            self.returncode = self._starter.ask({"ended": self.pid})
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._end, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> ServiceProcess:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the end."""
        self.wait()
        self.stdout.close()
        os.close(self._end)


class ServiceStarter:
    """The process from which services are forked."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.service_starter"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": str(ROOT),
                    "OMP_NUM_THREADS": "1",  # more would be threads of numpy
                },
            )
        self._lock = threading.Lock()

    def ask(self, message: Mapping[str, object], *descriptors: int) -> int:
        """Send a message, and return the answer."""
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(message).encode()], descriptors)
            answer = self._socket.recv(MESSAGE_BYTES)
        assert answer, "the process that starts services has ended"
        return int(answer)


@cache
def service_starter() -> ServiceStarter:
    """Return the starter of this process. It ends with this process, which holds its socket."""
    return ServiceStarter()


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
            process = ServiceProcess(service_starter(), command, variables, folder, log)
    with process:
        try:
            assert process.stdout is not None
            match = re.search(r"https?://\S+", process.stdout.readline())
            assert match is not None, (folder / "serve.log").read_text()
            yield RunningService(match.group(), process)
        finally:
            if process.poll() is None:
                process.kill()
