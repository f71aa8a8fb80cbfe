"""Starts the processes of trials on this machine.

One idea: a trial is a launcher process and two pipes to it. Whether the launcher was started anew or forked from a
process that has torch in memory makes no other difference.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOAD_SECONDS = 120.0
"""Within which a process must have imported torch, else trials start without it."""
PRELOAD_WAIT = 5.0
"""Seconds that a trial waits for it, because nobody renews its lease meanwhile; then it starts without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """What a launcher is told to run."""

    command: list[str]
    """Argument list; the program's path is absolute."""
    environment: dict[str, str]
    directory: Path
    output: Path
    seconds: float
    memory: int | None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a trial's process ended."""

    exit_code: int | None
    """Negative: a signal. None where nobody could tell."""
    reason: str | None
    """Why the launcher ended it: `stopped`, `timeout`, `memory`, `abandoned`; None if it ended by itself."""


class LocalProcess:
    """A trial's process; the object's owner holds its lifeline."""

    def __init__(self, lifeline: int, status: int, process: subprocess.Popen[bytes] | None) -> None:
        self._lifeline = lifeline
        self._status = status
        self._process = process
        self._buffer = b""
        self.pid: int | None = None
        """Of the script, once it is started."""

    def wait(self, seconds: float) -> Ended | None:
        """Wait for the end, at most so long; None if it has not come."""
        ready, _, _ = select.select([self._status], [], [], max(0.0, seconds))
        if not ready:
            return None
        got = os.read(self._status, 65536)
        if not got:
            return Ended(None, "the launcher was killed")
        self._buffer += got
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            said: dict[str, Any] = json.loads(line)
            if "exit_code" in said:
                return Ended(said["exit_code"], said["reason"])
            self.pid = said["started"]
        return None

    def tell(self, line: str) -> None:
        """Send a line to the launcher, unless it is gone."""
        with suppress(OSError):
            os.write(self._lifeline, line.encode() + b"\n")

    def stop(self) -> None:
        """Ask it to end; after a moment it is killed."""
        self.tell("stop")

    def close(self) -> None:
        """Let go of it: whatever of it still runs is killed."""
        for descriptor in (self._lifeline, self._status):
            with suppress(OSError):
                os.close(descriptor)
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=15)


class Starter:
    """Starts processes on this machine; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._preloaded: dict[tuple[tuple[str, str], ...], _Preloaded] = {}

    def start(self, order: LaunchSpec, shared_environment: Mapping[str, str], *, may_preload: bool) -> LocalProcess:
        """Start a trial, from a process that has imported torch where that is allowed and safe."""
        line = json.dumps(
            {
                "command": order.command,
                "environment": order.environment,
                "directory": str(order.directory),
                "output": str(order.output),
                "seconds": order.seconds,
                "memory": order.memory,
            }
        )
        process = None
        if may_preload and is_plain_script(order.command):
            process = self._fork(shared_environment)
        if process is None:
            process = _launch(shared_environment)
        process.tell(line)
        return process

    def close(self) -> None:
        """End the processes that were kept."""
        for preloaded in self._preloaded.values():
            preloaded.close()

    def _fork(self, environment: Mapping[str, str]) -> LocalProcess | None:
        key = tuple(sorted(environment.items()))
        with self._lock:
            preloaded = self._preloaded.get(key)
            if preloaded is None:
                preloaded = self._preloaded[key] = _Preloaded(environment)
        return preloaded.fork()


def is_plain_script(command: list[str]) -> bool:
    """Whether a command is this very interpreter with a script: nothing else can be forked from it."""
    return len(command) > 1 and command[0] == sys.executable and command[1].endswith(".py")


def _launch(environment: Mapping[str, str]) -> LocalProcess:
    lifeline_theirs, lifeline = os.pipe()
    status, status_theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "gradmedic_worker.attempt"],
        stdin=lifeline_theirs,
        stdout=status_theirs,
        stderr=subprocess.DEVNULL,
        env=dict(environment),
        start_new_session=True,
    )
    for descriptor in (lifeline_theirs, status_theirs):
        os.close(descriptor)
    return LocalProcess(lifeline, status, process)


class _Preloaded:
    """A process that has imported torch, and forks launchers."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gradmedic_worker.fork_server"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(environment),
                start_new_session=True,
            )
        self._is_usable = False
        self._is_known = threading.Event()
        threading.Thread(target=self._find_out, name="preload", daemon=True).start()

    def fork(self) -> LocalProcess | None:
        """Return a new launcher, or None if this process cannot be used, or not yet."""
        if not self._is_known.wait(PRELOAD_WAIT) or not self._is_usable:
            return None
        lifeline_theirs, lifeline = os.pipe()
        status, status_theirs = os.pipe()
        try:
            socket.send_fds(self._socket, [b"trial"], [lifeline_theirs, status_theirs])
        except OSError:
            self._is_usable = False
            os.close(lifeline)
            os.close(status)
            return None
        finally:
            os.close(lifeline_theirs)
            os.close(status_theirs)
        return LocalProcess(lifeline, status, None)

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes up whoever waits for its word
        self._socket.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)

    def _find_out(self) -> None:
        line = b""
        with suppress(OSError, ValueError):  # closed meanwhile
            ready, _, _ = select.select([self._socket], [], [], PRELOAD_SECONDS)
            line = self._socket.recv(4096) if ready else b""
        self._is_usable = bool(line) and json.loads(line)["threads"] == 1
        self._is_known.set()
        if not self._is_usable:
            self.close()
