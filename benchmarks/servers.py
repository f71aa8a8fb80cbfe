"""Starts services as processes for the benchmarks, and measures the CPU time of a process and its children.

The benchmarks compare CPU seconds: wall-clock time depends on what else a shared machine does.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
from tests.support.patience import START_SECONDS
from tests.support.postgres import PostgresServer

IDLE_SECONDS: Final = 5.0
IDLE_CPU_SECONDS: Final = 0.1
"""A process is idle that takes less CPU time than this in `IDLE_SECONDS`."""
CACHE: Final = Path(__file__).resolve().parent / ".cache"


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process and its descendants, those that have ended included.

    The times of processes that run are exact; those of ended ones are counted in hundredths of a second.
    """
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        try:
            times = member.cpu_times()
            total += time.clock_gettime(cpu_clock(member)) + times.children_user + times.children_system
        except (psutil.NoSuchProcess, OSError):
            continue
    return total


def cpu_clock(process: psutil.Process) -> int:
    """Return the id of the clock of a process's CPU time, for `time.clock_gettime`: exact where ticks are too coarse.

    The id is made as Linux's `clock_getcpuclockid` makes it. The clock excludes child processes.
    """
    return ~process.pid << 3 | 2


def wait_for(is_ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until a condition holds; fail if the process ends first, or after two minutes."""
    deadline = time.monotonic() + START_SECONDS
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not start")
        time.sleep(0.05)


def wait_until_idle(process: psutil.Process) -> None:
    """Wait until a process and its descendants take nearly no CPU time for some seconds.

    A server may answer while further processes of it still start, whose CPU time would count as that of requests.
    Raises RuntimeError if it does not become idle.
    """
    deadline = time.monotonic() + START_SECONDS
    quiet_since, before = time.monotonic(), cpu_seconds(process)
    while time.monotonic() - quiet_since < IDLE_SECONDS:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{process} does not become idle")
        time.sleep(0.5)
        if cpu_seconds(process) - before > IDLE_CPU_SECONDS:
            quiet_since, before = time.monotonic(), cpu_seconds(process)


@contextmanager
def gradmedic(database_url: str, folder: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """Run the service; yield its address and process."""
    program = str(Path(sys.executable).parent / "gradmedic")
    command = [program, "serve", "--port", "0", "--database-url", database_url, *options]
    with printing_service(command, folder / "serve.log", folder) as service:
        yield service


@contextmanager
def printing_service(command: list[str], log_file: Path, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run a service that prints its address as its first line, in a folder; yield the address and the process."""
    with log_file.open("a") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env={"PATH": os.environ["PATH"]}
        )
    try:
        assert process.stdout is not None
        match = re.search(r"http://\S+", process.stdout.readline())
        if match is None:
            raise RuntimeError(log_file.read_text())
        yield match.group(), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=START_SECONDS)
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def postgres(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run a durable PostgreSQL server; yield the URL of a database and the server's process."""
    server = PostgresServer(folder)
    server.start()
    try:
        yield server.url, server.process
    finally:
        server.stop()


def environment_of(package: str, version: str, *, with_ours: bool = False) -> Path:
    """Return the interpreter of an environment with a release of another tool. The first call creates it.

    Args:
        package: name of the tool's package.
        version: its release.
        with_ours: whether packages that it lacks, such as torch, come from the environment of this process.
    """
    home = CACHE / f"{package}-{version}"
    python = home / "bin" / "python"
    if not (home / ".ready").exists():
        print(f"(installing {package} {version} into {home} ...)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{package}=={version}"]
        subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
        if with_ours:
            version_folder = f"python{sys.version_info.major}.{sys.version_info.minor}"
            ours = Path(sysconfig.get_path("purelib"))
            (home / "lib" / version_folder / "site-packages" / "ours.pth").write_text(f"{ours}\n")
        (home / ".ready").touch()
    return python
