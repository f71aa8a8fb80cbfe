"""The interface and exit codes of the commands, and how the commands find the service and a run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Protocol
from uuid import UUID

from gradmedic.api import Client
from gradmedic.exceptions import UsageError
from gradmedic.protocol.ids import earliest_time

EXIT_ERROR = 2
EXIT_UNHEALTHY = 3
"""Exit code of `diagnose --fail-on`. It is not 1, which a crashed interpreter uses."""

_CLOCK_SKEW = 86_400.0
"""Seconds that the clock of a training machine may be ahead of the service's clock."""


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


def parse_id(text: str, kind: str = "rerun") -> UUID:
    """Convert an argument to the id of a rerun or trial. Raises UsageError."""
    try:
        return UUID(text)
    except ValueError:
        raise UsageError(f"{text!r} is not the id of a {kind}") from None


def find_run(client: Client, reference: str, project: str | None) -> UUID:
    """Return the id of the run with this id, beginning of an id, or name.

    Raises:
        UsageError: no run matches, or several do.
    """
    try:
        return UUID(reference)
    except ValueError:
        pass
    matches = {
        run.id for run in client.runs.list(project=project, text=reference, page_size=1000) if run.name == reference
    }
    matches |= set(_runs_with_id_prefix(client, reference.lower(), project))
    if len(matches) == 1:
        return next(iter(matches))
    if not matches:
        raise UsageError(f"no run has the name {reference!r} or an id that begins so; see `gradmedic runs`")
    examples = ", ".join(str(run_id) for run_id in list(matches)[:3])
    raise UsageError(
        f"{len(matches)} runs are called {reference!r} or have an id that begins so, for example {examples}"
    )


def _runs_with_id_prefix(client: Client, prefix: str, project: str | None) -> Iterator[UUID]:
    """Iterate over the runs whose id begins with a prefix. The prefix contains a time, so older runs are not read."""
    earliest = earliest_time(prefix)
    if earliest is None:
        return
    for run in client.runs.list(project=project, sort="-created_at", page_size=1000):
        if run.created_at.timestamp() < earliest - _CLOCK_SKEW:
            return
        if str(run.id).startswith(prefix):
            yield run.id
