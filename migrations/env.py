"""Runs the migrations: by `gradmedic db`, by `gradmedic serve` on SQLite, or by `alembic` in a checkout.

One idea: a migration never waits for long while others wait for it. On PostgreSQL an advisory lock lets one process
migrate at a time, and lock and statement timeouts end one that would stop the service.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

from gradmedic_service.database.engine import SQLITE_BEGIN, make_engine, parse_url
from gradmedic_service.database.models import Base
from gradmedic_service.settings import Settings

ADVISORY_LOCK = 0x67726164  # "grad"
LOCK_TIMEOUT = "10s"
STATEMENT_TIMEOUT = "5min"


def run() -> None:
    """Migrate the database that the caller names, else that of the settings."""
    given = context.config.attributes.get("database_url")
    url = parse_url(given or Settings().database_url.get_secret_value())
    # Rebuilding a table on SQLite drops it first: with foreign keys on, its children would be deleted.
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
