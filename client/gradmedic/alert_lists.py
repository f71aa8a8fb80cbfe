"""Alert destinations and the history of alerts; a part of `gradmedic.Client`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import UUID

from gradmedic.protocol.alert_destinations import (
    AlertDestination,
    AlertDestinationCreate,
    AlertDestinationCreated,
    AlertDestinationList,
    AlertDestinationUpdate,
    AlertTestResult,
)
from gradmedic.protocol.alert_history import Alert, AlertHistory
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.projects import Project, ProjectUpdate

if TYPE_CHECKING:
    from gradmedic.api import Client

PAGE_SIZE = 100
TEST_SECONDS = 40.0
"""Seconds that the answer to a test may take: the service waits 20 seconds for the destination."""


class Alerts:
    """Where the alerts of projects go, and those that were made; see `Client`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def destinations(self, *, project: str | None = None, page_size: int = PAGE_SIZE) -> Iterator[AlertDestination]:
        """Iterate over the destinations of a project, or of all, oldest first."""
        query: dict[str, Any] = {"project": project, "max_results": page_size}
        while True:
            page = self._client._request(AlertDestinationList, "GET", "/alerts/destinations", query=query)
            yield from page.items
            if page.next_page_token is None:
                return
            query["page_token"] = page.next_page_token

    def add(
        self, project: str, address: str, *, name: str | None = None, troubles: Sequence[str] | None = None
    ) -> AlertDestinationCreated:
        """Add a destination, and return it with the signing secret of a webhook, which no later answer has.

        Makes one attempt: a second one after a lost answer would add a second destination.

        Args:
            project: name of the project.
            address: `https://...`, `mailto:...`, or the address of a chat service, such as `slack://...`.
            name: name for people; without it, the address without its secrets.
            troubles: some of `gradmedic.protocol.alert_history.TROUBLES`; without it, all.
        """
        body = to_json(
            AlertDestinationCreate(
                project=project, address=address, name=name, troubles=None if troubles is None else [*troubles]
            )
        )
        return self._client._service.request_as(AlertDestinationCreated, "POST", "/alerts/destinations", body=body)

    def update(
        self,
        id: UUID | str,
        *,
        name: str | None = None,
        troubles: Sequence[str] | None = None,
        muted_until: datetime | None = None,
    ) -> AlertDestination:
        """Change the given fields of a destination and return it. A time that has passed ends a mute."""
        update = AlertDestinationUpdate(
            name=name, troubles=None if troubles is None else [*troubles], muted_until=muted_until
        )
        return self._client._request(AlertDestination, "PATCH", f"/alerts/destinations/{id}", body=to_json(update))

    def mute_project(self, project: str, until: datetime) -> Project:
        """Let a project make no alerts until a time, and return the project. A time that has passed ends the mute."""
        body = to_json(ProjectUpdate(alerts_muted_until=until))
        return self._client._request(Project, "PATCH", f"/projects/{quote(project, safe='')}", body=body)

    def test(self, id: UUID | str) -> AlertTestResult:
        """Send a test message to a destination, and return whether it was delivered. Makes one attempt."""
        return self._client._service.request_as(
            AlertTestResult, "POST", f"/alerts/destinations/{id}/test", timeout=TEST_SECONDS
        )

    def remove(self, id: UUID | str) -> None:
        """Remove a destination. What waits for it is not sent."""
        self._client._send("DELETE", f"/alerts/destinations/{id}")

    def history(
        self,
        *,
        project: str | None = None,
        run_id: UUID | str | None = None,
        trouble: str | None = None,
        page_size: int = PAGE_SIZE,
    ) -> Iterator[Alert]:
        """Iterate over the alerts that were made and match every argument given, newest first."""
        query: dict[str, Any] = {
            "project": project,
            "run_id": run_id,
            "trouble": trouble,
            "max_results": page_size,
        }
        while True:
            page = self._client._request(AlertHistory, "GET", "/alerts/history", query=query)
            yield from page.items
            if page.next_page_token is None:
                return
            query["page_token"] = page.next_page_token
