"""Return whether a transaction waits for the lock of another one. Tests of two writers wait for that."""

from __future__ import annotations

from sqlalchemy import text

from gradmedic_service.database.engine import Database

_COUNT_WAITING = text(
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


def is_transaction_waiting(database: Database) -> bool:
    """Whether a transaction of PostgreSQL waits for a lock; always True on SQLite, where waiting cannot be observed."""
    if database.engine.dialect.name == "sqlite":
        return True
    with database.reading() as session:  # a new transaction, because each sees one snapshot
        return bool(session.scalar(_COUNT_WAITING))
