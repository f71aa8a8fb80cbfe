"""Run a command as the command line does."""

from __future__ import annotations

import argparse

from gradmedic.cli.command import Command


def run(command: Command, *arguments: str) -> int:
    """Run a command with these arguments and return its exit status."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))
