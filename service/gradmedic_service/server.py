"""The service as a process: its socket, the worker beside it, and its end."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import structlog
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from gradmedic_service.address import ANY_HOST
from gradmedic_service.app import create_app
from gradmedic_service.http.connections import ConnectionBounds, Connections
from gradmedic_service.http.listener import Listener, bound_by_files
from gradmedic_service.services import services_of
from gradmedic_service.settings import Settings

KEEP_ALIVE_SECONDS = 75
"""Seconds that a silent connection stays open. Jobs that report every few seconds keep their connection, and none is
closed at the moment when the next block is sent."""
WORKER_SECONDS = 30
"""Seconds that the worker beside the service has to end its trials."""
M_ARENA_MAX = -8
"""The option of glibc's `mallopt` (malloc.h) that bounds the number of heaps."""
MALLOC_ARENAS = 2
"""Heaps of the process. By default glibc gives each of some forty threads its own heap, and a heap keeps the memory
that a large body once needed."""
PR_SET_DUMPABLE = 4
"""The option of Linux's `prctl` (linux/prctl.h) that decides who may read the memory of a process."""
PASSWORD_VARIABLES = frozenset(
    {"PGPASSWORD"}
    | {f"GRADMEDIC_{name.upper()}" for name, field in Settings.model_fields.items() if field.annotation is SecretStr}
)
"""Environment variables that a worker does not need, and that a trial could read there."""

_logger = structlog.get_logger("gradmedic.service")


class StartError(Exception):
    """The server cannot start; the message is for the operator."""


def make_server(
    settings: Settings, listening: socket.socket, announce: Callable[[str], None], worker_file: str | None = None
) -> Server:
    """Return a server of the service. Its `serve_until_signal()` announces the address, and serves until a signal.

    Args:
        settings: settings whose database has been prepared.
        listening: socket that listens at the service's address.
        announce: function that is called with the URL once the service answers there.
        worker_file: the `worker.toml` of a worker that runs beside the service, as a process of its own.

    Raises StartError.
    """
    _bound_heaps()
    if worker_file is not None:
        _hide_memory()
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        access_log=False,
        ws="none",  # there is no such route, and a connection would leave its bounds
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        proxy_headers=settings.behind_proxy,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        timeout_graceful_shutdown=settings.shutdown_timeout,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise StartError(f"the certificate or its key cannot be used: {error}") from error
    return Server(config, app, listening, _connection_bounds(config, settings), announce, worker_file)


def _connection_bounds(config: uvicorn.Config, settings: Settings) -> ConnectionBounds:
    """Return the bounds of connections. The limit of open files is raised as far as they need it."""
    forwarding = config.loaded_app
    return ConnectionBounds(
        header_seconds=settings.header_timeout,
        request_seconds=settings.request_timeout,
        write_seconds=settings.write_timeout,
        max_connections=bound_by_files(settings.max_connections),
        max_per_address=settings.max_connections_per_address,
        is_proxy=lambda address: isinstance(forwarding, ProxyHeadersMiddleware) and address in forwarding.trusted_hosts,
    )


class Server(uvicorn.Server):
    """Accepts connections itself, and bounds them. Announces its address once it listens.

    Its worker starts then, and ends first.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        app: FastAPI,
        listening: socket.socket,
        bounds: ConnectionBounds,
        announce: Callable[[str], None],
        worker_file: str | None,
    ) -> None:
        super().__init__(config)
        self._app = app
        self._listening = listening
        self._bounds = bounds
        self._connections = Connections(bounds)
        self._listeners: list[Listener] = []
        self._announce = announce
        self._worker_file = worker_file
        self._worker: _WorkerProcess | None = None

    def serve_until_signal(self) -> None:
        """Serve requests until a signal ends the process."""
        self.run(sockets=[self._listening])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, announce the address and start the worker."""
        await super().startup(sockets=[])
        if self.should_exit:
            return
        scheme = "https" if self.config.is_ssl else "http"
        arguments = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        self._connections.start()
        for listening in sockets or []:
            listener = Listener(listening, self._connections, arguments, self.config.ssl, self._bounds)
            listener.start()
            self._listeners.append(listener)
            host, port = listening.getsockname()[:2]
            address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
            self._announce(address)
            if self._worker_file is not None:
                loopback = ANY_HOST.get(host)
                self._worker = _WorkerProcess(
                    self._worker_file, address if loopback is None else f"{scheme}://{loopback}:{port}"
                )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the worker, which still sends requests; then the event streams, whose ends uvicorn would wait for."""
        if self._worker is not None:
            await asyncio.to_thread(self._worker.end)
        services_of(self._app).live_runs.close()
        for listener in self._listeners:
            listener.stop()
        await super().shutdown(sockets)
        self._connections.stop()


class _WorkerProcess:
    """A `gradmedic worker` beside the service; it ends when this process ends, even if this process is killed."""

    def __init__(self, worker_file: str, address: str) -> None:
        command = [sys.executable, "-m", "gradmedic", "worker", "--config", worker_file, "--base-url", address]
        self._is_ending = False
        self._process = subprocess.Popen(  # noqa: S603 (our own command)
            [*command, "--until-input-ends"],
            env={name: value for name, value in os.environ.items() if name not in PASSWORD_VARIABLES},
            stdin=subprocess.PIPE,
            start_new_session=True,  # an interrupt at the terminal is for the service, which ends the worker
        )
        threading.Thread(target=self._log_unexpected_end, daemon=True).start()

    def end(self) -> None:
        """Let the worker end its trials and wait for its end; kill it, and its trials, after WORKER_SECONDS."""
        self._is_ending = True
        try:
            self._process.communicate(timeout=WORKER_SECONDS)  # closes its input, which ends it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _log_unexpected_end(self) -> None:
        status = self._process.wait()
        if not self._is_ending:
            _logger.error("the worker beside the service has ended: no trial is run any more", exit_status=status)


def _bound_heaps() -> None:
    """Make threads share heaps, so that memory does not grow under load. Does nothing without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_ARENA_MAX, MALLOC_ARENAS)


def _hide_memory() -> None:
    """Hide memory, environment and open files from other processes of this user (Linux), as trials are."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
