"""Statements of the most frequent requests, which the driver executes itself.

SQLAlchemy makes a context and a result object for each execution, which takes several times as long as SQLite needs for
the statement. A prepared statement is compiled by SQLAlchemy once, for each set of parameters. It converts the same
values, raises the same errors and dispatches the same events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Delete, Dialect, Insert, Select, Update
from sqlalchemy.exc import DBAPIError

Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement for one kind of database and one set of parameters."""

    sql: str
    names: Sequence[str]
    """Names of the parameters in the order of the statement; empty where it names them itself."""
    constants: Mapping[str, Any]
    """Parameters that the statement has of its own."""
    conversions: Sequence[tuple[str, Convert]]
    """How parameters are converted for the driver, by their names."""

    def bind(self, parameters: Mapping[str, Any]) -> Any:
        """Return the parameters as the driver takes them."""
        bound = {**self.constants, **parameters}
        for name, convert in self.conversions:
            bound[name] = convert(bound[name])
        return [bound[name] for name in self.names] if self.names else bound


class PreparedStatement:
    """A statement that is compiled once. Threads may share it.

    Args:
        statement: its parameters are single values, each of which every execution gives. An `Insert` or `Update` gets
            those of its columns too.
    """

    def __init__(self, statement: Select[Any] | Insert | Update | Delete) -> None:
        self._statement = statement
        self._compiled: dict[tuple[str, ...], _Compiled] = {}
        self._row_conversions: dict[str, Sequence[Convert | None]] = {}

    def execute(self, connection: Connection, parameters: Mapping[str, Any]) -> int:
        """Execute the statement; return the number of rows that it has changed. Raises DBAPIError."""
        return int(self._execute(connection, parameters).rowcount)

    def fetch_one(self, connection: Connection, parameters: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Execute a query; return its first row, None if there is none. Raises DBAPIError."""
        cursor = self._execute(connection, parameters)
        row = cursor.fetchone()
        if row is None:
            return None
        dialect = connection.dialect
        conversions = self._row_conversions.get(dialect.name)
        if conversions is None:
            conversions = _row_conversions(self._statement, dialect, cursor.description)
            self._row_conversions[dialect.name] = conversions
        return tuple(
            value if convert is None else convert(value) for value, convert in zip(row, conversions, strict=True)
        )

    def _execute(self, connection: Connection, parameters: Mapping[str, Any]) -> Any:
        """Return the driver's cursor after the execution."""
        dialect = connection.dialect
        key = (dialect.name, *parameters)
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compiled[key] = _compile(self._statement, dialect, parameters)
        if not connection.in_transaction():
            connection.begin()
        bound = compiled.bind(parameters)
        cursor = connection.connection.cursor()
        events: Any = connection.dispatch
        events.before_cursor_execute(connection, cursor, compiled.sql, bound, None, False)
        try:
            cursor.execute(compiled.sql, bound)
        except dialect.loaded_dbapi.Error as error:
            is_disconnected = dialect.is_disconnect(error, connection.connection.dbapi_connection, cursor)
            if is_disconnected:
                connection.invalidate(error)
            raise DBAPIError.instance(
                compiled.sql,
                bound,
                error,
                dialect.loaded_dbapi.Error,
                connection_invalidated=is_disconnected,
                dialect=dialect,
            ) from error
        events.after_cursor_execute(connection, cursor, compiled.sql, bound, None, False)
        return cursor


def _compile(statement: Any, dialect: Dialect, parameters: Mapping[str, Any]) -> _Compiled:
    compiled = statement.compile(dialect=dialect, column_keys=sorted(parameters))
    types = {name: bind.type for name, bind in compiled.binds.items()}
    return _Compiled(
        sql=str(compiled),
        names=compiled.positiontup or (),
        constants={name: value for name, value in compiled.params.items() if name not in parameters},
        conversions=[
            (name, convert)
            for name, kind in types.items()
            if (convert := kind.dialect_impl(dialect).bind_processor(dialect)) is not None
        ],
    )


def _row_conversions(
    statement: Any, dialect: Dialect, description: Sequence[Sequence[Any]]
) -> Sequence[Convert | None]:
    """Return how the values of a row are converted from those of the driver; None for values that stay.

    `description` is that of the driver's cursor (PEP 249): name and type of each column.
    """
    return [
        column.type.dialect_impl(dialect).result_processor(dialect, kind)
        for column, (_, kind, *_) in zip(statement.selected_columns, description, strict=True)
    ]
