"""`gradmedic completion`: print a script that completes commands and options in a shell."""

from __future__ import annotations

import argparse

from gradmedic.exceptions import ConfigurationError

SHELLS = ("bash", "zsh", "fish")


class CompletionCommand:
    """`gradmedic completion`."""

    help = "print a script that completes commands and options in a shell"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")

    def run(self, args: argparse.Namespace) -> int:
        """Print the script. It has the commands of all extras that are installed now."""
        try:
            import shtab  # here: only this command needs the extra
        except ModuleNotFoundError as error:
            message = "gradmedic completion needs the completion extra: pip install 'gradmedic[completion]'"
            raise ConfigurationError(message) from error
        from gradmedic.cli.main import build_complete_parser

        print(shtab.complete(build_complete_parser(), shell=args.shell))
        return 0
