"""Starts attempts as processes of this machine.

The worker holds two pipes to the launcher of each attempt. The launcher is a new process, or a fork of a process that
has already imported torch (`fork_server.py`).
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORK_SERVER_START_SECONDS = 120.0
"""Time that a fork server may take to import torch. After it, attempts start without the server."""
FORK_SERVER_WAIT_SECONDS = 5.0
"""Time that an attempt waits for the fork server. It is short, because no heartbeat is sent meanwhile."""
LAUNCHER_KILLED = "the launcher was killed"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserIds:
    """The ids of a user, and of the groups that the user is in."""

    uid: int
    gid: int
    groups: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """What a launcher runs."""

    command: list[str]
    """Argument list; the program's path is absolute."""
    environment: dict[str, str]
    directory: Path
    """Working directory."""
    output: Path
    """File for the start and the end of the output."""
    seconds: float
    """Time limit."""
    memory: int | None
    """Limit in bytes for all processes of the attempt together; None for no limit."""
    user: UserIds | None = None
    """User that the command runs as; None for the worker's own."""


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """How the process of an attempt ended."""

    exit_code: int | None
    """Exit code, negative for a signal; None if it is unknown."""
    reason: str | None
    """Why the script was ended: `stopped`, `timeout`, `memory`, `abandoned` or `LAUNCHER_KILLED`. None if it ended by
    itself."""


class LocalProcess:
    """The launcher of an attempt and its script. Closing the lifeline ends both."""

    def __init__(self, lifeline: int, status: int, launcher: subprocess.Popen[bytes] | None) -> None:
        self._lifeline = lifeline
        self._status = status
        self._launcher = launcher
        self._buffer = b""

    def wait(self, seconds: float) -> ProcessEnd | None:
        """Wait up to `seconds` for the end. Return None if the process still runs."""
        ready, _, _ = select.select([self._status], [], [], max(0.0, seconds))
        if not ready:
            return None
        received = os.read(self._status, 65536)
        if not received:
            return ProcessEnd(None, LAUNCHER_KILLED)
        self._buffer += received
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            status: dict[str, Any] = json.loads(line)
            if "exit_code" in status:
                return ProcessEnd(status["exit_code"], status["reason"])
        return None

    def send(self, line: str) -> None:
        """Send a line to the launcher. Does nothing if the launcher has ended."""
        with suppress(OSError):
            os.write(self._lifeline, line.encode() + b"\n")

    def stop(self) -> None:
        """Send SIGTERM to the script, and SIGKILL after `GRACE_SECONDS`."""
        self.send("stop")

    def close(self) -> None:
        """Kill everything that still runs."""
        for descriptor in (self._lifeline, self._status):
            with suppress(OSError):
                os.close(descriptor)
        if self._launcher is not None:
            with suppress(subprocess.TimeoutExpired):
                self._launcher.wait(timeout=15)


class ProcessStarter:
    """Starts attempts, and keeps one fork server for each shared environment. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fork_servers: dict[tuple[tuple[str, str], ...], _ForkServer] = {}

    def start(self, spec: LaunchSpec, shared_environment: Mapping[str, str], *, may_fork: bool) -> LocalProcess:
        """Start an attempt.

        Args:
            spec: What to run.
            shared_environment: The environment that all trials of the trainable share.
            may_fork: Whether the attempt may be forked from a process that has imported torch. An attempt of another
                user is never forked: that process, of the worker's user, would import the other user's files.
        """
        process = None
        if may_fork and spec.user is None and is_forkable(spec.command):
            process = self._fork_server(shared_environment).fork_launcher()
        if process is None:
            process = _start_launcher(shared_environment)
        process.send(json.dumps(asdict(spec), default=str))
        return process

    def preload(self, command: list[str], shared_environment: Mapping[str, str]) -> None:
        """Start the process from which attempts with this command are forked, so that the first one finds it ready."""
        if is_forkable(command):
            self._fork_server(shared_environment)

    def close(self) -> None:
        """End the fork servers."""
        for server in self._fork_servers.values():
            server.close()

    def _fork_server(self, environment: Mapping[str, str]) -> _ForkServer:
        key = tuple(sorted(environment.items()))
        with self._lock:
            server = self._fork_servers.get(key)
            if server is None:
                server = self._fork_servers[key] = _ForkServer(environment)
        return server


def is_forkable(command: list[str]) -> bool:
    """Whether a command runs a script with the worker's own interpreter. No other command can be forked."""
    return len(command) > 1 and command[0] == sys.executable and command[1].endswith(".py")


def _start_launcher(environment: Mapping[str, str]) -> LocalProcess:
    launcher_lifeline, lifeline = os.pipe()
    status, launcher_status = os.pipe()
    launcher = subprocess.Popen(
        [sys.executable, "-I", "-m", "gradmedic_worker.attempt"],  # isolated: it imports no file of the trainable
        stdin=launcher_lifeline,
        stdout=launcher_status,
        stderr=subprocess.DEVNULL,
        env=dict(environment),
        start_new_session=True,
    )
    for descriptor in (launcher_lifeline, launcher_status):
        os.close(descriptor)
    return LocalProcess(lifeline, status, launcher)


class _ForkServer:
    """The process of `fork_server.py`, seen from the worker."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._socket, server_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with server_socket:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gradmedic_worker.executors.fork_server"],
                stdin=server_socket.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(environment),
                start_new_session=True,
            )
        self._is_usable = False
        self._has_reported = threading.Event()
        threading.Thread(target=self._read_report, name="fork server", daemon=True).start()

    def fork_launcher(self) -> LocalProcess | None:
        """Return a new launcher, or None if the server cannot be used, or is not ready yet."""
        if not self._has_reported.wait(FORK_SERVER_WAIT_SECONDS) or not self._is_usable:
            return None
        launcher_lifeline, lifeline = os.pipe()
        status, launcher_status = os.pipe()
        try:
            socket.send_fds(self._socket, [b"trial"], [launcher_lifeline, launcher_status])
        except OSError:
            self._is_usable = False
            os.close(lifeline)
            os.close(status)
            return None
        finally:
            os.close(launcher_lifeline)
            os.close(launcher_status)
        return LocalProcess(lifeline, status, None)

    def close(self) -> None:
        """End the server."""
        if not self._has_reported.is_set():
            self._process.kill()  # it still imports, and has forked nothing
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # ends a wait for the report
        self._socket.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)

    def _read_report(self) -> None:
        """Wait until the server has imported its modules, and close it if it has several threads."""
        line = b""
        with suppress(OSError, ValueError):  # `close` may close the socket meanwhile
            ready, _, _ = select.select([self._socket], [], [], FORK_SERVER_START_SECONDS)
            line = self._socket.recv(4096) if ready else b""
        self._is_usable = bool(line) and json.loads(line)["threads"] == 1
        self._has_reported.set()
        if not self._is_usable:
            self.close()
