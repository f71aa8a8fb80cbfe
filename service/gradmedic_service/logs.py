"""Logging: one line per event on standard error, for people or for programs, without the secrets of API keys."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, TextIO

import structlog

from gradmedic_service.access.secrets import redact_secrets
from gradmedic_service.settings import Settings

COLUMNS = ("timestamp", "level", "event", "logger")
"""Keys that nearly every event has."""
OTHER_KEYS = frozenset({"stack", "exception", "exc_info", "logger_name"})
"""Keys of an event that structlog shows in a way of their own, as a traceback."""
LEVEL_WIDTH = 9
"""Characters of the longest name of a level, `exception`."""
MARKS = frozenset(" \t=\r\n\"'")
"""Characters for which structlog prints a text in quotes."""


def set_up_logging(settings: Settings) -> None:
    """Format the events of structlog and the records of the standard library (uvicorn, SQLAlchemy) alike.

    Each request is an event, so events are written by structlog itself: the standard library would make a record of
    each, and format it a second time.
    """
    root = logging.getLogger()
    root.setLevel(settings.log_level.upper())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if settings.log_format == "json"
        else [_console_renderer(colors=True) if sys.stderr.isatty() else PlainRenderer()]
    )
    rendering.append(_hide_secrets)
    stream = sys.stderr
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(root.level),
        logger_factory=lambda name="": LineLogger(stream, name),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root.handlers = [handler]
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)  # it lists its parts at every migration


class PlainRenderer:
    """Renders events as structlog's console does without colors.

    It does not visit the console's columns one by one: each request is an event, and that took a fifth of the time in
    which the event loop serves a request.
    """

    def __init__(self) -> None:
        self._console = _console_renderer(colors=False)

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        """Return the line of an event; with a traceback, the lines."""
        if not (all(map(event.get, COLUMNS)) and OTHER_KEYS.isdisjoint(event)):
            return self._console(logger, method, event)
        time, level, text, name = map(event.pop, COLUMNS)
        pairs = "".join(f" {key}={_plain_value(event[key])}" for key in sorted(event))
        return f"{time} [{level:<{LEVEL_WIDTH}}] {text} [{name}]{pairs}"


def _plain_value(value: Any) -> str:
    return str.__str__(value) if isinstance(value, str) and MARKS.isdisjoint(value) else repr(value)


def _console_renderer(*, colors: bool) -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(
        colors=colors,
        pad_event_to=0,
        # The default one prints every local variable: large arrays, and data that does not belong in a log.
        exception_formatter=structlog.dev.plain_traceback,
    )


class LineLogger:
    """Writes finished lines to a stream, each with one call, so that threads do not mix them.

    A line that cannot be written is lost, for example because the disk is full: no request fails for it.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self.name = name

    def write_line(self, line: str) -> None:
        """Write a line."""
        with suppress(OSError, ValueError):
            self._stream.write(f"{line}\n")
            self._stream.flush()

    debug = info = warning = error = critical = write_line


def _hide_secrets(_logger: Any, _method: str, line: Any) -> str:
    """Redact the API keys in a finished line, whether an event or a traceback contains them."""
    return redact_secrets(str(line))
