"""Databases of a PostgreSQL server that tests borrow."""

from __future__ import annotations

import uuid

import psycopg
from psycopg import sql

from gradmedic_service.database import models, schema

_FILLED_TABLES = sql.SQL(" UNION ALL ").join(
    sql.SQL("SELECT {} WHERE EXISTS (SELECT 1 FROM {})").format(sql.Literal(table.name), sql.Identifier(table.name))
    for table in models.Base.metadata.sorted_tables
)
"""Returns the names of the tables with rows. To empty a table takes long, also if it is empty."""


class LentDatabases:
    """The databases of a server that tests borrow.

    A migrated database is lent, emptied and lent again: to make one takes longer than most tests. It gets a new name
    each time, so that a connection that outlives its test does not reach the database of the next.

    Args:
        base_url: The server's URL, without the name of a database.
    """

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url.rstrip("/")
        self._spare: list[str] = []

    def create(self) -> str:
        """Create an empty database and return its name."""
        name = _new_name()
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return name

    def lend(self) -> str:
        """Return the name of a migrated database without any row."""
        if not self._spare:
            name = self.create()
            schema.upgrade(self.url(name))
            self._spare.append(name)
        return self._spare.pop()

    def take_back(self, name: str) -> None:
        """End the connections to a lent database, rename it and empty it."""
        new, ends = _new_name(), "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = {}"
        self._execute(
            sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)),
            sql.SQL(ends).format(sql.Literal(name)),
            sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(name), sql.Identifier(new)),
            sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(new)),
        )
        with psycopg.connect(self.url(new), autocommit=True) as connection:
            names = [row[0] for row in connection.execute(_FILLED_TABLES)]
            if names:
                tables = sql.SQL(", ").join(map(sql.Identifier, names))
                connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY CASCADE").format(tables))
        self._spare.append(new)

    def drop(self, name: str) -> None:
        """Remove a database and end the connections to it."""
        self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def drop_spare(self) -> None:
        """Remove the databases that are not lent."""
        while self._spare:
            self.drop(self._spare.pop())

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        return f"{self._base_url}/{name}"

    def _execute(self, *statements: sql.Composed) -> None:
        """Run statements, each outside of any transaction."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)


def _new_name() -> str:
    return f"gradmedic_test_{uuid.uuid4().hex}"
