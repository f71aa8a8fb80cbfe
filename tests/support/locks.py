"""Whether a transaction waits for another's lock: what tests of two writers wait for."""

from __future__ import annotations

from sqlalchemy import text

from gradmedic_service.database.engine import Database

_WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")


def is_anyone_waiting(database: Database) -> bool:
    """Whether PostgreSQL has somebody wait for a lock; SQLite's writers cannot be seen, nor need to be."""
    if database.engine.dialect.name == "sqlite":
        return True
    with database.reading() as session:  # a transaction sees one picture of who waits
        return bool(session.scalar(_WAITING))
