"""The database's schema: create, upgrade, downgrade and check it with the service's migrations.

Alembic is imported only where a migration is run: a service whose database is up to date answers sooner without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, column, inspect, select, table

from gradmedic_service.database.engine import Database, make_engine, translating_errors
from gradmedic_service.database.errors import DatabaseNotMigrated, UnknownRevision
from gradmedic_service.database.urls import create_parent_folder, is_missing, is_sqlite, parse_url, printable_url

if TYPE_CHECKING:
    from alembic.config import Config

UPGRADE_COMMAND = "gradmedic db upgrade"
VERSION_TABLE = "alembic_version"
_REVISION = re.compile(r'^(revision|down_revision) = "(\w+)"', re.MULTILINE)
"""The lines of a migration that name its revision and the one before it."""


def migrations_folder() -> Path:
    """Return the folder of the migrations: in the package of a wheel, at the root of a checkout."""
    packaged = Path(__file__).parents[1] / "migrations"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "migrations"


def upgrade(database_url: str, revision: str = "head") -> None:
    """Upgrade the schema to a revision. Raises UnknownRevision."""
    from alembic import command

    with translating_errors(), _translating_revision_errors():
        command.upgrade(_config(database_url), revision)


def downgrade(database_url: str, revision: str) -> None:
    """Downgrade the schema to a revision; `base` removes all tables. Raises UnknownRevision."""
    from alembic import command

    with translating_errors(), _translating_revision_errors():
        command.downgrade(_config(database_url), revision)


def current(database_url: str) -> str | None:
    """Return the revision of the schema; None for an empty database."""
    engine = make_engine(parse_url(database_url))
    try:
        with translating_errors(), engine.connect() as connection:
            return _revision_of(connection)
    finally:
        engine.dispose()


def head() -> str:
    """Return the revision that this version of the service needs: the one that no other migration follows."""
    found: dict[str, set[str]] = {"revision": set(), "down_revision": set()}
    for file in migrations_folder().glob("versions/*.py"):
        for kind, name in _REVISION.findall(file.read_text(encoding="utf-8")):
            found[kind].add(name)
    heads = found["revision"] - found["down_revision"]
    if len(heads) != 1:
        raise RuntimeError(f"{len(heads)} migrations in {migrations_folder()} are the last one")
    return heads.pop()


def prepare(database_url: str) -> None:
    """Create and migrate a SQLite database, or check the revision of a PostgreSQL database, which others may use.

    Raises DatabaseNotMigrated for a PostgreSQL database at another revision, OSError if the folder cannot be created.
    """
    if is_sqlite(database_url):
        create_parent_folder(database_url)
        if is_missing(database_url) or current(database_url) != head():
            upgrade(database_url)
        return
    revision = current(database_url)
    if revision != head():
        raise not_migrated(revision, head(), f" --database-url {printable_url(database_url)}")


def check_revision(database: Database, expected: str) -> None:
    """Raise DatabaseNotMigrated unless the schema is at the expected revision, and errors of reading the database."""
    with database.reading() as session:
        revision = _revision_of(session.connection())
    if revision != expected:
        raise not_migrated(revision, expected)


def not_migrated(revision: str | None, expected: str, arguments: str = "") -> DatabaseNotMigrated:
    """Return the error of a schema at another revision. It names the command to run, with these arguments."""
    return DatabaseNotMigrated(
        f"The schema is at revision {revision or 'none'}, this version needs {expected}: run "
        f"`{UPGRADE_COMMAND}{arguments}`."
    )


def _revision_of(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(select(column("version_num")).select_from(table(VERSION_TABLE)))
    return revision


@contextmanager
def _translating_revision_errors() -> Iterator[None]:
    """Raise Alembic's error of a revision as UnknownRevision."""
    from alembic.util import CommandError

    try:
        yield
    except CommandError as error:
        raise UnknownRevision(f"{error}; `gradmedic db current` prints the revision of the schema.") from None


def _config(database_url: str) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["database_url"] = database_url
    return config
