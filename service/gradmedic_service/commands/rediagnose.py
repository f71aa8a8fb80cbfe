"""`gradmedic rediagnose`."""

from __future__ import annotations

import argparse
from uuid import UUID

from gradmedic_service.commands.errors import CommandError, printing_errors
from gradmedic_service.commands.options import add_database_option, read_settings


class RediagnoseCommand:
    """`gradmedic rediagnose`."""

    help = "diagnose runs again, from their stored steps, with the rules of this version"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's options."""
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("runs", nargs="*", type=UUID, default=[], metavar="RUN", help="id of a run")
        which.add_argument("--all", action="store_true", help="every run of the database")
        parser.add_argument("--json", action="store_true", help="print one JSON object for each run")
        add_database_option(parser)

    @printing_errors
    def run(self, args: argparse.Namespace) -> int:
        """Diagnose the runs again, print their verdicts, and return the exit status."""
        settings = read_settings(database_url=args.database_url)
        from gradmedic.protocol.encoding import to_json
        from gradmedic_service.database import schema
        from gradmedic_service.database.engine import Database
        from gradmedic_service.database.urls import is_missing, printable_url
        from gradmedic_service.runs.facts import FactsCache
        from gradmedic_service.telemetry import rediagnosis

        url = settings.database_url.get_secret_value()
        if is_missing(url):
            raise CommandError(f"there is no database at {printable_url(url)}.")
        database, facts = Database(settings), FactsCache()
        try:
            schema.check_revision(database, schema.head())
            for run_id in rediagnosis.read_run_ids(database) if args.all else args.runs:
                done = rediagnosis.rediagnose(database, facts, run_id)
                if args.json:
                    print(to_json({"run_id": run_id, "before": done.before, "after": done.after}).decode(), flush=True)
                else:
                    was = "" if done.before == done.after else f" (was {done.before})"
                    print(f"{run_id}: {done.after}{was}", flush=True)
        finally:
            database.close()
        return 0


REDIAGNOSE = RediagnoseCommand()
