"""Finds the command that the arguments name, and runs it.

Only the command that the arguments name is imported, so that a program of many parts starts at once. If the extra of a
command is not installed, the error names the extra.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from gradmedic.version import __version__

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from gradmedic.cli.command import Command
    from gradmedic.cli.parser import CommandParser

COMMANDS_GROUP = "gradmedic.commands"
"""Entry-point group of the commands of other packages."""
EXIT_INTERRUPTED = 130
_NO_SERVICE_HINT = (
    "\nIs the service running? `gradmedic serve` starts one here; --base-url or GRADMEDIC_BASE_URL names another."
)

_CLIENT_COMMANDS: Mapping[str, str] = {
    "alerts": "gradmedic.cli.alerts:AlertsCommand",
    "completion": "gradmedic.cli.completion:CompletionCommand",
    "delete": "gradmedic.cli.delete:DeleteCommand",
    "diagnose": "gradmedic.cli.diagnose:DiagnoseCommand",
    "export": "gradmedic.cli.export:ExportCommand",
    "locate": "gradmedic.cli.locate:LocateCommand",
    "projects": "gradmedic.cli.projects:ProjectsCommand",
    "rerun": "gradmedic.cli.rerun:RerunCommand",
    "review": "gradmedic.cli.review:ReviewCommand",
    "runs": "gradmedic.cli.runs:RunsCommand",
    "sync": "gradmedic.cli.sync:SyncCommand",
}
"""Module and class of each command of the client."""
_OWN_PACKAGES = ("gradmedic", "gradmedic_diagnosis", "gradmedic_service", "gradmedic_worker")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:  # before any other import: scripts ask for it often
        print(f"gradmedic {__version__}")
        return 0
    from gradmedic.cli.command import EXIT_ERROR
    from gradmedic.exceptions import GradmedicError, TransportError

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


def build_complete_parser() -> CommandParser:
    """Return the parser of all commands whose extras are installed."""
    return _build_parser(_find_entry_points(), lambda _name: True, None)


def _run_command(arguments: Sequence[str]) -> int:
    command_name = next((argument for argument in arguments if not argument.startswith("-")), None)
    shows_all = command_name is None and (not arguments or not {"-h", "--help"}.isdisjoint(arguments))
    # The list of entry points takes longer to read than most commands take to start.
    entry_points = {} if command_name in _CLIENT_COMMANDS else _find_entry_points()
    parser = _build_parser(entry_points, lambda name: shows_all or name == command_name, command_name)
    if not arguments:
        parser.print_help()
        return 0
    args = parser.parse_all(arguments)
    chosen: Command = args.command
    if command_name not in entry_points:
        return chosen.run(args)
    try:
        return chosen.run(args)
    except ModuleNotFoundError as error:  # a command may import what it needs only when it runs
        raise _missing_extra(entry_points[command_name], error) from error


def _build_parser(
    entry_points: Mapping[str, EntryPoint], is_loaded: Callable[[str], bool], needed: str | None
) -> CommandParser:
    """Return the parser of all commands. It has the arguments of those that are loaded, and the names of the others.

    Raises ConfigurationError if the needed command lacks its extra; another one without its extra is not loaded.
    """
    from gradmedic.cli.parser import CommandParser

    parser = CommandParser(
        prog="gradmedic",
        description="Reads the gradients of any training job and shows what is wrong, why, and what fixes it.",
    )
    parser.add_argument("--version", action="version", version=f"gradmedic {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in sorted({*_CLIENT_COMMANDS, *entry_points}):
        command: Command | None = None
        if is_loaded(name):
            if name in _CLIENT_COMMANDS:
                command = _load_client_command(name)
            else:
                command = _load(entry_points[name], is_needed=name == needed)
        help_text = command.help if command else _needed_extra(entry_points.get(name))
        subparser = subparsers.add_parser(name, help=help_text, description=command.help if command else None)
        if command is not None:
            command.add_arguments(subparser)
            subparser.set_defaults(command=command)
    return parser


def _find_entry_points() -> dict[str, EntryPoint]:
    import importlib.metadata

    return {entry_point.name: entry_point for entry_point in importlib.metadata.entry_points(group=COMMANDS_GROUP)}


def _load_client_command(name: str) -> Command:
    module, _, attribute = _CLIENT_COMMANDS[name].partition(":")
    command: Command = getattr(importlib.import_module(module), attribute)()
    return command


def _load(entry_point: EntryPoint, *, is_needed: bool) -> Command | None:
    try:
        command: Command = entry_point.load()
    except ModuleNotFoundError as error:
        if not is_needed:
            return None
        raise _missing_extra(entry_point, error) from error
    return command


def _missing_extra(entry_point: EntryPoint, error: ModuleNotFoundError) -> Exception:
    """Return an error that names the extra of a command; the same error if a module of our own is missing."""
    if (error.name or "").partition(".")[0] in _OWN_PACKAGES or not entry_point.extras:
        return error
    from gradmedic.exceptions import ConfigurationError

    extra = entry_point.extras[0]
    return ConfigurationError(f"gradmedic {entry_point.name} needs the {extra} extra: pip install 'gradmedic[{extra}]'")


def _needed_extra(entry_point: EntryPoint | None) -> str:
    return f"needs the {entry_point.extras[0]} extra" if entry_point is not None and entry_point.extras else ""
