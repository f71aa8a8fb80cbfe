"""The errors of pages and event streams."""

from __future__ import annotations

from gradmedic_service.http.errors import ServiceError


class TooManyStreams(ServiceError):
    """This process has as many event streams open as allowed. Try again later, or read the run itself."""

    status = 503
    error_code = "too_many_streams"
    title = "Too many event streams are open"


class PageNotFound(ServiceError):
    """No page has this address."""

    status = 404
    error_code = "page_not_found"
    title = "There is no such page"


class OperationNotFound(ServiceError):
    """There is no page of an operation with this name."""

    status = 404
    error_code = "operation_not_found"
    title = "There is no such operation"


class ConditionNotFound(ServiceError):
    """There is no page of a condition with this name."""

    status = 404
    error_code = "condition_not_found"
    title = "There is no such condition"
