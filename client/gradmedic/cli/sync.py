"""`gradmedic sync`: send the steps that processes recorded on disk and could not send."""

from __future__ import annotations

import argparse
import json
import sys

from gradmedic.api import call_with_retries
from gradmedic.cli.command import EXIT_ERROR, add_connection_argument
from gradmedic.configuration import resolve_connection, resolve_directory
from gradmedic.exceptions import ApiError, UsageError
from gradmedic.transport.http import Service
from gradmedic.upload.replay import find_replays


class SyncCommand:
    """`gradmedic sync`."""

    help = "send what offline runs recorded, and what other runs could not send"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_connection_argument(parser)
        parser.add_argument(
            "dir",
            metavar="DIR",
            nargs="?",
            help="folder with the unsent steps of runs (default: $GRADMEDIC_DIR or ./.gradmedic)",
        )
        parser.add_argument("--json", action="store_true", help="print JSON, one session per line")

    def run(self, args: argparse.Namespace) -> int:
        """Send every session whose process has ended. A session that the service refuses stays on disk."""
        directory = resolve_directory(args.dir)
        if args.dir is not None and not directory.is_dir():
            raise UsageError(f"there is no folder {directory}")
        service = Service(resolve_connection(args.base_url))
        replays = find_replays(service, directory)
        try:
            refused = 0
            for replay in replays:
                try:
                    call_with_retries(replay.send_all)
                except ApiError as error:
                    refused += 1
                    sys.stderr.write(f"gradmedic: {replay.run_id} is kept, {replay.remaining} steps: {error}\n")
                    continue
                replay.delete()
                if args.json:
                    print(json.dumps({"run_id": str(replay.run_id), "steps": replay.sent}))
                else:
                    print(f"{replay.run_id}: {replay.sent} steps sent, see {service.base_url}/runs/{replay.run_id}")
        finally:
            for replay in replays:
                replay.release()
            service.close()
        if not replays and not args.json:
            print(f"nothing to send in {directory}")
        return EXIT_ERROR if refused else 0
