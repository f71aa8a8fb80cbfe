"""A Ray cluster on one machine: a head and nodes, each of which can be killed like a machine that loses its power.

Each `ray start --block` leads a session of processes, in which all of Ray's own processes stay. So a node is killed by
killing its whole session, and no process is left. `ray stop` would end every Ray on the machine.
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
from tests.support.patience import START_SECONDS
from tests.support.ports import free_port

STARTED: Final = "Ray runtime started"
"""Text that `ray start` prints when a node is ready."""
OBJECT_STORE_BYTES: Final = 80_000_000
"""Close to the smallest size that Ray accepts. Trials do not use the object store."""
SHORT_HEALTH_CHECKS: Final = {
    "RAY_health_check_initial_delay_ms": "300",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_failure_threshold": "3",
}
"""Ray's settings for frequent health checks. The default of `health_check_timeout_ms`, ten seconds, stays."""


class RayCluster:
    """A head with a fixed address and a token, and nodes that can be started and killed.

    Args:
        configuration: The `worker.toml` of every node. It may be written later, and again.
        cpus: CPUs of the head; with 0 it runs no jobs.
        has_short_health_checks: Whether the head checks its nodes three times a second, and declares a node dead that
            refuses three checks. A node that answers slowly has as much time as by default.
    """

    def __init__(self, configuration: Path, *, cpus: int, has_short_health_checks: bool = False) -> None:
        self._configuration = configuration
        self._cpus = cpus
        self._has_short_health_checks = has_short_health_checks
        self._folder = Path(tempfile.mkdtemp(prefix="gm-ray-"))  # short, as the paths of Ray's sockets must be
        self._port, self._dashboard_port, self._client_port = free_port(), free_port(), free_port()
        self.address = f"http://127.0.0.1:{self._dashboard_port}"
        self.token = secrets.token_urlsafe(32)
        self.token_file = self._folder / "token"
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(self.token)
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the cluster's nodes."""
        return {
            **(SHORT_HEALTH_CHECKS if self._has_short_health_checks else {}),
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_JOB_STOP_WAIT_TIME_S": "60",  # the launcher kills a script that ignores SIGTERM
            "GRADMEDIC_WORKER_CONFIG": str(self._configuration),
        }

    def start_head(self) -> None:
        """Start the head at its fixed address, and wait until it accepts jobs."""
        options = ["--head", f"--port={self._port}", f"--dashboard-port={self._dashboard_port}"]
        options += ["--dashboard-host=127.0.0.1", f"--ray-client-server-port={self._client_port}"]
        self._start("head", self._cpus, *options)
        self._wait_for(lambda: STARTED in self.log("head") and self.get("/api/jobs/") is not None, "head")

    def start_node(self, name: str, cpus: int) -> None:
        """Start another node, and wait until it has joined the cluster."""
        self._start(name, cpus, f"--address=127.0.0.1:{self._port}")
        self._wait_for(lambda: STARTED in self.log(name), name)

    def kill(self, name: str) -> None:
        """Kill every process of a node at once."""
        process = self._nodes.pop(name)
        deadline = time.monotonic() + START_SECONDS
        while (pids := _find_session(process.pid)) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.02)
        process.wait()

    def close(self) -> None:
        """Kill every node, and remove the cluster's files."""
        for name in list(self._nodes):
            self.kill(name)
        shutil.rmtree(self._folder, ignore_errors=True)

    def get(self, path: str) -> bytes | None:
        """Return the head's answer to a GET request, or None if it does not answer with 200."""
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

    def read_all_files(self) -> bytes:
        """Return the content of all files of the cluster, such as logs, except for its token."""
        files = [path for path in self._folder.rglob("*") if path.is_file() and path != self.token_file]
        return b"\n".join(path.read_bytes() for path in files)

    def log(self, name: str) -> str:
        """Return the output of a node's `ray start`."""
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


def _find_session(leader: int) -> list[int]:
    """Return the ids of the running processes of a session."""
    process_ids = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                process_ids.append(process.pid)
    return process_ids
