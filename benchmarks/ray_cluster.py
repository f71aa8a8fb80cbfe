"""A Ray cluster on one machine: a head and nodes, each of which can be killed like a machine that loses its power.

Each `ray start --block` leads a session of processes, and everything that Ray starts stays in that session. Killing the
whole session at once simulates a machine that loses its power. `ray stop` is not used: it would end every Ray on the
machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil
import urllib3
from tests.support.ports import free_port

START_SECONDS: Final = 120
STARTED: Final = "Ray runtime started"
OBJECT_STORE_BYTES: Final = 80_000_000
"""Close to the least that Ray takes; trials put nothing there."""

IMPATIENCE: Final = {
    "RAY_health_check_initial_delay_ms": "300",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_failure_threshold": "3",
}
"""Settings of Ray's own; of `health_check_timeout_ms` the ten seconds stay."""


class RayCluster:
    """A head at an address of its own, with a token, and nodes that come and go.

    Args:
        configuration: the `worker.toml` of every node; it may be written later, and again.
        cpus: of the head; 0 for one that runs no jobs.
        is_impatient: whether the head looks at its nodes three times a second, and takes one that refuses three times
            for dead. One that is slow to answer gets as long as ever.
    """

    def __init__(self, configuration: Path, *, cpus: int, is_impatient: bool = False) -> None:
        self._configuration = configuration
        self._cpus = cpus
        self._is_impatient = is_impatient
        self._folder = Path(tempfile.mkdtemp(prefix="gm-ray-"))  # short: Ray's sockets lie below it
        self._port, dashboard_port = free_port(), free_port()
        self._dashboard_port = dashboard_port
        self.address = f"http://127.0.0.1:{dashboard_port}"
        self.token = secrets.token_urlsafe(32)
        self.token_file = self._folder / "token"
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(self.token)
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """Return what a node of the cluster is started with."""
        return {
            **(IMPATIENCE if self._is_impatient else {}),
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_JOB_STOP_WAIT_TIME_S": "60",  # to be asked and not obey is the launcher's to deal with
            "GRADMEDIC_WORKER_CONFIG": str(self._configuration),
        }

    def start_head(self) -> None:
        """Start the head, at the address that it always has, and wait until it takes jobs."""
        options = ["--head", f"--port={self._port}", f"--dashboard-port={self._dashboard_port}"]
        self._start("head", self._cpus, *options, "--dashboard-host=127.0.0.1")
        self._wait_for(lambda: STARTED in self.log("head") and self.ask("/api/jobs/") is not None, "head")

    def start_node(self, name: str, cpus: int) -> None:
        """Start another node, and wait until the head knows it."""
        self._start(name, cpus, f"--address=127.0.0.1:{self._port}")
        self._wait_for(lambda: STARTED in self.log(name), name)

    def kill(self, name: str) -> None:
        """Kill every process of a node at once."""
        process = self._nodes.pop(name)
        deadline = time.monotonic() + START_SECONDS
        while (left := _session_of(process.pid)) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.02)
        process.wait()

    def close(self) -> None:
        """Kill every node, and remove what they wrote."""
        for name in list(self._nodes):
            self.kill(name)
        shutil.rmtree(self._folder, ignore_errors=True)

    def ask(self, path: str) -> bytes | None:
        """Return what the head answers to a question; None if it does not."""
        try:
            answer = urllib3.request(
                "GET",
                self.address + path,
                headers={"Authorization": f"Bearer {self.token}"},
                timeout=5,
                retries=False,
            )
        except urllib3.exceptions.HTTPError:
            return None
        return answer.data if answer.status == 200 else None

    def written(self) -> bytes:
        """Return everything that the cluster has written down: logs, sessions, but not its token."""
        files = [one for one in self._folder.rglob("*") if one.is_file() and one != self.token_file]
        return b"\n".join(one.read_bytes() for one in files)

    def log(self, name: str) -> str:
        """Return what `ray start` of a node has printed."""
        return (self._folder / f"{name}.log").read_text()

    def _start(self, name: str, cpus: int, *options: str) -> None:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", *options]
        command += [f"--num-cpus={cpus}", "--num-gpus=0", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        command += [f"--temp-dir={self._folder / 'ray'}", "--disable-usage-stats", "--include-log-monitor=false"]
        with (self._folder / f"{name}.log").open("wb") as log:
            self._nodes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self._folder,
                start_new_session=True,
            )

    def _wait_for(self, condition: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            if self._nodes[name].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} of the Ray cluster did not start:\n{self.log(name)[-3000:]}")
            time.sleep(0.1)


def _session_of(leader: int) -> list[int]:
    """Return the processes of a session that still run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found
