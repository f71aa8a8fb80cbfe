"""What a run is configured with: arguments first, then `GRADMEDIC_*` environment variables, then defaults.

One idea: everything is checked here, once, before training begins, so that nothing can be wrong later. The environment
is read when `gradmedic.init()` or a `Client` asks for it, never at import.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.names import name_error
from gradmedic.trial import with_parameters

DEFAULT_BASE_URL = "http://127.0.0.1:8642"
DEFAULT_PROJECT = "default"
DEFAULT_FLUSH_INTERVAL = 1.0
DEFAULT_MAX_QUEUE_BYTES = 64 * 1024 * 1024
DEFAULT_MAX_DISK_BYTES = 1024 * 1024 * 1024
DEFAULT_DIRECTORY = ".gradmedic"
DEFAULT_TIMEOUT = 10.0
MODES = ("online", "offline", "disabled")
REACTIONS = ("warn", "stop", "clip")
"""What a run may do about an unhealthy verdict: log a warning; raise an exception as well; clip the gradients."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where the service is and who asks."""

    base_url: str
    api_key: str | None
    timeout: float
    """Seconds that one request may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """Everything that `gradmedic.init()` decides."""

    connection: Connection
    project: str
    run_id: UUID
    name: str | None
    config: Mapping[str, Any]
    tags: tuple[str, ...]
    notes: str | None
    group: str | None
    trainable: str | None
    mode: str
    log_freq: int | None
    """None: as often as the training does not notice."""
    flush_interval: float
    max_queue_bytes: int
    max_disk_bytes: int
    directory: Path
    silent: bool
    on_unhealthy: str


def resolve_connection(
    base_url: str | None = None, api_key: str | None = None, timeout: float | None = None
) -> Connection:
    """Return where the service is, from arguments or `GRADMEDIC_BASE_URL`, `_API_KEY`, `_TIMEOUT`.

    Raises:
        ConfigurationError: the URL is not an http(s) URL, or the timeout is not a positive number.
    """
    url = base_url or os.environ.get("GRADMEDIC_BASE_URL") or DEFAULT_BASE_URL
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_url = False
    if not is_url:
        raise ConfigurationError(f"base_url (or GRADMEDIC_BASE_URL) must be like {DEFAULT_BASE_URL}, not {url!r}")
    return Connection(
        base_url=url.rstrip("/"),
        api_key=api_key or os.environ.get("GRADMEDIC_API_KEY") or None,
        timeout=_resolve("timeout", timeout, DEFAULT_TIMEOUT, _positive),
    )


def resolve_configuration(
    *,
    project: str | None,
    config: Any,
    name: str | None,
    id: UUID | str | None,
    tags: Iterable[str],
    notes: str | None,
    group: str | None,
    base_url: str | None,
    api_key: str | None,
    mode: str | None,
    trainable: str | None,
    log_freq: int | str | None,
    flush_interval: float | None,
    max_queue_bytes: int | None,
    max_disk_bytes: int | None,
    dir: str | os.PathLike[str] | None,
    timeout: float | None,
    silent: bool | None,
    on_unhealthy: str,
) -> Configuration:
    """Return the configuration of a run; the arguments are those of `gradmedic.init()`.

    Raises:
        ConfigurationError: an argument or environment variable is wrong; the message names it.
    """
    return Configuration(
        connection=resolve_connection(base_url, api_key, timeout),
        project=_resolve("project", project, DEFAULT_PROJECT, _name),
        run_id=_resolve("id", id, None, _uuid, variable="GRADMEDIC_RUN_ID") or new_id(),
        name=_resolve("name", name, None, _name, variable="GRADMEDIC_RUN_NAME"),
        config=_mapping_of(config),
        tags=_tags(tags) or _tags(_comma_separated(os.environ.get("GRADMEDIC_TAGS", ""))),
        notes=_check("notes", notes, _text),
        group=_resolve("group", group, None, _name, variable="GRADMEDIC_RUN_GROUP"),
        trainable=_check("trainable", trainable, _name),
        mode=_resolve("mode", mode, "online", _one_of(*MODES)),
        log_freq=_resolve("log_freq", log_freq, None, _frequency),
        flush_interval=_resolve("flush_interval", flush_interval, DEFAULT_FLUSH_INTERVAL, _positive),
        max_queue_bytes=_resolve("max_queue_bytes", max_queue_bytes, DEFAULT_MAX_QUEUE_BYTES, _positive_integer),
        max_disk_bytes=_resolve("max_disk_bytes", max_disk_bytes, DEFAULT_MAX_DISK_BYTES, _positive_integer),
        directory=resolve_directory(dir),
        silent=_resolve("silent", silent, False, _boolean),
        on_unhealthy=_one_of(*REACTIONS)("on_unhealthy", on_unhealthy),
    )


def resolve_directory(dir: str | os.PathLike[str] | None = None) -> Path:
    """Return where runs keep what they did not send, from the argument or `GRADMEDIC_DIR`.

    Raises:
        ConfigurationError: it is no path, or is not a folder.
    """
    directory: Path = _resolve("dir", dir, Path(DEFAULT_DIRECTORY), _folder)
    return directory.absolute()  # the script may change its working directory


def process_rank() -> int:
    """Return the rank of this process among those that train together: as torch has it, else as its launcher said."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    rank, size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return int(rank) if rank.isdecimal() and size.isdecimal() and int(size) > 1 else 0


def is_being_imported_by_spawn() -> bool:
    """Whether this process was spawned and is importing the main script for the functions in it."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and bool(getattr(process.current_process(), "_inheriting", False))


def as_trial(configuration: Configuration, parameters: Mapping[str, Any]) -> Configuration:
    """Return the configuration of a trial: whatever the script said, the worker decides whose run it is.

    Raises:
        ConfigurationError: the worker's environment lacks the run's id or its project.
    """
    project = _resolve("project", None, None, _name)
    run_id = _resolve("id", None, None, _uuid, variable="GRADMEDIC_RUN_ID")
    if project is None or run_id is None:
        raise ConfigurationError("a trial needs GRADMEDIC_RUN_ID and GRADMEDIC_PROJECT")
    return replace(
        configuration,
        connection=replace(resolve_connection(), timeout=configuration.connection.timeout),
        project=project,
        run_id=run_id,
        name=None,
        group=None,
        trainable=None,
        mode="online",
        on_unhealthy="warn",
        config=with_parameters(configuration.config, parameters),
    )


Check = Callable[[str, Any], T]


def _resolve(name: str, value: Any, default: Any, check: Check[T], *, variable: str | None = None) -> T:
    """Return the checked argument, else the checked environment variable, else the default."""
    if value is not None:
        return check(name, value)
    variable = variable or f"GRADMEDIC_{name.upper()}"
    text = os.environ.get(variable)
    return check(variable, text) if text else default


def _check(name: str, value: Any, check: Check[T]) -> T | None:
    return None if value is None else check(name, value)


def _name(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"{name} must be a string that is not blank, not {value!r}")
    if (error := name_error(value)) is not None:
        raise ConfigurationError(f"{name} {error}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a string, not {value!r}")
    return value


def _uuid(name: str, value: Any) -> UUID:
    try:
        id = value if isinstance(value, UUID) else UUID(value)
    except (ValueError, AttributeError, TypeError):
        id = None
    if id is None or id.version != 7:
        raise ConfigurationError(f"{name} must be a UUID of version 7 such as {new_id()}, not {str(value)!r}")
    return id


def _positive(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not (0 < number < math.inf):
        raise ConfigurationError(f"{name} must be a positive number, not {value!r}")
    return number


def _positive_integer(name: str, value: Any) -> int:
    number = _positive(name, value)
    if number != int(number):
        raise ConfigurationError(f"{name} must be a whole number, not {value!r}")
    return int(number)


def _frequency(name: str, value: Any) -> int | None:
    if value == "auto":
        return None
    try:
        return _positive_integer(name, value)
    except ConfigurationError:
        raise ConfigurationError(f'{name} must be "auto" or a whole number from 1, not {value!r}') from None


def _folder(name: str, value: Any) -> Path:
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise ConfigurationError(f"{name} must be the path of a folder, not {value!r}")
    path = Path(value)
    if path.exists() and not path.is_dir():
        raise ConfigurationError(f"{name} must be a folder; {str(path)!r} is none")
    return path


def _boolean(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    try:
        return words[str(value).lower()]
    except KeyError:
        raise ConfigurationError(f"{name} must be true or false, not {value!r}") from None


def _one_of(*choices: str) -> Check[str]:
    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise ConfigurationError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        return str(value)

    return check


def _comma_separated(text: str) -> list[str]:
    return [tag.strip() for tag in text.split(",") if tag.strip()]


def _tags(tags: Any) -> tuple[str, ...]:
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise ConfigurationError(f"tags must be a sequence of strings, not {tags!r}")
    return tuple(dict.fromkeys(_name("tags", tag) for tag in tags))


def _mapping_of(config: Any) -> Mapping[str, Any]:
    """Return the hyperparameters as a mapping; an `argparse.Namespace` or any other object with attributes will do."""
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return dict(config)
    try:
        return dict(vars(config))
    except TypeError:
        raise ConfigurationError(f"config must be a mapping or an object with attributes, not {config!r}") from None
