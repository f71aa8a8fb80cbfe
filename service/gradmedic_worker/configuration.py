"""`worker.toml`: what an operator allows to be rerun on a machine, and how.

One idea: commands live here and nowhere else. The service knows a trainable by its name and its parameters; a value
reaches the command only through a placeholder of an argument list, after its type and range were checked.
"""

from __future__ import annotations

import os
import re
import shutil
import string
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.names import name_error
from gradmedic.protocol.remedies import REMEDIES
from gradmedic.protocol.reruns import EXECUTORS
from gradmedic.protocol.trainables import (
    LONGEST_TIMEOUT,
    PARAMETER_TYPES,
    Trainable,
    TrainableParameter,
    Value,
    value_error,
)

DEFAULT_FILE = "worker.toml"
DEFAULT_PENDING_TIMEOUT = 600.0
LONGEST_PENDING_TIMEOUT = 86_400.0
DEFAULT_TIMEOUT = 3600.0
SEED = "seed"
"""Placeholder that is the trial's seed, for scripts that seed themselves."""
INTERPRETER = re.compile(r"[A-Za-z0-9_./-]+")
"""It becomes a word of the entrypoint, which Ray hands to a shell."""
PLACEHOLDER = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableCommand:
    """One trainable, with what only this machine knows of it."""

    name: str
    command: tuple[str, ...]
    directory: Path
    """Where the command's script lies, and what `links` are relative to."""
    parameters: tuple[TrainableParameter, ...]
    gpus: int
    cpus: int
    """Of a Ray node that a trial takes; on the worker's own machine it takes its share."""
    timeout: float
    environment: Mapping[str, str]
    passes: tuple[str, ...]
    """Variables of the worker's own environment that a trial gets too."""
    links: tuple[str, ...]
    """Entries of the directory that a trial finds in its own."""
    memory: int | None
    """Bytes that a trial's processes may hold together; None for its share of the machine."""
    preloads: bool
    """Whether trials may start from a process that has imported torch already, where that is safe."""

    def on_the_wire(self) -> Trainable:
        """Return what the service is told."""
        return Trainable(name=self.name, parameters=list(self.parameters), gpus=self.gpus, timeout=self.timeout)

    def arguments(self, values: Mapping[str, Value], seed: int) -> list[str]:
        """Return the command with every placeholder filled; an argument whose parameter has no value is left out.

        Raises:
            ConfigurationError: a value is not what the operator allows.
        """
        given: dict[str, Value] = {SEED: seed}
        for parameter in self.parameters:
            value = given[parameter.name] = values.get(parameter.name, parameter.default)
            if (message := value_error(parameter, value)) is not None:
                raise ConfigurationError(f"trainable {self.name!r}: {parameter.name} {message}")
        filled = []
        for argument in self.command:
            names = placeholders(argument)
            if any(given[name] is None for name in names):
                continue
            filled.append(
                "".join(text + ("" if name is None else _written(given[name])) for text, name in _parts(argument))
            )
        return filled


@dataclass(frozen=True, slots=True, kw_only=True)
class RayConfiguration:
    """The Ray cluster that runs the trials."""

    address: str
    """Of its dashboard, which answers the Jobs API."""
    base_url: str
    """Of the service, as the nodes reach it."""
    token_file: Path | None
    """That holds the cluster's token; None to look where Ray does."""
    python: str
    """Interpreter of the nodes that gradmedic is installed for."""
    pending_timeout: float
    """Seconds that a trial may wait for a place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfiguration:
    """Everything that `worker.toml` says."""

    name: str
    slots: int | None
    """Trials at the same time; None for one a GPU, or one a CPU core where there is none."""
    scratch: Path
    trainables: Mapping[str, TrainableCommand] = field(default_factory=dict)
    ray: RayConfiguration | None = None
    """None where trials run on the worker's own machine."""


def read_configuration(path: Path, *, on_node: bool = False) -> WorkerConfiguration:
    """Read `worker.toml`.

    Args:
        path: of the file.
        on_node: whether trials run here although the file says `executor = "ray"`: this is one of the cluster's nodes.

    Raises:
        ConfigurationError: it is missing or wrong; the message names the field.
    """
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None
    reader = _Table(str(path), content)
    worker = reader.table("worker")
    name = worker.text("name", os.uname().nodename)
    slots = worker.integer("slots", None, minimum=1)
    scratch = worker.text("scratch", tempfile.gettempdir())
    executor = worker.text("executor", EXECUTORS[0])
    if executor not in EXECUTORS:
        raise worker.error("executor", f"must be one of {', '.join(EXECUTORS)}, not {executor!r}")
    worker.refuse_others()
    ray = _ray(reader.table("ray"), path.parent) if executor == "ray" else None
    trainables = {}
    described = reader.table("trainables")
    reader.refuse_others()
    for key in described.names():
        if (message := name_error(key)) is not None:
            raise ConfigurationError(f"{path}: trainables.{key}: the name {message}")
        is_run_here = on_node or ray is None
        trainables[key] = _trainable(key, described.table(key), path.parent.resolve(), is_run_here=is_run_here)
    if not trainables:
        raise ConfigurationError(f"{path}: trainables: names none; nothing could be rerun")
    scratch_folder = (path.parent / scratch).resolve()
    return WorkerConfiguration(name=name, slots=slots, scratch=scratch_folder, trainables=trainables, ray=ray)


def _ray(table: _Table, base: Path) -> RayConfiguration:
    token_file = table.text("token_file", "")
    made = RayConfiguration(
        address=_url(table, "address"),
        base_url=_url(table, "base_url"),
        token_file=base / token_file if token_file else None,
        python=table.text("python", "python"),
        pending_timeout=table.number(
            "pending_timeout", DEFAULT_PENDING_TIMEOUT, minimum=1.0, maximum=LONGEST_PENDING_TIMEOUT
        ),
    )
    if not INTERPRETER.fullmatch(made.python):
        raise table.error("python", f"must be the path of an interpreter, without spaces, not {made.python!r}")
    table.refuse_others()
    return made


def _url(table: _Table, key: str) -> str:
    found = table.text(key, None)
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise table.error(key, f"must be http://host:port or https://host:port, not {found!r}")
    return found.rstrip("/")


def _trainable(name: str, table: _Table, base: Path, *, is_run_here: bool) -> TrainableCommand:
    command = table.texts("command")
    if not command:
        raise table.error("command", "is required: a list of arguments, not a shell line")
    directory = (base / table.text("directory", ".")).resolve()
    if is_run_here and not directory.is_dir():
        raise table.error("directory", f"{directory} is not a folder")
    parameters = tuple(
        _parameter(key, table.table("parameters").table(key)) for key in table.table("parameters").names()
    )
    known = {parameter.name for parameter in parameters}
    used: set[str] = set()
    for argument in command:
        try:
            used |= set(placeholders(argument))
        except ValueError as error:
            raise table.error("command", f"{argument!r}: {error}") from None
    for unknown in sorted(used - known - {SEED}):
        raise table.error("command", f"has the placeholder {{{unknown}}}, which is no parameter")
    if SEED in known:
        raise table.error(f"parameters.{SEED}", f"is taken: {{{SEED}}} is the trial's seed")
    if placeholders(command[0]):
        raise table.error("command", "its program must not be a parameter")
    links = table.texts("links")
    for link in links:
        if Path(link).is_absolute() or ".." in Path(link).parts:
            raise table.error("links", f"{link!r} leads out of the directory")
        if is_run_here and not (directory / link).exists():
            raise table.error("links", f"there is no {directory / link}")
    made = TrainableCommand(
        name=name,
        command=tuple(command),
        directory=directory,
        parameters=parameters,
        gpus=table.integer("gpus", 0, minimum=0) or 0,
        cpus=table.integer("cpus", 1, minimum=1) or 1,
        timeout=table.number("timeout", DEFAULT_TIMEOUT, minimum=1.0, maximum=LONGEST_TIMEOUT),
        environment=table.mapping("environment"),
        passes=tuple(table.texts("pass_environment")),
        links=tuple(links),
        memory=table.size("memory"),
        preloads=table.boolean("preload", default=True),
    )
    table.refuse_others()
    return made


def _parameter(name: str, table: _Table) -> TrainableParameter:
    if not PLACEHOLDER.fullmatch(name):
        raise table.error("", "must be a name as of a Python variable, with dots for nested keys")
    kind = table.text("type", None)
    if kind not in PARAMETER_TYPES:
        raise table.error("type", f"must be one of {', '.join(PARAMETER_TYPES)}, not {kind!r}")
    remedy = table.text("remedy", "") or None
    if remedy is not None and remedy.partition(".")[0] not in REMEDIES:
        raise table.error("remedy", f"{remedy.partition('.')[0]!r} is not one of {', '.join(REMEDIES)}")
    is_number = kind in ("float", "int")
    parameter = TrainableParameter(
        name=name,
        type=kind,
        minimum=table.number("minimum", None) if is_number else None,
        maximum=table.number("maximum", None) if is_number else None,
        choices=table.texts("choices") or None,
        default=table.value("default"),
        is_optional=table.boolean("optional", default=False),
        remedy=remedy,
    )
    if is_number and (parameter.minimum is None or parameter.maximum is None):
        raise table.error("minimum" if parameter.minimum is None else "maximum", "is required: what may a rerun set?")
    if is_number and (parameter.minimum or 0) > (parameter.maximum or 0):
        raise table.error("minimum", f"{parameter.minimum:g} is above the maximum {parameter.maximum:g}")
    if kind == "str" and not parameter.choices:
        raise table.error("choices", "is required: a text must be one of some")
    table.refuse_others()
    return parameter


def placeholders(argument: str) -> list[str]:
    """Return the names in braces of an argument. Raises ValueError for braces that hold no name.

    >>> placeholders("--lr={lr}"), placeholders("{{literal}}")
    (['lr'], [])
    """
    return [name for _, name in _parts(argument) if name is not None]


def _parts(argument: str) -> list[tuple[str, str | None]]:
    parts = []
    for text, name, format_, conversion in string.Formatter().parse(argument):
        if name is not None and (not PLACEHOLDER.fullmatch(name) or format_ or conversion):
            raise ValueError("braces hold the name of a parameter and nothing else; double them to mean braces")
        parts.append((text, name))
    return parts


def _written(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)


def program_of(command: TrainableCommand) -> str | None:
    """Return the absolute path of a trainable's program; `python` is the worker's own. None where there is none."""
    program = command.command[0]
    if program == "python":
        return sys.executable
    if os.sep in program:
        path = command.directory / program
        return str(path) if os.access(path, os.X_OK) else None
    return shutil.which(program)


class _Table:
    """A table of the file, read field by field; whatever is left was not meant to be there."""

    def __init__(self, place: str, content: Any) -> None:
        self._place = place
        if not isinstance(content, dict):
            raise ConfigurationError(f"{place}: must be a table, not {content!r}")
        self._content = content
        self._read: set[str] = set()
        self._tables: dict[str, _Table] = {}

    def error(self, key: str, message: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self._place}{': ' if '.toml' in self._place[-5:] else '.' if key else ''}{key}: {message}"
        )

    def names(self) -> list[str]:
        self._read |= self._content.keys()
        return list(self._content)

    def table(self, key: str) -> _Table:
        self._read.add(key)
        separator = ": " if self._place.endswith(".toml") else "."
        if key not in self._tables:
            self._tables[key] = _Table(f"{self._place}{separator}{key}", self._content.get(key, {}))
        return self._tables[key]

    def value(self, key: str) -> Any:
        self._read.add(key)
        return self._content.get(key)

    def text(self, key: str, default: str | None) -> str:
        found = self._of(key, str, "a text")
        if found is None and default is None:
            raise self.error(key, "is required")
        return default if found is None else found  # type: ignore[return-value]

    def texts(self, key: str) -> list[str]:
        found = self._of(key, list, "a list of texts")
        if found is not None and not all(isinstance(one, str) for one in found):
            raise self.error(key, f"must be a list of texts, not {found!r}")
        return list(found or [])

    def mapping(self, key: str) -> dict[str, str]:
        found = self._of(key, dict, "a table of texts") or {}
        if not all(isinstance(one, str) for one in found.values()):
            raise self.error(key, "must be a table of texts")
        return dict(found)

    def boolean(self, key: str, *, default: bool) -> bool:
        found = self._of(key, bool, "true or false")
        return default if found is None else bool(found)

    def integer(self, key: str, default: int | None, *, minimum: int) -> int | None:
        found = self._of(key, int, "a whole number")
        if found is None:
            return default
        if isinstance(found, bool) or found < minimum:
            raise self.error(key, f"must be a whole number from {minimum}, not {found!r}")
        return int(found)

    def number(self, key: str, default: Any, *, minimum: float = -1e300, maximum: float = 1e300) -> Any:
        found = self._of(key, (int, float), "a number")
        if found is None:
            return default
        if isinstance(found, bool) or not minimum <= found <= maximum:
            raise self.error(key, f"must be a number from {minimum:g} to {maximum:g}, not {found!r}")
        return float(found)

    def size(self, key: str) -> int | None:
        found = self._of(key, (int, str), "bytes, or a text such as '4GiB'")
        if found is None:
            return None
        if isinstance(found, str):
            number, unit = found[:-3].strip(), found[-3:]
            if not number.isdecimal() or unit not in UNITS:
                raise self.error(key, f"must be bytes, or a text such as '4GiB', not {found!r}")
            found = int(number) * UNITS[unit]
        if isinstance(found, bool) or found <= 0:
            raise self.error(key, f"must be above 0, not {found!r}")
        return int(found)

    def refuse_others(self) -> None:
        for key in self._content:
            if key not in self._read:
                known = ", ".join(sorted(self._read))
                raise self.error(key, f"there is no such field; there are {known}")

    def _of(self, key: str, kind: Any, described: str) -> Any:
        self._read.add(key)
        found = self._content.get(key)
        if found is not None and not isinstance(found, kind):
            raise self.error(key, f"must be {described}, not {found!r}")
        return found
