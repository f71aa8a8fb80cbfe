"""`gradmedic db`."""

from __future__ import annotations

import argparse

from gradmedic_service.commands.errors import CommandError, printing_errors
from gradmedic_service.commands.options import add_database_option, read_settings


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
            add_database_option(action)

    @printing_errors
    def run(self, args: argparse.Namespace) -> int:
        """Carry out an action, print the revision of the schema, and return the exit status."""
        settings = read_settings(database_url=args.database_url)
        from gradmedic_service.database import schema
        from gradmedic_service.database.urls import create_parent_folder, is_missing, printable_url

        url = settings.database_url.get_secret_value()
        if args.action == "upgrade":
            try:
                create_parent_folder(url)
            except OSError as error:
                raise CommandError(f"the database cannot be prepared: {error}") from None
            schema.upgrade(url, args.revision)
        elif is_missing(url):
            raise CommandError(f"there is no database at {printable_url(url)}: run `{schema.UPGRADE_COMMAND}`.")
        elif args.action == "downgrade":
            schema.downgrade(url, args.revision)
        revision = schema.current(url)
        print(f"{printable_url(url)}: revision {revision or 'none'}, this version needs {schema.head()}")
        return 0


DB = DatabaseCommand()
