"""`gradmedic export`: write a run to a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gradmedic.cli.command import add_connection_argument, find_run, make_client
from gradmedic.exceptions import UsageError
from gradmedic.protocol.encoding import to_json

DEFAULT_FILE = "run.gradmedic"


class ExportCommand:
    """`gradmedic export`."""

    help = "write a run to a file: an anonymous recording, which `gradmedic diagnose FILE` replays"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_connection_argument(parser)
        parser.add_argument("run", metavar="RUN", help="id, beginning of an id, or name of the run")
        parser.add_argument("--project", help="look for the name in this project only")
        parser.add_argument(
            "--recording",
            action="store_true",
            help="export all steps, with hashed names and without what identifies the run",
        )
        parser.add_argument(
            "-o", "--output", type=Path, default=Path(DEFAULT_FILE), metavar="FILE", help=f"default: {DEFAULT_FILE}"
        )
        parser.add_argument(
            "--metric", action="append", default=[], metavar="NAME", help="export this metric too; may be repeated"
        )
        parser.add_argument("--keep-names", action="store_true", help="do not hash the names of the metrics")
        parser.add_argument("--json", action="store_true", help="print what was written as JSON")

    def run(self, args: argparse.Namespace) -> int:
        """Write the file."""
        from gradmedic.export.recording import export_recording  # here: the other commands need it not

        if not args.recording:
            raise UsageError("name what to export: --recording")
        if args.keep_names and not args.metric:
            raise UsageError("--keep-names belongs to --metric: without a metric no name is kept")
        with make_client(args) as client:
            run_id = find_run(client, args.run, args.project)
            written = export_recording(
                client, run_id, args.output, metrics=args.metric, keeps_metric_names=args.keep_names
            )
        if args.json:
            print(to_json(written).decode())
        else:
            print(f"{written.file}: {written.steps} steps, {written.bytes} bytes")
        if written.lacks_objective:
            message = "the metric of the run's objective is not in the file, so a replay judges without it"
            print(f"gradmedic: {message}; --metric exports it", file=sys.stderr)
        return 0
