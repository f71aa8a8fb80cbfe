"""Logging: one line per event on standard error, for people or for programs, without the secrets of API keys."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from gradmedic_service.access.secrets import redact_secrets
from gradmedic_service.settings import Settings


def set_up_logging(settings: Settings) -> None:
    """Format the events of structlog and the records of the standard library (uvicorn, SQLAlchemy) alike."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    rendering: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if settings.log_format == "json"
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                pad_event_to=0,
                # The default one prints every local variable: large arrays, and data that does not belong in a log.
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    )
    rendering.append(_hide_secrets)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)  # it lists its parts at every migration


def _hide_secrets(_logger: Any, _method: str, line: Any) -> str:
    """Redact the API keys in a finished line, whether an event or a traceback contains them."""
    return redact_secrets(str(line))
