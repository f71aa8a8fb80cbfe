"""`gradmedic rediagnose`."""

from __future__ import annotations

import argparse
from uuid import UUID

from gradmedic_service.commands.errors import EXIT_USAGE, CommandError, printing_errors
from gradmedic_service.commands.options import add_database_option, read_settings


class RediagnoseCommand:
    """`gradmedic rediagnose`."""

    help = "diagnose runs again, from their stored steps, with the rules of this version"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's options."""
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument(
            "runs", nargs="*", default=[], metavar="RUN", help="id of a run, its beginning or its last 8 characters"
        )
        which.add_argument("--all", action="store_true", help="every run of the database")
        parser.add_argument("--json", action="store_true", help="print one JSON object for each run")
        add_database_option(parser)

    @printing_errors
    def run(self, args: argparse.Namespace) -> int:
        """Diagnose the runs again, print their verdicts, and return the exit status."""
        settings = read_settings(database_url=args.database_url)
        from gradmedic.cli.progress import Progress, progress_stream
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
            run_ids = rediagnosis.read_run_ids(database)
            if not args.all:
                run_ids = [_find_id(run_ids, reference) for reference in args.runs]
            with Progress("diagnosing", len(run_ids), "runs", progress_stream(is_quiet=args.json)) as progress:
                for number, run_id in enumerate(run_ids, 1):
                    done = rediagnosis.rediagnose(database, facts, run_id)
                    progress.clear()
                    if args.json:
                        result = {"run_id": run_id, "before": done.before, "after": done.after}
                        print(to_json(result).decode(), flush=True)
                    else:
                        was = "" if done.before == done.after else f" (was {done.before})"
                        print(f"{run_id}: {done.after}{was}", flush=True)
                    progress.update(number)
        finally:
            database.close()
        return 0


def _find_id(run_ids: list[UUID], reference: str) -> UUID:
    """Return the id of a run that an argument names. Raises CommandError if no run has this part, or several."""
    from gradmedic.protocol.ids import has_part

    try:
        return UUID(reference)
    except ValueError:
        found = [run_id for run_id in run_ids if has_part(run_id, reference)]
    if len(found) != 1:
        problem = f"{len(found)} runs have" if found else "no run has"
        examples = "".join(f"\n  {run_id}" for run_id in found[:10])
        raise CommandError(f"{problem} an id that begins or ends with {reference!r}{examples}", EXIT_USAGE)
    return found[0]


REDIAGNOSE = RediagnoseCommand()
