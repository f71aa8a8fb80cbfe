"""The errors of alerts."""

from __future__ import annotations

from gradmedic_service.http.errors import ServiceError


class AlertDestinationNotFound(ServiceError):
    """There is no such alert destination."""

    status = 404
    error_code = "alert_destination_not_found"
    title = "There is no such alert destination"


class AlertDestinationsFull(ServiceError):
    """The project has as many alert destinations as allowed. Removing one helps."""

    status = 409
    error_code = "alert_destinations_full"
    title = "The project has no room for another alert destination"
