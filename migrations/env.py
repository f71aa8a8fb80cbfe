"""Runs the migrations, for `gradmedic db`, for `gradmedic serve` on SQLite, and for `alembic` in a checkout.

On PostgreSQL an advisory lock lets only one process migrate at a time. Lock and statement timeouts end a migration that
would block the service for long.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

from gradmedic_service.database.engine import SQLITE_BEGIN, make_engine
from gradmedic_service.database.models import Base
from gradmedic_service.database.urls import parse_url
from gradmedic_service.settings import Settings

ADVISORY_LOCK = 0x67726164  # "grad"
LOCK_TIMEOUT = "10s"
STATEMENT_TIMEOUT = "5min"


def run() -> None:
    """Migrate the database that the caller names, or else the database of the settings."""
    given = context.config.attributes.get("database_url")
    url = parse_url(given or Settings().database_url.get_secret_value())
    # Rebuilding a table on SQLite drops it first: with foreign keys enforced, rows that refer to it would be deleted.
    engine = make_engine(url, foreign_keys=False).execution_options(**{SQLITE_BEGIN: "BEGIN IMMEDIATE"})
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL lock_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
                connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
                connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'"))
            migrate(connection)
    finally:
        engine.dispose()


def migrate(connection: Connection) -> None:
    """Run the migrations in the connection's transaction."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        compare_server_default=True,
        transactional_ddl=True,
    )
    context.run_migrations()


run()
