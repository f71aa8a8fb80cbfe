"""The errors of the database."""

from __future__ import annotations

from gradmedic_service.http.errors import ServiceError


class DatabaseBusy(ServiceError):
    """No lock or connection became free in time. Nothing was stored; the same request may be sent again."""

    status = 503
    error_code = "database_busy"
    title = "The database is busy"


class DatabaseUnavailable(ServiceError):
    """The database cannot be reached. Nothing was acknowledged; the same request may be sent again."""

    status = 503
    error_code = "database_unavailable"
    title = "The database is unavailable"


class DatabaseNotMigrated(ServiceError):
    """The database's schema is not the one that this version of the service needs."""

    status = 503
    error_code = "database_not_migrated"
    title = "The database needs a migration"


class StorageFull(ServiceError):
    """The database's disk is full, or a file has reached a limit of its size. Nothing was stored."""

    status = 507
    error_code = "storage_full"
    title = "The disk is full"


class UnknownRevision(ServiceError):
    """The schema has no such revision, or no migration leads to it. Only commands raise this error."""
