"""Finds the command that the arguments name, and runs it.

A command of another package is imported only when the arguments name it. If its extra is not installed, the error
names the extra.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Mapping, Sequence

from gradmedic.cli.command import EXIT_ERROR, Command
from gradmedic.cli.diagnose import DiagnoseCommand
from gradmedic.cli.export import ExportCommand
from gradmedic.cli.rerun import RerunCommand
from gradmedic.cli.review import ReviewCommand
from gradmedic.cli.runs import RunsCommand
from gradmedic.cli.sync import SyncCommand
from gradmedic.exceptions import ConfigurationError, GradmedicError, TransportError
from gradmedic.version import __version__

COMMANDS_GROUP = "gradmedic.commands"
"""Entry-point group of the commands of other packages."""
EXIT_INTERRUPTED = 130
_NO_SERVICE_HINT = (
    "\nIs the service running? `gradmedic serve` starts one here; --base-url or GRADMEDIC_BASE_URL names another."
)

_CLIENT_COMMANDS: Mapping[str, Command] = {
    "diagnose": DiagnoseCommand(),
    "export": ExportCommand(),
    "rerun": RerunCommand(),
    "review": ReviewCommand(),
    "runs": RunsCommand(),
    "sync": SyncCommand(),
}
_OWN_PACKAGES = ("gradmedic", "gradmedic_diagnosis", "gradmedic_service", "gradmedic_worker")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _run_command(arguments)
    except TransportError as error:
        hint = _NO_SERVICE_HINT if error.status is None else ""
        print(f"gradmedic: {error}{hint}", file=sys.stderr)
        return EXIT_ERROR
    except GradmedicError as error:
        print(f"gradmedic: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `gradmedic runs | head`
        sys.stderr.close()
        return 0


def _run_command(arguments: Sequence[str]) -> int:
    entry_points = {
        entry_point.name: entry_point for entry_point in importlib.metadata.entry_points(group=COMMANDS_GROUP)
    }
    parser = argparse.ArgumentParser(
        prog="gradmedic",
        description="Reads the gradients of any training job and shows what is wrong, why, and what fixes it.",
    )
    parser.add_argument("--version", action="version", version=f"gradmedic {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    # Only the command that the arguments name is imported. --help without a command imports all that are installed.
    command_name = next((argument for argument in arguments if not argument.startswith("-")), None)
    shows_all = command_name is None and (not arguments or not {"-h", "--help"}.isdisjoint(arguments))
    for name in sorted({*_CLIENT_COMMANDS, *entry_points}):
        command: Command | None = _CLIENT_COMMANDS.get(name)
        if command is None and (shows_all or command_name == name):
            command = _load(entry_points[name], is_needed=command_name == name)
        help_text = _needed_extra(entry_points[name]) if command is None else command.help
        subparser = subparsers.add_parser(name, help=help_text, description=command.help if command else None)
        if command is not None:
            command.add_arguments(subparser)
            subparser.set_defaults(command=command)
    if not arguments:
        parser.print_help()
        return 0
    args = parser.parse_args(arguments)
    chosen: Command = args.command
    if command_name not in entry_points:
        return chosen.run(args)
    try:
        return chosen.run(args)
    except ModuleNotFoundError as error:  # a command may import what it needs only when it runs
        raise _missing_extra(entry_points[command_name], error) from error


def _load(entry_point: importlib.metadata.EntryPoint, *, is_needed: bool) -> Command | None:
    try:
        command: Command = entry_point.load()
    except ModuleNotFoundError as error:
        if not is_needed:
            return None
        raise _missing_extra(entry_point, error) from error
    return command


def _missing_extra(entry_point: importlib.metadata.EntryPoint, error: ModuleNotFoundError) -> Exception:
    """Return an error that names the extra of a command; the same error if a module of our own is missing."""
    if (error.name or "").partition(".")[0] in _OWN_PACKAGES or not entry_point.extras:
        return error
    extra = entry_point.extras[0]
    return ConfigurationError(f"gradmedic {entry_point.name} needs the {extra} extra: pip install 'gradmedic[{extra}]'")


def _needed_extra(entry_point: importlib.metadata.EntryPoint) -> str:
    return f"needs the {entry_point.extras[0]} extra" if entry_point.extras else ""
