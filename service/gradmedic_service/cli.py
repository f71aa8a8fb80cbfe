"""The service's commands: `gradmedic serve`, `gradmedic db` and `gradmedic rediagnose`.

Each is an object that `gradmedic.cli` finds through the entry-point group `gradmedic.commands`. Importing this module
is cheap: what a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import ipaddress
import socket
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from gradmedic_service.settings import Settings

EXIT_USAGE = 2
EXIT_FAILURE = 1


class ServeCommand:
    """`gradmedic serve`."""

    help = "start the service"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's options; those left out come from GRADMEDIC_* or the defaults."""
        parser.add_argument("--host", help="address to listen at (default: 127.0.0.1, this machine only)")
        parser.add_argument("--port", type=int, help="port to listen at (default: 8642; 0: a free one)")
        _add_database_argument(parser)
        parser.add_argument(
            "--allow-unauthenticated-network",
            action="store_true",
            default=None,
            help="listen beyond this machine although nothing checks who connects",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Serve until told to stop; return the exit status."""
        settings = _settings(
            host=args.host,
            port=args.port,
            database_url=args.database_url,
            allow_unauthenticated_network=args.allow_unauthenticated_network,
        )
        if settings is None:
            return EXIT_USAGE
        from gradmedic_service.serving import serve

        return serve(settings)


class DatabaseCommand:
    """`gradmedic db`."""

    help = "create, upgrade, downgrade or check the database's schema"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the actions."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        upgrade = actions.add_parser("upgrade", help="bring the schema to what this version needs")
        upgrade.add_argument("revision", nargs="?", default="head")
        downgrade = actions.add_parser("downgrade", help="take the schema back to a revision; `base` removes all data")
        downgrade.add_argument("revision")
        current = actions.add_parser("current", help="print the revision of the schema and the one needed")
        for action in (upgrade, downgrade, current):
            _add_database_argument(action)

    def run(self, args: argparse.Namespace) -> int:
        """Carry out an action; return the exit status."""
        settings = _settings(database_url=args.database_url)
        if settings is None:
            return EXIT_USAGE
        from gradmedic_service.serving import change_schema

        return change_schema(settings, args.action, getattr(args, "revision", None))


class RediagnoseCommand:
    """`gradmedic rediagnose`."""

    help = "build diagnoses anew from the stored steps, with the code of today"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's options."""
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("runs", nargs="*", type=UUID, default=[], metavar="RUN", help="id of a run")
        which.add_argument("--all", action="store_true", help="every run of the database")
        parser.add_argument("--json", action="store_true", help="print one JSON object a run")
        _add_database_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Rediagnose; return the exit status."""
        settings = _settings(database_url=args.database_url)
        if settings is None:
            return EXIT_USAGE
        from gradmedic_service.serving import rediagnose

        return rediagnose(settings, None if args.all else args.runs, as_json=args.json)


SERVE = ServeCommand()
DB = DatabaseCommand()
REDIAGNOSE = RediagnoseCommand()


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "")]
    [True, True, True, False, False]
    """
    if not host:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)


def _add_database_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--database-url",
        metavar="URL",
        help="sqlite:///path/to/file.db or postgresql://user:password@host/name "
        "(default: GRADMEDIC_DATABASE_URL, else .gradmedic/gradmedic.db)",
    )


def _settings(**given: Any) -> Settings | None:
    """Return the settings, or print what is wrong with them."""
    from pydantic import ValidationError

    from gradmedic_service.db import parse_url
    from gradmedic_service.settings import Settings

    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
        parse_url(settings.database_url.get_secret_value())
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            name = "_".join(map(str, problem["loc"])).upper()
            print(f"gradmedic: GRADMEDIC_{name}: {problem['msg']}", file=sys.stderr)
        return None
    except ValueError as error:
        print(f"gradmedic: {error}", file=sys.stderr)
        return None
    return settings
