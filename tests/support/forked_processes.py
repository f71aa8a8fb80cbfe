"""Processes that are forked from one that has imported what they need (`process_starter`)."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Self

from tests.support.process_starter import MESSAGE_BYTES

ROOT = Path(__file__).parents[2]


class ProcessStarter:
    """The process from which processes of a kind are forked.

    Args:
        kind: A key of `process_starter.MODULES`.
    """

    def __init__(self, kind: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.process_starter", kind],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": str(ROOT),
                    "OMP_NUM_THREADS": "1",  # more would be threads of numpy and torch
                },
            )
        self._lock = threading.Lock()
        atexit.register(self._end)

    def _end(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def ask(self, message: Mapping[str, object], *descriptors: int) -> int:
        """Send a message, and return the answer."""
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(message).encode()], descriptors)
            answer = self._socket.recv(MESSAGE_BYTES)
        assert answer, "the process that starts others has ended"
        return int(answer)


@cache
def process_starter(kind: str) -> ProcessStarter:
    """Return this process's starter of a kind. It ends with this process."""
    return ProcessStarter(kind)


class ForkedProcess:
    """A process, with the methods of `subprocess.Popen` that tests need.

    Args:
        starter: Starts it.
        arguments: Arguments of `gradmedic` or of the script.
        environment: Its environment.
        folder: Its working directory.
        output: Descriptor that gets its standard output.
        errors: Descriptor that gets its standard error.
        script: The script to run in a session of its own, in place of `gradmedic`.
    """

    def __init__(
        self,
        starter: ProcessStarter,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        output: int,
        errors: int,
        script: Path | None = None,
    ) -> None:
        self._starter = starter
        message = {
            "script": None if script is None else str(script),
            "arguments": arguments,
            "environment": dict(environment),
            "folder": str(folder),
        }
        self.pid = starter.ask(message, output, errors)
        self._end = os.pidfd_open(self.pid)
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once the process has ended. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._end], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the end."""
        self.wait()
        os.close(self._end)
