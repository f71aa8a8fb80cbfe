"""Statements of the most frequent requests, which the driver executes itself.

SQLAlchemy makes a context and a result object for each execution, which takes several times as long as SQLite needs for
the statement. A prepared statement is compiled by SQLAlchemy once, for each set of parameters. It converts the same
values and raises the same errors. Where somebody listens to statements, as tools of tracing do, SQLAlchemy executes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Delete, Dialect, Insert, Select, Update

STATEMENT_EVENTS = ("before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute")

Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement for one kind of database and one set of parameters."""

    sql: str
    names: Sequence[str]
    """Names of the parameters in the order of the statement; empty where the driver takes parameters by name."""
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
        """Execute the statement; return the number of rows that it has changed.

        Raises DBAPIError, and InvalidRequestError where a parameter is missing.
        """
        if _has_listeners(connection):
            options = {"preserve_rowcount": True}
            return connection.execute(self._statement, parameters, execution_options=options).rowcount
        with self._executing(connection, parameters) as cursor:
            return int(cursor.rowcount)

    def fetch_one(self, connection: Connection, parameters: Mapping[str, Any]) -> Sequence[Any] | None:
        """Execute a query; return its first row, None if there is none. Raises as `execute` does."""
        if _has_listeners(connection):
            return connection.execute(self._statement, parameters).first()
        with self._executing(connection, parameters) as cursor:
            row = cursor.fetchone()
            if row is None:
                return None
            dialect = connection.dialect
            conversions = self._row_conversions.get(dialect.name)
            if conversions is None:
                conversions = _row_conversions(self._statement, dialect, cursor.description)
                self._row_conversions[dialect.name] = conversions
            return [
                value if convert is None else convert(value) for value, convert in zip(row, conversions, strict=True)
            ]

    @contextmanager
    def _executing(self, connection: Connection, parameters: Mapping[str, Any]) -> Iterator[Any]:
        """Yield the driver's cursor after the execution, and close it."""
        dialect = connection.dialect
        key = (dialect.name, *parameters)
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compiled[key] = _compile(self._statement, dialect, parameters)
        if not connection.in_transaction():
            connection.begin()
        bound = compiled.bind(parameters)
        cursor = connection.connection.cursor()
        try:
            cursor.execute(compiled.sql, bound)
            yield cursor
        except dialect.loaded_dbapi.Error as error:
            # It raises the error as SQLAlchemy's, and drops the connections of a server that is gone.
            connection._handle_dbapi_exception(error, compiled.sql, bound, cursor, None)
        finally:
            cursor.close()


def _has_listeners(connection: Connection) -> bool:
    events = connection.dispatch
    return any(getattr(events, name) for name in STATEMENT_EVENTS)


def _compile(statement: Any, dialect: Dialect, parameters: Mapping[str, Any]) -> _Compiled:
    compiled = statement.compile(dialect=dialect, column_keys=sorted(parameters))
    types = {name: bind.type for name, bind in compiled.binds.items()}
    return _Compiled(
        sql=str(compiled),
        names=compiled.positiontup or (),
        constants={
            name: value for name, value in compiled.construct_params(dict(parameters)).items() if name not in parameters
        },
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
