"""`gradmedic serve`."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gradmedic_service.commands.errors import EXIT_USAGE, CommandError, printing_errors
from gradmedic_service.commands.options import add_database_option, prepare_database, read_settings

if TYPE_CHECKING:
    import socket

    from gradmedic_service.server import Server
    from gradmedic_service.settings import Settings


class ServeCommand:
    """`gradmedic serve`."""

    help = "start the service"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's options; their defaults come from GRADMEDIC_* and from `Settings`."""
        parser.add_argument("--host", help="address to listen at (default: 127.0.0.1, this machine only)")
        parser.add_argument("--port", type=int, help="port to listen at (default: 8642; 0: a free one)")
        add_database_option(parser)
        parser.add_argument(
            "--with-worker",
            nargs="?",
            const="worker.toml",
            metavar="FILE",
            help="start `gradmedic worker` too, with FILE (default: worker.toml)",
        )
        parser.add_argument(
            "--require-auth",
            action="store_true",
            default=None,
            help="require an API key from this machine too; other machines always need one",
        )
        parser.add_argument(
            "--allowed-host",
            dest="allowed_hosts",
            action="append",
            metavar="NAME",
            help="answer under this name too; may be given again (default: the names of this machine; every name where "
            "API keys are required)",
        )
        parser.add_argument(
            "--behind-proxy",
            action="store_true",
            default=None,
            help="trust the X-Forwarded headers of a proxy on this machine, or at FORWARDED_ALLOW_IPS; requires API "
            "keys",
        )
        parser.add_argument("--ssl-certfile", metavar="FILE", help="certificate chain in PEM: serve HTTPS")
        parser.add_argument("--ssl-keyfile", metavar="FILE", help="private key of the certificate in PEM")

    @printing_errors
    def run(self, args: argparse.Namespace) -> int:
        """Take the address, prepare the database and serve until a signal; return the exit status.

        A SQLite database is migrated. A PostgreSQL database, which other processes may use, is only checked. Where
        another program has the port, the database is not touched.
        """
        with _pausing_garbage_collection():
            server, listening = self._start(args)
        with listening:
            server.serve_until_signal()
        return 0

    def _start(self, args: argparse.Namespace) -> tuple[Server, socket.socket]:
        """Return the server and the socket at which it listens. Raises CommandError."""
        settings = read_settings(
            host=args.host,
            port=args.port,
            database_url=args.database_url,
            require_auth=args.require_auth,
            allowed_hosts=args.allowed_hosts,
            behind_proxy=args.behind_proxy,
            ssl_certfile=args.ssl_certfile,
            ssl_keyfile=args.ssl_keyfile,
        )
        from gradmedic_service.address import AddressError, take_address

        if args.with_worker is not None and not Path(args.with_worker).is_file():
            raise CommandError(f"there is no {args.with_worker}, which lists what a worker may run", EXIT_USAGE)
        try:
            listening = take_address(settings.host, settings.port)
        except AddressError as error:
            raise CommandError(str(error)) from None
        try:
            return _make_server(settings, listening, args.with_worker), listening
        except BaseException:
            listening.close()
            raise


SERVE = ServeCommand()


def _make_server(settings: Settings, listening: socket.socket, worker_file: str | None) -> Server:
    """Prepare the database and return the server. Raises CommandError."""
    from gradmedic_service.database.urls import printable_url
    from gradmedic_service.logs import set_up_logging
    from gradmedic_service.server import StartError, make_server

    set_up_logging(settings)
    prepare_database(settings)
    if settings.requires_keys and not _has_usable_key(settings):
        raise CommandError(_explain_first_key(settings), EXIT_USAGE)
    database_url = printable_url(settings.database_url.get_secret_value())

    def announce(address: str) -> None:
        print(f"gradmedic is at {address} (database: {database_url})", flush=True)

    try:
        return make_server(settings, listening, announce, worker_file)
    except StartError as error:
        raise CommandError(str(error)) from None


@contextmanager
def _pausing_garbage_collection() -> Iterator[None]:
    """Let no garbage be collected within the block, and leave its objects out of later collections.

    A start makes hundreds of thousands of objects that stay, and nearly no garbage: collecting it again and again takes
    a quarter of the start.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def _has_usable_key(settings: Settings) -> bool:
    from gradmedic_service.access import service
    from gradmedic_service.database.engine import Database

    database = Database(settings)
    try:
        with database.reading() as session:
            return service.has_usable_key(session)
    finally:
        database.close()


def _explain_first_key(settings: Settings) -> str:
    """Return why the service does not start without an API key, with the command that makes one."""
    from gradmedic_service.database.urls import printable_url
    from gradmedic_service.http.addresses import is_loopback
    from gradmedic_service.settings import default_database_url

    url = settings.database_url.get_secret_value()
    option = "" if url == default_database_url() else f" --database-url {printable_url(url)}"
    command = f"`gradmedic api-key create --all-projects --scope admin{option}`"
    if is_loopback(settings.host):
        cause = "--behind-proxy" if settings.behind_proxy else "--require-auth"
        return f"with {cause} every request needs an API key, and there is none yet. Make the first with {command}."
    return (
        f"other machines can reach {settings.host or 'that address'}, so every request needs an API key, and there is "
        f"none yet. Make the first with {command}, or listen at 127.0.0.1."
    )
