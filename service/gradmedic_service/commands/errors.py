"""Errors of the commands. A command that fails prints the reason on standard error and returns an exit status."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from typing import TypeVar

from gradmedic_service.http.errors import ServiceError

EXIT_FAILURE = 1
EXIT_USAGE = 2

Command = TypeVar("Command")


class CommandError(Exception):
    """The command cannot do its work; the message, of one line or more, is for the user."""

    def __init__(self, message: str, status: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.status = status


def printing_errors(
    run: Callable[[Command, argparse.Namespace], int],
) -> Callable[[Command, argparse.Namespace], int]:
    """Decorate the `run` method of a command: print its errors and return their exit status."""

    @functools.wraps(run)
    def run_and_print(command: Command, args: argparse.Namespace) -> int:
        try:
            return run(command, args)
        except CommandError as error:
            message, status = str(error), error.status
        except ServiceError as error:
            message = error.detail if error.reason is None else f"{error.detail} ({error.reason})"
            status = EXIT_FAILURE
        for line in message.splitlines():
            print(f"gradmedic: {line}", file=sys.stderr)
        return status

    return run_and_print
