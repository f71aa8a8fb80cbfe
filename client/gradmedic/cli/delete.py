"""`gradmedic delete`: delete runs with all their steps."""

from __future__ import annotations

import argparse
import json
import sys

from gradmedic.cli.command import EXIT_ERROR, RUN_HELP, add_connection_argument, make_client
from gradmedic.cli.references import find_run
from gradmedic.cli.text import format_time, print_table
from gradmedic.exceptions import ApiError, UsageError
from gradmedic.protocol.ids import short_id
from gradmedic.protocol.runs import RunDetail


class DeleteCommand:
    """`gradmedic delete`."""

    help = "delete runs with all their steps; asks before it does"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_connection_argument(parser)
        parser.add_argument("runs", metavar="RUN", nargs="+", help=RUN_HELP)
        parser.add_argument("--project", help="look for the names in this project only")
        parser.add_argument("--yes", action="store_true", help="do not ask")
        parser.add_argument("--json", action="store_true", help="print JSON, one run per line; needs --yes")

    def run(self, args: argparse.Namespace) -> int:
        """Find all runs, ask, and delete them. The code is 2 if one could not be deleted."""
        if not args.yes and (args.json or not sys.stdin.isatty()):
            raise UsageError("give --yes: without a terminal there is no question")
        with make_client(args) as client:
            ids = dict.fromkeys(find_run(client, reference, args.project) for reference in args.runs)
            runs = [client.runs.get(id) for id in ids]
            if not args.yes and not _is_confirmed(runs):
                print("nothing was deleted")
                return EXIT_ERROR
            code = 0
            for run in runs:
                error: str | None = None
                try:
                    client.runs.delete(run.id)
                except ApiError as refusal:
                    error, code = str(refusal), EXIT_ERROR
                    print(f"gradmedic: {run.id} is kept: {refusal}", file=sys.stderr)
                if args.json:
                    print(json.dumps({"id": str(run.id), "is_deleted": error is None, "error": error}))
                elif error is None:
                    print(f"{run.id}: deleted")
        return code


def _is_confirmed(runs: list[RunDetail]) -> bool:
    """Show the runs and ask whether they are to be deleted."""
    header = ("ID", "PROJECT", "NAME", "STATUS", "STEP", "CREATED")
    rows = [
        (
            short_id(run.id),
            run.project,
            run.name,
            run.status,
            "-" if run.last_step is None else str(run.last_step),
            format_time(run.created_at),
        )
        for run in runs
    ]
    print_table(header, rows)
    what = "this run" if len(runs) == 1 else f"these {len(runs)} runs"
    try:
        answer = input(f"Delete {what} with all steps and reruns? [y/N] ")
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes")
