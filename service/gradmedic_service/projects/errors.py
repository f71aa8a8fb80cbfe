"""The errors of projects."""

from __future__ import annotations

from gradmedic_service.http.errors import ServiceError


class ProjectNotFound(ServiceError):
    """There is no such project: no run and no key names it."""

    status = 404
    error_code = "project_not_found"
    title = "There is no such project"


class ProjectFull(ServiceError):
    """The project has as many runs as allowed. Waiting does not help; deleting runs does."""

    status = 409
    error_code = "project_full"
    title = "The project is full"
