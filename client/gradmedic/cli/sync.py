"""`gradmedic sync`: send the steps that processes recorded on disk and could not send."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gradmedic.api import call_with_retries
from gradmedic.cli.command import EXIT_ERROR, add_connection_argument
from gradmedic.cli.progress import Progress, progress_stream
from gradmedic.configuration import resolve_connection, resolve_directory
from gradmedic.exceptions import ApiError, GradmedicError, UsageError
from gradmedic.transport.http import Service, is_retryable

if TYPE_CHECKING:
    from gradmedic.upload.replay import Replay


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
        parser.add_argument(
            "--wait",
            metavar="SECONDS",
            type=float,
            default=0.0,
            help="try again for so long while the service does not answer (default: a few attempts)",
        )
        parser.add_argument("--json", action="store_true", help="print JSON, one session per line")

    def run(self, args: argparse.Namespace) -> int:
        """Send every session whose process has ended.

        A session that the service refuses, or of which a file cannot be opened, stays on disk. The code is 0 only if
        the service has everything.
        """
        directory = resolve_directory(args.dir)
        if args.dir is not None and not directory.is_dir():
            raise UsageError(f"there is no folder {directory}")
        service = Service(resolve_connection(args.base_url))
        from gradmedic.upload.replay import find_sessions  # here, because it needs numpy, and --help does not

        try:
            found = find_sessions(service, directory)
        except OSError as error:
            raise UsageError(f"cannot read the folder {directory}: {error}") from error
        deadline = time.monotonic() + args.wait
        is_complete = not found.unreadable
        total = sum(replay.remaining for replay in found.replays)
        for session in found.unreadable:
            _report(args, SyncResult(str(session.run_id), error=str(session)))
        try:
            with Progress("sending", None, "steps", progress_stream(is_quiet=args.json)) as progress:

                def show_progress() -> None:
                    left = sum(replay.remaining for replay in found.replays)
                    progress.update(total - left, total)

                for replay in found.replays:
                    result = _send(replay, show_progress, deadline)
                    is_complete &= result.error is None and not replay.damage and not replay.refused
                    progress.clear()
                    _report(args, result, replay, f"{service.base_url}/runs/{replay.run_id}")
        finally:
            for replay in found.replays:
                replay.release()
            service.close()
        if not found.replays and not found.unreadable and not args.json:
            print(f"nothing to send in {directory}")
        return 0 if is_complete else EXIT_ERROR


@dataclass(frozen=True, slots=True)
class SyncResult:
    """The result for one session, as `--json` prints it."""

    run_id: str
    steps: int = 0
    """Number of steps that the service has now."""
    kept_steps: int = 0
    """Number of steps that stay on disk for another attempt."""
    error: str | None = None
    """The reason why they stay."""
    refused_steps: int = 0
    """Number of steps that the service refused. They are lost."""
    unreadable_steps: int = 0
    """Number of steps that cannot be read; about that, if nothing readable follows them."""
    unreadable_bytes: int = 0
    damaged_files: list[str] = field(default_factory=list)
    """Files with what cannot be read."""


def _send(replay: Replay, on_block: Callable[[], None], deadline: float) -> SyncResult:
    """Send one session, and delete it if all of it was sent that can be read; call `on_block` after each block.

    A service that does not answer is tried again until `deadline`, by `time.monotonic()`.

    Raises:
        TransportError: the service cannot be reached.
    """
    error: str | None = None
    try:
        while not _send_next(replay, deadline):
            on_block()
        replay.delete()
    except (ApiError, OSError) as reason:
        error = f"{replay.run_id} is kept, {replay.remaining} steps: {reason}"
    return SyncResult(
        run_id=str(replay.run_id),
        steps=replay.sent,
        kept_steps=0 if error is None else replay.remaining,
        error=error,
        refused_steps=replay.refused,
        unreadable_steps=replay.damage.steps,
        unreadable_bytes=replay.damage.bytes,
        damaged_files=[str(path) for path in replay.damaged_files],
    )


def _send_next(replay: Replay, deadline: float) -> bool:
    while True:
        try:
            return call_with_retries(replay.send_next)
        except GradmedicError as error:
            if not is_retryable(error) or time.monotonic() >= deadline:
                raise


def _report(args: argparse.Namespace, result: SyncResult, replay: Replay | None = None, page: str = "") -> None:
    """Print the result of one session, and what is wrong as text to stderr."""
    if args.json:
        print(json.dumps(dataclasses.asdict(result)))
    elif result.error is None:
        print(f"{result.run_id}: {result.steps} steps sent, see {page}")
    if result.error is not None:
        sys.stderr.write(f"gradmedic: {result.error}\n")
    if result.refused_steps:
        sys.stderr.write(
            f"gradmedic: the service refused {result.refused_steps} steps of run {result.run_id}, they are lost\n"
        )
    if replay is not None and replay.damage:
        sys.stderr.write(f"gradmedic: {replay.describe_damage()}\n")
