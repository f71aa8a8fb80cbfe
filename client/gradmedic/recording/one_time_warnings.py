"""Warnings of which each kind is logged once, however often its cause repeats."""

from __future__ import annotations

import logging

logger = logging.getLogger("gradmedic")


class OneTimeWarnings:
    """Logs each kind of warning once. Any thread may use it."""

    def __init__(self) -> None:
        self._kinds: set[str] = set()

    def warn(self, kind: str, message: str) -> None:
        """Log a message, unless one of this kind was logged before."""
        if kind not in self._kinds:
            self._kinds.add(kind)
            logger.warning("gradmedic: %s (logged once)", message)
