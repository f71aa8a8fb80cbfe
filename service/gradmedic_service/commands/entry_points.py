"""The service's commands: `gradmedic serve`, `gradmedic db`, `gradmedic api-key` and `gradmedic rediagnose`.

Each is an object that `gradmedic.cli` finds through the entry-point group `gradmedic.commands`. Importing this module
is cheap: what a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from gradmedic.protocol.access import SCOPES, ApiKeyCreate

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
            help="ask for an API key from this machine too; from others it is always asked for",
        )

        parser.add_argument(
            "--allowed-host",
            dest="allowed_hosts",
            action="append",
            metavar="NAME",
            help="answer under this name too; may be given again (default: this machine's; every one where keys are "
            "asked for)",
        )
        parser.add_argument(
            "--behind-proxy",
            action="store_true",
            default=None,
            help="believe the X-Forwarded headers of a proxy on this machine, or on FORWARDED_ALLOW_IPS; asks for keys",
        )
        parser.add_argument("--ssl-certfile", metavar="FILE", help="certificate chain in PEM: speak HTTPS")
        parser.add_argument("--ssl-keyfile", metavar="FILE", help="its private key in PEM")

    def run(self, args: argparse.Namespace) -> int:
        """Serve until told to stop; return the exit status."""
        settings = _settings(
            host=args.host,
            port=args.port,
            database_url=args.database_url,
            require_auth=args.require_auth,
            allowed_hosts=args.allowed_hosts,
            behind_proxy=args.behind_proxy,
            ssl_certfile=args.ssl_certfile,
            ssl_keyfile=args.ssl_keyfile,
        )
        if settings is None:
            return EXIT_USAGE
        from gradmedic_service.commands.serving import serve

        return serve(settings, args.with_worker)


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
        from gradmedic_service.commands.serving import change_schema

        return change_schema(settings, args.action, getattr(args, "revision", None))


class ApiKeyCommand:
    """`gradmedic api-key`."""

    help = "make, list and revoke API keys, in the database itself"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the actions."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        create = actions.add_parser("create", help="make a key and print its secret, once")
        reach = create.add_mutually_exclusive_group(required=True)
        reach.add_argument("--project", metavar="NAME", help="the project that the key reaches")
        reach.add_argument("--all-projects", action="store_true", help="the key reaches every project")
        create.add_argument(
            "--scope",
            dest="scopes",
            action="append",
            required=True,
            choices=SCOPES,
            help="what the key may do; may be given again (`admin` includes the others)",
        )
        create.add_argument("--name", help="who or what uses it: a job, a person, a worker")
        create.add_argument(
            "--expires",
            type=_moment,
            metavar="WHEN",
            help="in so many days, hours or minutes (30d, 12h, 5m), or a date",
        )
        create.add_argument(
            "--from-file",
            type=Path,
            metavar="FILE",
            help="take the secret from FILE, or write a new one to it; the same again changes nothing",
        )
        show = actions.add_parser("list", help="list keys with their last use")
        show.add_argument("--project", metavar="NAME", help="only of this project")
        revoke = actions.add_parser("revoke", help="let a key be accepted no more")
        revoke.add_argument("key", metavar="KEY", help="id, name, or what `list` shows of the secret")
        for action in (create, show):
            action.add_argument("--json", action="store_true", help="print one JSON object a key")
        for action in (create, show, revoke):
            _add_database_argument(action)

    def run(self, args: argparse.Namespace) -> int:
        """Carry out an action; return the exit status."""
        settings = _settings(database_url=args.database_url)
        if settings is None:
            return EXIT_USAGE
        from gradmedic_service.commands import api_keys as cli

        if args.action == "list":
            return cli.show(settings, args.project, as_json=args.json)
        if args.action == "revoke":
            return cli.revoke(settings, args.key)
        wanted = ApiKeyCreate(
            project=args.project,
            name=args.name,
            scopes=list(dict.fromkeys(args.scopes)),
            expires_at=args.expires,
        )
        return cli.create(settings, wanted, args.from_file, as_json=args.json)


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
        from gradmedic_service.commands.serving import rediagnose

        return rediagnose(settings, None if args.all else args.runs, as_json=args.json)


SERVE = ServeCommand()
DB = DatabaseCommand()
API_KEY = ApiKeyCommand()
REDIAGNOSE = RediagnoseCommand()


def _add_database_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--database-url",
        metavar="URL",
        help="sqlite:///path/to/file.db or postgresql://user:password@host/name "
        "(default: GRADMEDIC_DATABASE_URL, else .gradmedic/gradmedic.db)",
    )


def _moment(text: str) -> datetime:
    """Return the moment that `30d`, `12h`, `5m` from now or a date means."""
    units = {"d": "days", "h": "hours", "m": "minutes"}
    if text[:-1].isdecimal() and text[-1:] in units:
        return datetime.now(UTC) + timedelta(**{units[text[-1]]: int(text[:-1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be like 30d, 12h, 5m or 2027-01-31, not {text!r}") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _settings(**given: Any) -> Settings | None:
    """Return the settings, or print what is wrong with them."""
    from pydantic import ValidationError

    from gradmedic_service.database.engine import parse_url
    from gradmedic_service.settings import Settings

    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
        parse_url(settings.database_url.get_secret_value())
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            name = f"GRADMEDIC_{'_'.join(map(str, problem['loc'])).upper()}: " if problem["loc"] else ""
            print(f"gradmedic: {name}{problem['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        return None
    except ValueError as error:
        print(f"gradmedic: {error}", file=sys.stderr)
        return None
    return settings
