"""The command of a trainable: an argument list whose placeholders are filled with a trial's parameters."""

from __future__ import annotations

import os
import re
import shutil
import string
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.trainables import Trainable, TrainableParameter, Value, value_error

SEED = "seed"
"""Placeholder for the trial's seed, for scripts that seed themselves."""
PLACEHOLDER = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableCommand:
    """A trainable, with everything that a worker needs to run its trials."""

    name: str
    command: tuple[str, ...]
    """Argument list with placeholders, such as `--lr={lr}`."""
    directory: Path
    """Folder of the command's script; `links` are relative to it."""
    parameters: tuple[TrainableParameter, ...]
    gpus: int
    """Number of GPUs of a trial."""
    cpus: int
    """Number of CPUs of a trial on a Ray node. On the worker's own machine a trial has an equal share of the cores."""
    timeout: float
    """Longest time of a trial in seconds."""
    environment: Mapping[str, str]
    """Additional environment variables of a trial."""
    pass_environment: tuple[str, ...]
    """Names of variables that a trial inherits from the worker's own environment."""
    links: tuple[str, ...]
    """Entries of the directory that are linked into the trial's working directory."""
    memory: int | None
    """Bytes that a trial's processes may hold together; None for an equal share of the machine's memory."""
    may_fork: bool
    """Whether trials may be forked from a process that has imported torch."""
    judge_by: str | None = None
    """The objective by which trials are judged, as a text; None for that of the script."""

    def describe(self) -> Trainable:
        """Return the description that is registered with the service. It holds neither command nor paths."""
        return Trainable(name=self.name, parameters=list(self.parameters), gpus=self.gpus, timeout=self.timeout)

    def fill_command(self, values: Mapping[str, Value], seed: int) -> list[str]:
        """Return the command with every placeholder filled.

        An argument is left out if one of its parameters has no value.

        Raises:
            ConfigurationError: The operator does not allow a value.
        """
        filled: dict[str, Value] = {SEED: seed}
        for parameter in self.parameters:
            value = filled[parameter.name] = values.get(parameter.name, parameter.default)
            if (message := value_error(parameter, value)) is not None:
                raise ConfigurationError(f"trainable {self.name!r}: {parameter.name} {message}")
        return [
            "".join(text + ("" if name is None else _format_value(filled[name])) for text, name in parts)
            for parts in map(_split_argument, self.command)
            if all(name is None or filled[name] is not None for _, name in parts)
        ]

    def find_program(self) -> str | None:
        """Return the absolute path of the command's program, or None if it does not exist.

        The program `python` is the worker's own interpreter.
        """
        program = self.command[0]
        if program == "python":
            return sys.executable
        if os.sep in program:
            path = self.directory / program
            return str(path) if os.access(path, os.X_OK) else None
        return shutil.which(program)


def find_placeholders(argument: str) -> list[str]:
    """Return the names in braces of an argument.

    Raises:
        ValueError: Braces hold something else than a name.

    >>> find_placeholders("--lr={lr}"), find_placeholders("{{literal}}")
    (['lr'], [])
    """
    return [name for _, name in _split_argument(argument) if name is not None]


def _split_argument(argument: str) -> list[tuple[str, str | None]]:
    """Split an argument into pairs of text and the placeholder that follows it, if any."""
    parts = []
    for text, name, format_, conversion in string.Formatter().parse(argument):
        if name is not None and (not PLACEHOLDER.fullmatch(name) or format_ or conversion):
            raise ValueError("braces must hold the name of a parameter and nothing else; write {{ for a brace")
        parts.append((text, name))
    return parts


def _format_value(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)
