"""`gradmedic api-key`."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gradmedic.protocol.access import SCOPES, ApiKeyCreate
from gradmedic.protocol.schema import time_error
from gradmedic_service.commands.errors import printing_errors
from gradmedic_service.commands.options import add_database_option, prepare_database, read_settings

UNITS = {"d": "days", "h": "hours", "m": "minutes"}


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
        create.add_argument("--name", help="the job, person or worker that uses the key")
        create.add_argument(
            "--expires",
            type=_parse_expiry,
            metavar="WHEN",
            help="end of the key: in days, hours or minutes (30d, 12h, 5m), or a date",
        )
        create.add_argument(
            "--from-file",
            type=Path,
            metavar="FILE",
            help="take the secret from FILE, or write a new one to it; the same command again changes nothing",
        )
        list_keys = actions.add_parser("list", help="list keys with their last use")
        list_keys.add_argument("--project", metavar="NAME", help="only keys of this project")
        revoke = actions.add_parser("revoke", help="make the service refuse a key from now on")
        revoke.add_argument("key", metavar="KEY", help="id or name of the key, or what `list` shows of its secret")
        for action in (create, list_keys):
            action.add_argument("--json", action="store_true", help="print one JSON object for each key")
        for action in (create, list_keys, revoke):
            add_database_option(action)

    @printing_errors
    def run(self, args: argparse.Namespace) -> int:
        """Carry out an action; return the exit status."""
        settings = read_settings(database_url=args.database_url)
        from gradmedic_service.access.validation import check_new_key
        from gradmedic_service.commands import api_key_actions as actions
        from gradmedic_service.database.engine import Database

        if args.action == "create":
            scopes = list(dict.fromkeys(args.scopes))
            key = ApiKeyCreate(project=args.project, name=args.name, scopes=scopes, expires_at=args.expires)
            check_new_key(key, settings.limits())
        prepare_database(settings)
        database = Database(settings)
        try:
            if args.action == "create":
                actions.create_key(database, key, args.from_file, as_json=args.json)
            elif args.action == "list":
                actions.print_keys(database, args.project, as_json=args.json)
            else:
                actions.revoke_key(database, args.key)
        finally:
            database.close()
        return 0


API_KEY = ApiKeyCommand()


def _parse_expiry(text: str) -> datetime:
    """Return the time that `30d`, `12h` or `5m` from now is, or that a date names; without a zone it is UTC."""
    try:
        if text[:-1].isdecimal() and text[-1:] in UNITS:
            moment = datetime.now(UTC) + timedelta(**{UNITS[text[-1]]: int(text[:-1])})
        else:
            moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"must be like 30d, 12h, 5m or 2027-01-31, not {text!r}") from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    if (message := time_error(moment)) is not None:
        raise argparse.ArgumentTypeError(f"{message}, not {text!r}")
    return moment
