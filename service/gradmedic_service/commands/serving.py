"""The service as a process: its checks before it starts, its socket, its end."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import structlog
import uvicorn

from gradmedic_service.access import service as access
from gradmedic_service.app import create_app
from gradmedic_service.commands.entry_points import EXIT_FAILURE, EXIT_USAGE
from gradmedic_service.database import schema
from gradmedic_service.database.engine import Database, create_parent_folder, is_missing, is_sqlite, printable_url
from gradmedic_service.errors import ServiceError
from gradmedic_service.http.addresses import is_loopback
from gradmedic_service.http.responses import to_json
from gradmedic_service.logs import set_up_logging
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.settings import DEFAULT_DATABASE_URL, Settings
from gradmedic_service.telemetry import rediagnosis

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
"""How long a silent connection stays open: jobs that report every few seconds keep theirs, and none is closed just as
the next block sets out."""

WORKER_SECONDS = 30
"""For which the worker beside the service may take to end its trials."""

M_ARENA_MAX = -8
"""Of `mallopt`, in glibc's malloc.h."""
MALLOC_ARENAS = 2
"""glibc gives each of some forty threads a heap of its own, none of which returns what a large body once took."""

_logger = structlog.get_logger("gradmedic.service")


def serve(settings: Settings, worker_file: str | None = None) -> int:
    """Prepare the database, listen, and serve until a signal; return the exit status.

    SQLite is migrated; PostgreSQL, which other processes may be using, is only checked. With `worker_file`, a worker
    runs beside it, as a process of its own.
    """
    set_up_logging(settings)
    if worker_file is not None and not Path(worker_file).is_file():
        return refuse(f"there is no {worker_file}, which says what a worker may run")
    _bound_heaps()
    database_url = settings.database_url.get_secret_value()
    try:
        prepare_database(database_url)
        if settings.requires_keys and not _has_usable_key(settings):
            return refuse(_no_key_yet(settings))
    except ServiceError as error:
        return refuse(with_reason(error), EXIT_FAILURE)
    except OSError as error:
        return refuse(f"the database cannot be prepared: {error}", EXIT_FAILURE)
    config = uvicorn.Config(
        create_app(settings),
        access_log=False,
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
        return refuse(f"the certificate or its key cannot be used: {error}", EXIT_FAILURE)
    try:
        listener = socket.create_server(
            (settings.host, settings.port),
            family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
            backlog=BACKLOG,
        )
    except OSError as error:
        reason = error.strerror or error
        return refuse(f"cannot listen at {settings.host} port {settings.port}: {reason}", EXIT_FAILURE)
    with listener:
        _AnnouncingServer(config, database_url, worker_file).run(sockets=[listener])
    return 0


def change_schema(settings: Settings, action: str, revision: str | None) -> int:
    """Carry out `upgrade`, `downgrade` or `current`; return the exit status."""
    database_url = settings.database_url.get_secret_value()
    try:
        if action == "upgrade":
            create_parent_folder(database_url)
            schema.upgrade(database_url, revision or "head")
        elif is_missing(database_url):
            place = printable_url(database_url)
            return refuse(f"there is no database at {place}: run `{schema.UPGRADE_COMMAND}`.", EXIT_FAILURE)
        elif action == "downgrade":
            schema.downgrade(database_url, revision or "base")
        found = schema.current(database_url)
    except ServiceError as error:
        return refuse(with_reason(error), EXIT_FAILURE)
    except OSError as error:
        return refuse(f"the database cannot be prepared: {error}", EXIT_FAILURE)
    print(f"{printable_url(database_url)}: revision {found or 'none'}, this version needs {schema.head()}")
    return 0


def rediagnose(settings: Settings, run_ids: Sequence[UUID] | None, *, as_json: bool) -> int:
    """Build the diagnoses of some runs, or of all, anew and say what became of them; return the exit status."""
    database_url = settings.database_url.get_secret_value()
    if is_missing(database_url):
        return refuse(f"there is no database at {printable_url(database_url)}.", EXIT_FAILURE)
    database, facts = Database(settings), FactsCache()
    try:
        schema.check_revision(database, schema.head())
        for run_id in rediagnosis.read_run_ids(database) if run_ids is None else run_ids:
            done = rediagnosis.rediagnose(database, facts, run_id)
            if as_json:
                print(to_json({"run_id": str(run_id), "before": done.before, "after": done.after}), flush=True)
            else:
                was = "" if done.before == done.after else f" (was {done.before})"
                print(f"{run_id}: {done.after}{was}", flush=True)
    except ServiceError as error:
        return refuse(with_reason(error), EXIT_FAILURE)
    finally:
        database.close()
    return 0


def prepare_database(database_url: str) -> None:
    """Create and migrate a SQLite database; raise DatabaseNotMigrated for a PostgreSQL at another revision."""
    if is_sqlite(database_url):
        create_parent_folder(database_url)
        schema.upgrade(database_url)
        return
    found = schema.current(database_url)
    if found != schema.head():
        raise schema.not_migrated(found, schema.head(), f" --database-url {printable_url(database_url)}")


def _has_usable_key(settings: Settings) -> bool:
    database = Database(settings)
    try:
        with database.reading() as session:
            return access.has_usable_key(session)
    finally:
        database.close()


def _no_key_yet(settings: Settings) -> str:
    url = settings.database_url.get_secret_value()
    where = "" if url == DEFAULT_DATABASE_URL else f" --database-url {printable_url(url)}"
    command = f"`gradmedic api-key create --all-projects --scope admin{where}`"
    if is_loopback(settings.host):
        option = "--behind-proxy" if settings.behind_proxy else "--require-auth"
        return f"with {option} every request needs an API key, and there is none yet. Make the first with {command}."
    return (
        f"{settings.host or 'that address'} can be reached from other machines, so that every request needs an API "
        f"key, and there is none yet. Make the first with {command}, or listen at 127.0.0.1."
    )


def _bound_heaps() -> None:
    """Let threads share heaps, so that memory under load stays what it was; elsewhere than on glibc, do nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_ARENA_MAX, MALLOC_ARENAS)


def with_reason(error: ServiceError) -> str:
    """Return what an error says, with what the database said."""
    return error.detail if error.reason is None else f"{error.detail} ({error.reason})"


def refuse(reason: str, status: int = EXIT_USAGE) -> int:
    """Print why a command does nothing; return the exit status."""
    print(f"gradmedic: {reason}", file=sys.stderr)
    return status


class _AnnouncingServer(uvicorn.Server):
    """Prints where it listens once it does, and has its worker begin then."""

    def __init__(self, config: uvicorn.Config, database_url: str, worker_file: str | None) -> None:
        super().__init__(config)
        self._database_url = database_url
        self._worker_file = worker_file
        self._worker: subprocess.Popen[bytes] | None = None
        self._is_ending = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        scheme = "https" if self.config.is_ssl else "http"
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
            print(f"gradmedic is at {address} (database: {printable_url(self._database_url)})", flush=True)
            if self._worker_file is not None:
                reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host)  # noqa: S104  # compared, not bound to
                self._worker = _start_worker(
                    self._worker_file, address if reachable is None else f"{scheme}://{reachable}:{port}"
                )

                threading.Thread(target=self._tell_if_worker_ends, daemon=True).start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the worker, which still asks the service; then the event streams, for whose ends uvicorn would wait."""
        self._is_ending = True
        if self._worker is not None:
            await asyncio.to_thread(_end_worker, self._worker)
        self.config.app.state.live.close()  # type: ignore[union-attr] # the application of `create_app`
        await super().shutdown(sockets)

    def _tell_if_worker_ends(self) -> None:
        if self._worker is not None:
            status = self._worker.wait()
            if not self._is_ending:
                _logger.error("the worker beside the service has ended: no trial is run any more", exit_status=status)


def _start_worker(worker_file: str, address: str) -> subprocess.Popen[bytes]:
    """Start `gradmedic worker`; it ends when this process does, however that ends."""
    command = [sys.executable, "-m", "gradmedic", "worker", "--config", worker_file, "--base-url", address]
    return subprocess.Popen(  # noqa: S603  # our own command
        [*command, "--until-input-ends"],
        stdin=subprocess.PIPE,
        start_new_session=True,  # an interrupt at the terminal is for the service, which ends the worker
    )


def _end_worker(worker: subprocess.Popen[bytes]) -> None:
    try:
        worker.communicate(timeout=WORKER_SECONDS)  # its input ends, and so does it
    except subprocess.TimeoutExpired:
        worker.kill()  # and its trials with it
        worker.wait()
