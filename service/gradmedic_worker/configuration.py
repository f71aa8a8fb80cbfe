"""Reads `worker.toml`, in which an operator allows trainables to be rerun on a machine.

Commands exist in this file only. The service has only the names and parameters of trainables. A parameter's value
reaches a command only through a placeholder in an argument list, after its type and range have been checked.
"""

from __future__ import annotations

import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.names import name_error
from gradmedic.protocol.objectives import format_objective, parse_objective
from gradmedic.protocol.remedies import REMEDIES
from gradmedic.protocol.reruns import EXECUTORS
from gradmedic.protocol.trainables import LONGEST_TIMEOUT, PARAMETER_TYPES, TrainableParameter
from gradmedic_worker.trainable_command import PLACEHOLDER, SEED, TrainableCommand, find_placeholders

LONGEST_PENDING_TIMEOUT = 86_400.0
SHELL_SAFE_PATH = re.compile(r"[A-Za-z0-9_./-]+")
BYTE_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
TYPE_NAMES = {
    "`array`": "a list", "`bool`": "true or false", "`float`": "a number", "`int`": "a whole number",
    "`object`": "a table", "`str`": "a text",
}  # fmt: skip
"""Names of TOML's types by msgspec's."""

Count = Annotated[int, Meta(ge=1)]
FiniteNumber = Annotated[float, Meta(ge=-1e300, le=1e300)]


class HttpUrl(str):
    """Address of a server: `http://host:port` or `https://host:port`."""

    __slots__ = ()


class Interpreter(str):
    """Path of a Python interpreter. Ray gives it to a shell, so it has no character that is special there."""

    __slots__ = ()


class ByteCount(int):
    """Number of bytes. The file has it as a whole number, or as a text such as `4GiB`."""


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file. Paths in it are relative to the file's folder."""


class _FileTable(_Table, frozen=True):
    worker: dict[str, Any] = {}
    ray: dict[str, Any] | None = None
    trainables: dict[str, Any] = {}


class _WorkerTable(_Table, frozen=True):
    name: str = msgspec.field(default_factory=lambda: os.uname().nodename)
    slots: Count | None = None
    scratch: Path = msgspec.field(default_factory=lambda: Path(tempfile.gettempdir()))
    executor: str = EXECUTORS[0]
    user: str | None = None


class RayConfiguration(_Table, frozen=True):
    """The table `[ray]`: the Ray cluster that runs the trials."""

    address: HttpUrl
    """Address of the cluster's dashboard, which serves the Jobs API."""
    base_url: HttpUrl
    """Address at which the nodes reach the service."""
    token_file: Path | None = None
    """File with the cluster's token; None to read it where Ray reads it."""
    python: Interpreter = Interpreter("python")
    """Interpreter on the nodes for which gradmedic is installed."""
    pending_timeout: Annotated[float, Meta(ge=1.0, le=LONGEST_PENDING_TIMEOUT)] = 600.0
    """Seconds that a trial may wait for a place."""


class _TrainableTable(_Table, frozen=True):
    command: tuple[str, ...]
    directory: Path | None = None
    gpus: Annotated[int, Meta(ge=0)] = 0
    cpus: Count = 1
    timeout: Annotated[float, Meta(ge=1.0, le=LONGEST_TIMEOUT)] = 3600.0
    memory: ByteCount | None = None
    environment: dict[str, str] = {}
    pass_environment: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    preload: bool = True
    judge_by: str = ""
    parameters: dict[str, Any] = {}


class _ParameterTable(_Table, frozen=True):
    type: str
    minimum: FiniteNumber | None = None
    maximum: FiniteNumber | None = None
    choices: list[str] | None = None
    default: float | int | str | bool | None = None
    optional: bool = False
    remedy: str | None = None


_AnyTable = TypeVar("_AnyTable", bound=_Table)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfiguration:
    """The content of `worker.toml`."""

    name: str
    """Name of the worker, for people."""
    slots: int | None
    """Number of trials at the same time; None for one a GPU, or one a CPU core on a machine without GPUs."""
    scratch: Path
    """Folder for the folders of trials."""
    trainables: Mapping[str, TrainableCommand] = field(default_factory=dict)
    """Trainables by name."""
    executor: str = EXECUTORS[0]
    """Name of the executor that runs the trials."""
    ray: RayConfiguration | None = None
    """The Ray cluster that runs the trials; None if they run on the worker's own machine."""
    user: str | None = None
    """Name of the user that trials run as; None for the worker's own. On a Ray cluster, a user of each node."""


def read_configuration(path: Path, *, is_ray_node: bool = False) -> WorkerConfiguration:
    """Read `worker.toml`.

    Args:
        path: The file's path.
        is_ray_node: Whether this machine is a node of the Ray cluster, which runs trials itself.

    Raises:
        ConfigurationError: The file is missing or wrong. The message names the file and the field.
    """
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None
    return _Reader(path).read(content, is_ray_node=is_ray_node)


class _Reader:
    """Converts the tables of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = path.parent.resolve()

    def read(self, content: dict[str, Any], *, is_ray_node: bool) -> WorkerConfiguration:
        """Convert the whole file."""
        file = self._convert(content, _FileTable, "")
        worker = self._convert(file.worker, _WorkerTable, "worker")
        if worker.executor not in EXECUTORS:
            raise self._error("worker.executor", f"must be one of {', '.join(EXECUTORS)}, not {worker.executor!r}")
        has_cluster = worker.executor == "ray"
        if file.ray is not None and not has_cluster:
            raise self._error("ray", 'this table is allowed only with worker.executor = "ray"')
        ray = self._read_ray(file.ray or {}) if has_cluster else None
        if not file.trainables:
            raise self._error("trainables", "there is none, so nothing could be rerun")
        return WorkerConfiguration(
            name=worker.name,
            slots=worker.slots,
            scratch=worker.scratch.resolve(),
            trainables={
                name: self._read_trainable(name, table, is_run_here=is_ray_node or not has_cluster)
                for name, table in file.trainables.items()
            },
            executor=worker.executor,
            ray=ray,
            user=worker.user,
        )

    def _read_ray(self, content: object) -> RayConfiguration:
        if (
            isinstance(content, dict) and content.get("token_file") == ""
        ):  # an empty path would be the file's own folder
            content = {name: value for name, value in content.items() if name != "token_file"}
        return self._convert(content, RayConfiguration, "ray")

    def _read_trainable(self, name: str, content: object, *, is_run_here: bool) -> TrainableCommand:
        key = f"trainables.{name}"
        if (message := name_error(name)) is not None:
            raise self._error(key, f"the name {message}")
        table = self._convert(content, _TrainableTable, key)
        trainable = TrainableCommand(
            name=name,
            command=table.command,
            directory=(table.directory or self._folder).resolve(),
            parameters=tuple(
                self._read_parameter(parameter, described, f"{key}.parameters.{parameter}")
                for parameter, described in table.parameters.items()
            ),
            gpus=table.gpus,
            cpus=table.cpus,
            timeout=table.timeout,
            environment=table.environment,
            pass_environment=table.pass_environment,
            links=table.links,
            memory=table.memory,
            may_fork=table.preload,
            judge_by=self._read_objective(table.judge_by, f"{key}.judge_by"),
        )
        self._check_command(trainable, key)
        self._check_links(trainable, key, is_run_here=is_run_here)
        return trainable

    def _read_objective(self, text: str, key: str) -> str | None:
        try:
            return format_objective(parse_objective(text)) if text else None
        except ValueError as error:
            raise self._error(key, str(error)) from None

    def _check_command(self, trainable: TrainableCommand, key: str) -> None:
        if not trainable.command:
            raise self._error(f"{key}.command", "must have at least one argument")
        parameters = {parameter.name for parameter in trainable.parameters}
        if SEED in parameters:
            raise self._error(f"{key}.parameters.{SEED}", f"this name is reserved: {{{SEED}}} is the trial's seed")
        for argument in trainable.command:
            try:
                placeholders = find_placeholders(argument)
            except ValueError as error:
                raise self._error(f"{key}.command", f"{argument!r}: {error}") from None
            for name in placeholders:
                if name not in parameters | {SEED}:
                    raise self._error(f"{key}.command", f"has the placeholder {{{name}}}, which is no parameter")
        if find_placeholders(trainable.command[0]):
            raise self._error(f"{key}.command", "its program must not be a parameter")

    def _check_links(self, trainable: TrainableCommand, key: str, *, is_run_here: bool) -> None:
        if is_run_here and not trainable.directory.is_dir():
            raise self._error(f"{key}.directory", f"{trainable.directory} is not a folder")
        for link in trainable.links:
            if Path(link).is_absolute() or ".." in Path(link).parts:
                raise self._error(f"{key}.links", f"{link!r} leads out of the directory")
            if is_run_here and not (trainable.directory / link).exists():
                raise self._error(f"{key}.links", f"there is no {trainable.directory / link}")

    def _read_parameter(self, name: str, content: object, key: str) -> TrainableParameter:
        if not PLACEHOLDER.fullmatch(name):
            raise self._error(key, "must be a name as of a Python variable, with dots for nested keys")
        table = self._convert(content, _ParameterTable, key)
        if table.type not in PARAMETER_TYPES:
            raise self._error(f"{key}.type", f"must be one of {', '.join(PARAMETER_TYPES)}, not {table.type!r}")
        remedy = (table.remedy or "").partition(".")[0]
        if remedy and remedy not in REMEDIES:
            raise self._error(f"{key}.remedy", f"{remedy!r} is not one of {', '.join(REMEDIES)}")
        self._check_values(table, key)
        return TrainableParameter(
            name=name,
            type=table.type,
            minimum=table.minimum,
            maximum=table.maximum,
            choices=table.choices or None,
            default=table.default,
            is_optional=table.optional,
            remedy=table.remedy or None,
        )

    def _check_values(self, table: _ParameterTable, key: str) -> None:
        """Check that the table bounds the values of its parameter."""
        bounds = {"minimum": table.minimum, "maximum": table.maximum}
        if table.type in ("float", "int"):
            for bound, value in bounds.items():
                if value is None:
                    raise self._error(f"{key}.{bound}", f"is required for a parameter of type {table.type}")
            if table.minimum is not None and table.maximum is not None and table.minimum > table.maximum:
                raise self._error(f"{key}.minimum", f"{table.minimum:g} is above the maximum {table.maximum:g}")
        else:
            for bound, value in bounds.items():
                if value is not None:
                    raise self._error(f"{key}.{bound}", f"is not allowed for a parameter of type {table.type}")
        if table.type == "str" and not table.choices:
            raise self._error(f"{key}.choices", "is required for a parameter of type str")

    def _convert(self, content: object, table: type[_AnyTable], key: str) -> _AnyTable:
        try:
            return msgspec.convert(content, table, dec_hook=self._decode_text)
        except msgspec.ValidationError as error:
            field, message = _describe(error, table)
            raise self._error(".".join(filter(None, (key, field))), message) from None

    def _decode_text(self, type_: type, value: object) -> object:
        """Convert a value to a type that TOML does not have. Raises ValueError if it does not fit."""
        if type_ is ByteCount:
            return _parse_byte_count(value)
        if not isinstance(value, str):
            raise ValueError(f"must be a text, not {value!r}")  # msgspec reports a ValueError with its field
        if type_ is Path:
            return self._folder / value
        return _parse_url(value) if type_ is HttpUrl else _parse_interpreter(value)

    def _error(self, key: str, message: str) -> ConfigurationError:
        return ConfigurationError(": ".join(filter(None, (str(self._path), key, message))))


def _describe(error: msgspec.ValidationError, table: type[_Table]) -> tuple[str, str]:
    """Return the path of the wrong field, and the message in the words of TOML."""
    message, _, field = str(error).removesuffix("`").partition(" - at `$.")
    match = re.match(r"Object (missing required|contains unknown) field `([^`]+)", message)
    if match is not None:
        fields = ", ".join(table.__struct_fields__)
        is_missing = match[1] == "missing required"
        return match[2], "is required" if is_missing else f"there is no such field; there are {fields}"
    for type_, name in TYPE_NAMES.items():
        message = message.replace(type_, name)
    return field, message.replace("Expected ", "must be ").replace(", got ", ", not ")


def _parse_byte_count(value: object) -> ByteCount:
    if isinstance(value, str):
        number, unit = value[:-3].strip(), value[-3:]
        value = int(number) * BYTE_UNITS[unit] if number.isdecimal() and unit in BYTE_UNITS else None
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ValueError("must be a number of bytes above 0, or a text such as '4GiB'")
    return ByteCount(value)


def _parse_url(text: str) -> HttpUrl:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError(f"must be http://host:port or https://host:port, not {text!r}")
    return HttpUrl(text.rstrip("/"))


def _parse_interpreter(text: str) -> Interpreter:
    if not SHELL_SAFE_PATH.fullmatch(text):
        raise ValueError(f"must be the path of an interpreter, without spaces, not {text!r}")
    return Interpreter(text)
