"""Types of the fixtures for a service in the test's own process."""

from __future__ import annotations

from typing import Any, Protocol

import httpx2

from gradmedic_service.services import Services


class ReplaceServices(Protocol):
    """Replaces some parts of the session's application until the end of the test, and returns its services."""

    def __call__(self, **parts: Any) -> Services:
        """Replace the parts with these names."""


class CreateRun(Protocol):
    """Creates a run with some layers and statistics and returns its path."""

    def __call__(
        self, client: httpx2.Client, layers: int = 2, statistics: tuple[str, ...] = ("grad_norm",), **fields: Any
    ) -> str:
        """Send the request."""
