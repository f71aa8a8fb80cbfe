"""The interface and exit codes of the commands, and the arguments that several of them have."""

from __future__ import annotations

import argparse
from typing import Protocol

from gradmedic.api import Client

EXIT_ERROR = 2
EXIT_UNHEALTHY = 3
"""Exit code of `diagnose --fail-on`. It is not 1, which a crashed interpreter uses."""

RUN_HELP = "id of the run, its beginning or its last 8 characters, or the run's name"


class Command(Protocol):
    """One command. An entry point of `gradmedic.commands` names an object with these attributes."""

    help: str
    """One line for `gradmedic --help`."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the command and return its exit code. A `GradmedicError` is printed in one line and becomes code 2."""


def add_connection_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--base-url`. There is no option for the key: other users could read it in the list of processes."""
    parser.add_argument("--base-url", help="URL of the service (default: $GRADMEDIC_BASE_URL or http://127.0.0.1:8642)")


def make_client(args: argparse.Namespace) -> Client:
    """Return a client of the service that the arguments name."""
    return Client(args.base_url)


def positive_integer(text: str) -> int:
    """Convert an argument to a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)
