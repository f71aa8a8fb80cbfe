"""`gradmedic locate`: rerun a run to the step before it became non-finite, and name the operation that began it."""

from __future__ import annotations

import argparse

from gradmedic.cli.command import EXIT_ERROR, RUN_HELP, add_connection_argument, make_client, positive_integer
from gradmedic.cli.progress import progress_stream
from gradmedic.cli.references import find_run
from gradmedic.cli.rerun import describe_plan, follow_rerun, render_rerun
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.reruns import EXECUTORS


class LocateCommand:
    """`gradmedic locate`."""

    help = "rerun a run to the step before it became non-finite, and name operation and source line"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_connection_argument(parser)
        parser.add_argument("run", metavar="RUN", help=RUN_HELP)
        parser.add_argument("--project", help="look for the name in this project only")
        parser.add_argument(
            "--steps",
            type=positive_integer,
            help="number of steps of a trial (default: those up to the failure, and some more)",
        )
        parser.add_argument("--seconds", type=float, help="seconds that all trials may take together")
        parser.add_argument(
            "--trials",
            type=positive_integer,
            help="number of trials at most; 1 only locates, and further ones repeat it (default: 4)",
        )
        parser.add_argument("--executor", choices=EXECUTORS, help="executor of the workers (default: any)")
        parser.add_argument("--detach", action="store_true", help="do not wait for the end of the rerun")
        parser.add_argument("--json", action="store_true", help="print the rerun as JSON")

    def run(self, args: argparse.Namespace) -> int:
        """Show the cost, create the rerun, follow it, and print the origin."""
        progress = progress_stream(is_quiet=args.json)
        limits = {"steps": args.steps, "seconds": args.seconds, "trials": args.trials}
        with make_client(args) as client:
            run_id = find_run(client, args.run, args.project)
            if progress is not None:
                plan = client.reruns.plan(run_id, kind="locate", **limits)
                print(describe_plan(plan), file=progress, flush=True)
            rerun = client.reruns.create(run_id, kind="locate", executor=args.executor, **limits)
            if not args.detach:
                rerun = follow_rerun(client, rerun.id, progress, title="locating")
        print(to_json(rerun).decode() if args.json else render_rerun(rerun))
        has_located = rerun.origin is not None and rerun.origin.operation is not None
        return 0 if has_located or rerun.status in ("queued", "running") else EXIT_ERROR
