"""Count the transactions that wait for the lock of another one. Tests of two writers wait for that."""

from __future__ import annotations

from sqlalchemy import text

from gradmedic_service.database.engine import Database

_COUNT_WAITING = text(
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


def is_transaction_waiting(database: Database) -> bool:
    """Whether a transaction of PostgreSQL waits for a lock; always True on SQLite, where waiting cannot be observed."""
    return database.engine.dialect.name == "sqlite" or count_waiting_transactions(database) > 0


def count_waiting_transactions(database: Database) -> int:
    """Return the number of transactions of PostgreSQL that wait for a lock."""
    with database.reading() as session:  # a new transaction, because each sees one snapshot
        return int(session.scalar(_COUNT_WAITING) or 0)
