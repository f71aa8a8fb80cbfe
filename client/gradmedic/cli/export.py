"""`gradmedic export`: write a run to a file, as a table of its steps, as JSON, or as an anonymous recording."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from gradmedic.api import Client
from gradmedic.cli.command import RUN_HELP, add_connection_argument, make_client
from gradmedic.cli.progress import Progress, progress_stream
from gradmedic.cli.references import find_run
from gradmedic.exceptions import UsageError
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.runs import RunDetail

FORMATS = ("csv", "jsonl", "parquet", "json")
RECORDING_FILE = "run.gradmedic"
STANDARD_OUTPUT = "-"


class ExportCommand:
    """`gradmedic export`."""

    help = "write a run to a file: its steps as a table, the run with its diagnosis as JSON, or an anonymous recording"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_connection_argument(parser)
        parser.add_argument("run", metavar="RUN", help=RUN_HELP)
        parser.add_argument("--project", help="look for the name in this project only")
        parser.add_argument(
            "--format",
            choices=FORMATS,
            help="csv, jsonl and parquet have all steps with all numbers; json has the run, its diagnosis and its "
            "history (default: the ending of FILE)",
        )
        parser.add_argument(
            "--recording",
            action="store_true",
            help="export all steps, with hashed names and without what identifies the run: `gradmedic diagnose FILE` "
            "replays it",
        )
        parser.add_argument(
            "-o",
            "--output",
            metavar="FILE",
            help=f"the file, which must not exist; {STANDARD_OUTPUT} is the standard output (default: run.FORMAT, or "
            f"{RECORDING_FILE})",
        )
        parser.add_argument(
            "--metric",
            action="append",
            default=[],
            metavar="NAME",
            help="export this metric in a recording too; may be repeated",
        )
        parser.add_argument("--keep-names", action="store_true", help="do not hash the names of a recording's metrics")
        parser.add_argument("--json", action="store_true", help="print what was written as JSON, and no progress")

    def run(self, args: argparse.Namespace) -> int:
        """Write the file."""
        file_format = _choose_format(args)
        with make_client(args) as client:
            run_id = find_run(client, args.run, args.project)
            if file_format is None:
                return _export_recording(client, run_id, args)
            output = args.output or f"run.{file_format}"
            if output != STANDARD_OUTPUT and Path(output).exists():
                raise UsageError(f"{output} exists already; name another file by -o")
            run = client.runs.get(run_id)
            steps = _write(client, run, file_format, output, is_quiet=args.json)
        if output == STANDARD_OUTPUT:
            return 0
        size = Path(output).stat().st_size
        if args.json:
            print(to_json({"file": output, "steps": steps, "bytes": size}).decode())
        else:
            print(f"{output}: " + ("" if steps is None else f"{steps} steps, ") + f"{size} bytes")
        return 0


def _choose_format(args: argparse.Namespace) -> str | None:
    """Return the format that the arguments ask for; None for a recording. Raises UsageError."""
    ending = "" if args.output is None else args.output.rpartition(".")[2]
    is_recording = args.recording or (args.format is None and ending == "gradmedic")
    if is_recording and args.format is not None:
        raise UsageError("give either --format or --recording")
    if not is_recording and (args.metric or args.keep_names):
        raise UsageError(
            f"--{'metric' if args.metric else 'keep-names'} belongs to --recording: a table has all metrics"
        )
    if args.keep_names and not args.metric:
        raise UsageError("--keep-names belongs to --metric: without a metric no name is kept")
    if is_recording:
        if args.output == STANDARD_OUTPUT:
            raise UsageError("a recording needs a file: name it by -o")
        return None
    file_format: str = args.format or (ending if ending in FORMATS else "")
    if not file_format:
        raise UsageError(f"name what to export: --format {', '.join(FORMATS)}, or --recording")
    if args.output == STANDARD_OUTPUT and args.json:
        raise UsageError(f"--json needs a file: {STANDARD_OUTPUT} prints the export itself")
    return file_format


def _write(client: Client, run: RunDetail, file_format: str, output: str, *, is_quiet: bool) -> int | None:
    """Write a run to a file or to the standard output; return the number of written steps, None if it has none."""
    path = Path(output)
    steps: int | None = None
    partial = path.with_name(path.name + ".partial")
    try:
        with ExitStack() as stack:
            file: BinaryIO
            file = sys.stdout.buffer if output == STANDARD_OUTPUT else stack.enter_context(partial.open("wb"))
            if file_format == "json":
                file.write(run_to_json(client, run) + b"\n")
            else:
                from gradmedic.export.tables import write_table  # here: it needs numpy, and --help does not

                stream = None if output == STANDARD_OUTPUT else progress_stream(is_quiet=is_quiet)
                total = 0 if run.last_step is None else run.last_step + 1
                progress = stack.enter_context(Progress("exporting", total, "steps", stream))
                steps = write_table(client, run, file_format, file, progress.update)
            file.flush()
        if output != STANDARD_OUTPUT:
            partial.replace(path)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from error
    finally:
        if output != STANDARD_OUTPUT:
            partial.unlink(missing_ok=True)
    return steps


def run_to_json(client: Client, run: RunDetail) -> bytes:
    """Return a run, its diagnosis and history, what its guards did, and its reruns as one JSON object."""
    diagnosis = client.runs.diagnosis(run.id)
    content = {
        "run": run,
        "diagnosis": diagnosis,
        "history": client.runs.history(run.id),
        "guard_actions": [] if diagnosis.guards is None else [*client.runs.guard_actions(run.id)],
        "reruns": [client.reruns.get(rerun.id) for rerun in client.reruns.list(run_id=run.id)],
    }
    return to_json(content)


def _export_recording(client: Client, run_id: UUID, args: argparse.Namespace) -> int:
    """Write an anonymous recording."""
    from gradmedic.export.recording import export_recording  # here: it needs numpy, and --help does not

    with Progress("exporting", None, "steps", progress_stream(is_quiet=args.json)) as progress:
        written = export_recording(
            client,
            run_id,
            Path(args.output or RECORDING_FILE),
            metrics=args.metric,
            keeps_metric_names=args.keep_names,
            on_block=progress.update,
        )
    if args.json:
        print(to_json(written).decode())
    else:
        print(f"{written.file}: {written.steps} steps, {written.bytes} bytes")
    if written.lacks_objective:
        message = "the metric of the run's objective is not in the file, so a replay judges without it"
        print(f"gradmedic: {message}; --metric exports it", file=sys.stderr)
    return 0
