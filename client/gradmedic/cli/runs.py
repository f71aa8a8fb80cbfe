"""`gradmedic runs`: list runs with their verdicts."""

from __future__ import annotations

import argparse
import sys

from gradmedic.cli.command import add_connection_argument, make_client, positive_integer
from gradmedic.cli.references import missing_project
from gradmedic.cli.text import format_time, print_table
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.ids import short_id
from gradmedic.protocol.reviews import NO_REVIEW, REVIEW_ANSWERS
from gradmedic.protocol.runs import STATUSES
from gradmedic.protocol.verdicts import LEARNING_STATES, LEVELS, VERDICTS


class RunsCommand:
    """`gradmedic runs`."""

    help = "list runs with their verdicts, newest first"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_connection_argument(parser)
        parser.add_argument("--project", help="list runs of this project only")
        parser.add_argument("--verdict", choices=VERDICTS, help="list runs with this verdict only")
        parser.add_argument("--learning", choices=LEARNING_STATES, help="list runs whose loss does this only")
        parser.add_argument("--level", choices=LEVELS, help="list runs with this level only")
        parser.add_argument("--status", choices=STATUSES, help="list runs with this status only")
        parser.add_argument(
            "--review",
            choices=(*REVIEW_ANSWERS, NO_REVIEW),
            help="list runs whose verdict was reviewed with this answer only; `none`: not reviewed",
        )
        parser.add_argument("--tag", help="list runs with this tag only")
        parser.add_argument("--text", help="list runs with this text in their name only")
        parser.add_argument("--limit", type=positive_integer, default=50, help="number of runs at most (default: 50)")
        parser.add_argument("--json", action="store_true", help="print JSON, one run per line")

    def run(self, args: argparse.Namespace) -> int:
        """Print the runs."""
        with make_client(args) as client:
            matching = client.runs.list(
                project=args.project,
                verdict=args.verdict,
                learning=args.learning,
                level=args.level,
                status=args.status,
                review=args.review,
                tag=args.tag,
                text=args.text,
                page_size=min(args.limit, 1000),
            )
            runs = [run for run, _ in zip(matching, range(args.limit), strict=False)]
            if not runs and args.project and (missing := missing_project(client, args.project)) is not None:
                print(f"gradmedic: {missing}", file=sys.stderr)
        if args.json:
            for run in runs:
                print(to_json(run).decode())
        elif runs:
            rows = [
                (
                    short_id(run.id),
                    run.project,
                    run.name,
                    run.status,
                    run.level,
                    run.verdict,
                    _number_or_dash(run.since_step),
                    _number_or_dash(run.last_step),
                    format_time(run.updated_at),
                )
                for run in runs
            ]
            print_table(("ID", "PROJECT", "NAME", "STATUS", "LEVEL", "VERDICT", "SINCE", "STEP", "UPDATED"), rows)
        else:
            print("no runs")
        return 0


def _number_or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
