"""The configuration of a run: arguments first, then `GRADMEDIC_*` environment variables, then defaults.

Everything is checked here, once, before training begins. The environment is read when `gradmedic.init()` or a `Client`
is called, never at import.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from gradmedic.checks import (
    Check,
    check_boolean,
    check_choice,
    check_folder,
    check_frequency,
    check_mapping,
    check_name,
    check_objective,
    check_positive,
    check_positive_integer,
    check_tags,
    check_text,
    check_url,
    check_uuid7,
    split_at_commas,
)
from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.runs import Objective, RunCreate, Training
from gradmedic.trial.instructions import with_parameters

DEFAULT_BASE_URL = "http://127.0.0.1:8642"
MODES = ("online", "offline", "disabled")
REACTIONS = ("warn", "clip", "skip", "rewind", "stop")
"""What a run may do about an unhealthy verdict or a spike (`docs/guards.md`)."""
NONFINITE_REACTIONS = ("record", "locate", "skip", "stop")
"""What a run may do about a non-finite gradient or loss (`docs/guards.md`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """The address of the service, and the key for it."""

    base_url: str
    api_key: str | None
    timeout: float
    """Seconds that one request may take."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How one argument of `init()` is checked, and where its value comes from if it is not given."""

    check: Check
    default: Any = None
    """A value, or a function that returns one."""
    variable: str | None = None
    """Environment variable; None if there is none."""
    is_unset_if_empty: bool = False
    """Whether an empty string counts as not given."""
    parse: Callable[[str], Any] | None = None
    """Turns the text of the variable into what `check` takes; None leaves it a string."""


def _setting(check: Check, default: Any = None, variable: str | None = None, **more: Any) -> dict[str, Setting]:
    return {"setting": Setting(check, default, variable, **more)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """The checked arguments of `gradmedic.init()`, one field each."""

    project: str = field(metadata=_setting(check_name, "default", "GRADMEDIC_PROJECT"))
    config: dict[str, Any] = field(metadata=_setting(check_mapping, dict))
    name: str | None = field(metadata=_setting(check_name, None, "GRADMEDIC_RUN_NAME"))
    id: UUID = field(metadata=_setting(check_uuid7, new_id, "GRADMEDIC_RUN_ID"))
    tags: tuple[str, ...] = field(metadata=_setting(check_tags, (), "GRADMEDIC_TAGS", parse=split_at_commas))
    notes: str | None = field(metadata=_setting(check_text))
    group: str | None = field(metadata=_setting(check_name, None, "GRADMEDIC_RUN_GROUP"))
    base_url: str = field(metadata=_setting(check_url, DEFAULT_BASE_URL, "GRADMEDIC_BASE_URL", is_unset_if_empty=True))
    api_key: str | None = field(metadata=_setting(check_text, None, "GRADMEDIC_API_KEY", is_unset_if_empty=True))
    mode: str = field(metadata=_setting(check_choice(*MODES), "online", "GRADMEDIC_MODE"))
    trainable: str | None = field(metadata=_setting(check_name))
    log_freq: int | None = field(metadata=_setting(check_frequency, None, "GRADMEDIC_LOG_FREQ"))
    """Steps between two samples. None samples as often as costs little of the training's time."""
    flush_interval: float = field(metadata=_setting(check_positive, 1.0, "GRADMEDIC_FLUSH_INTERVAL"))
    max_queue_bytes: int = field(
        metadata=_setting(check_positive_integer, 64 * 1024 * 1024, "GRADMEDIC_MAX_QUEUE_BYTES")
    )
    max_disk_bytes: int = field(
        metadata=_setting(check_positive_integer, 1024 * 1024 * 1024, "GRADMEDIC_MAX_DISK_BYTES")
    )
    dir: Path = field(metadata=_setting(check_folder, lambda: Path(".gradmedic").absolute(), "GRADMEDIC_DIR"))
    timeout: float = field(metadata=_setting(check_positive, 10.0, "GRADMEDIC_TIMEOUT"))
    silent: bool = field(metadata=_setting(check_boolean, False, "GRADMEDIC_SILENT"))
    on_unhealthy: str = field(metadata=_setting(check_choice(*REACTIONS), "warn"))
    on_nonfinite: str = field(metadata=_setting(check_choice(*NONFINITE_REACTIONS), "record"))
    objective: Objective | None = field(
        metadata=_setting(check_objective, None, "GRADMEDIC_OBJECTIVE", is_unset_if_empty=True)
    )
    """What counts as progress. None if it was not declared."""

    @property
    def connection(self) -> Connection:
        """The address of the service, and the key for it."""
        return Connection(base_url=self.base_url, api_key=self.api_key, timeout=self.timeout)

    def describe(self) -> RunCreate:
        """Return what the configuration contains of a run's description."""
        return RunCreate(
            id=self.id,
            project=self.project,
            name=self.name,
            config=self.config,
            tags=list(self.tags),
            notes=self.notes,
            group=self.group,
            trainable=self.trainable,
            layers=[],
            training=None if self.objective is None else Training(objective=self.objective),
        )


_SETTINGS: Mapping[str, Setting] = {
    field.name: field.metadata["setting"] for field in dataclasses.fields(Configuration)
}


def resolve_configuration(**arguments: Any) -> Configuration:
    """Return the configuration of a run. The arguments are those of `gradmedic.init()`; None counts as not given.

    Raises:
        ConfigurationError: an argument or environment variable is wrong; the message names it.
    """
    resolved = {name: _resolve(name, arguments.pop(name, None)) for name in _SETTINGS}
    if arguments:
        raise TypeError(f"there are no settings {', '.join(arguments)}")
    return Configuration(**resolved)


def resolve_connection(
    base_url: str | None = None, api_key: str | None = None, timeout: float | None = None
) -> Connection:
    """Return the address of the service, from arguments or `GRADMEDIC_BASE_URL`, `_API_KEY`, `_TIMEOUT`.

    Raises:
        ConfigurationError: the URL is not an http(s) URL, or the timeout is not a positive number.
    """
    return Connection(
        base_url=_resolve("base_url", base_url),
        api_key=_resolve("api_key", api_key),
        timeout=_resolve("timeout", timeout),
    )


def resolve_directory(dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of unsent steps, from the argument or `GRADMEDIC_DIR`.

    Raises:
        ConfigurationError: the argument is no path, or the path is not a folder.
    """
    directory: Path = _resolve("dir", dir)
    return directory


def process_rank() -> int:
    """Return the rank of this process among those that train together, from torch or from the variables of torchrun."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    rank, size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return int(rank) if rank.isdecimal() and size.isdecimal() and int(size) > 1 else 0


def is_being_imported_by_spawn() -> bool:
    """Return whether this process was spawned and imports the main script only for its functions."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and bool(getattr(process.current_process(), "_inheriting", False))


def as_trial(configuration: Configuration, parameters: Mapping[str, Any]) -> Configuration:
    """Return the configuration of a trial: the worker decides the run, its project and its folder, not the script.

    Raises:
        ConfigurationError: the worker's environment lacks the run's id or its project.
    """
    if not (os.environ.get("GRADMEDIC_RUN_ID") and os.environ.get("GRADMEDIC_PROJECT")):
        raise ConfigurationError("a trial needs GRADMEDIC_RUN_ID and GRADMEDIC_PROJECT")
    return dataclasses.replace(
        configuration,
        base_url=_resolve("base_url", None),
        api_key=_resolve("api_key", None),
        project=_resolve("project", None),
        id=_resolve("id", None),
        name=None,
        group=None,
        trainable=None,
        mode="online",
        dir=_resolve("dir", None),
        on_unhealthy="warn",
        on_nonfinite="record",
        config=with_parameters(configuration.config, parameters),
    )


def _resolve(name: str, value: Any) -> Any:
    """Return the checked argument, else the checked environment variable, else the default."""
    setting = _SETTINGS[name]
    is_empty_text = isinstance(value, str) and not value
    if value is not None and not (is_empty_text and setting.is_unset_if_empty):
        checked = setting.check(name, value)
        if checked != ():  # without tags, those of the variable count
            return checked
    text = os.environ.get(setting.variable) if setting.variable else None
    if not setting.variable or not text:
        return setting.default() if callable(setting.default) else setting.default
    return setting.check(setting.variable, text if setting.parse is None else setting.parse(text))
