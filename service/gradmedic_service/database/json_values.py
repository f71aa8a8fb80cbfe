"""Values within a JSON column as SQL: the number or the text under a key, on SQLite and on PostgreSQL.

A key is one name, or a path of names joined by dots. If an object has the whole key as a name, that value counts,
otherwise the value at the end of the path.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Double, Text, bindparam
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import QueryableAttribute
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement

_SQLITE_NUMBER = "CASE WHEN type IN ('integer', 'real') THEN CAST(value AS REAL) END"
_SQLITE_TEXT = "CASE type WHEN 'text' THEN value WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' END"


class _JsonValue(FunctionElement[Any]):
    """The value under a key of a JSON object: the column, the key as a whole, and the names of its path."""

    inherit_cache = True

    def __init__(self, column: ColumnElement[Any] | QueryableAttribute[Any], key: str, *, is_path: bool = True) -> None:
        names = [key, *key.split(".")] if is_path and "." in key else [key]
        super().__init__(column, *(bindparam(None, name, type_=Text(), unique=True) for name in names))


class JsonNumber(_JsonValue):
    """The number under a key; null where there is none or it is no number."""

    name = "json_number"
    type = Double()
    inherit_cache = True


class JsonText(_JsonValue):
    """The text under a key, `true` and `false` included; null where there is none or it is neither."""

    name = "json_text"
    type = Text()
    inherit_cache = True


@compiles(JsonNumber, "sqlite")
def _compile_number_for_sqlite(element: JsonNumber, compiler: SQLCompiler, **options: Any) -> str:
    return _sqlite_value(element, compiler, _SQLITE_NUMBER, options)


@compiles(JsonText, "sqlite")
def _compile_text_for_sqlite(element: JsonText, compiler: SQLCompiler, **options: Any) -> str:
    return _sqlite_value(element, compiler, _SQLITE_TEXT, options)


@compiles(JsonNumber, "postgresql")
def _compile_number_for_postgresql(element: JsonNumber, compiler: SQLCompiler, **options: Any) -> str:
    node = _postgresql_node(element, compiler, options)
    return f"CASE WHEN json_typeof({node}) = 'number' THEN ({node} #>> '{{}}')::double precision END"


@compiles(JsonText, "postgresql")
def _compile_text_for_postgresql(element: JsonText, compiler: SQLCompiler, **options: Any) -> str:
    node = _postgresql_node(element, compiler, options)
    return f"CASE WHEN json_typeof({node}) IN ('string', 'boolean') THEN {node} #>> '{{}}' END"


def _sqlite_value(element: _JsonValue, compiler: SQLCompiler, wanted: str, options: dict[str, Any]) -> str:
    column, *keys = (compiler.process(clause, **options) for clause in element.clauses)
    rows = f"SELECT type, value FROM json_each({column}) WHERE key = {keys[0]}"  # noqa: S608 (the parts are compiled, and the keys are bound)
    if len(keys) > 1:
        tables = [f"json_each({column}) AS part0"]
        for depth in range(1, len(keys) - 1):
            outer = f"part{depth - 1}"
            tables.append(
                f"json_each(CASE {outer}.type WHEN 'object' THEN {outer}.value ELSE '{{}}' END) AS part{depth}"
            )
        end = f"part{len(keys) - 2}"
        matches = " AND ".join(f"part{depth}.key = {key}" for depth, key in enumerate(keys[1:]))
        rows += f" UNION ALL SELECT {end}.type, {end}.value FROM {', '.join(tables)} WHERE {matches}"  # noqa: S608
    return f"(SELECT {wanted} FROM ({rows}) LIMIT 1)"  # noqa: S608


def _postgresql_node(element: _JsonValue, compiler: SQLCompiler, options: dict[str, Any]) -> str:
    column, *keys = (compiler.process(clause, **options) for clause in element.clauses)
    if len(keys) == 1:
        return f"({column} -> {keys[0]}::text)"
    path = "".join(f" -> {key}::text" for key in keys[1:])
    return f"coalesce({column} -> {keys[0]}::text, {column}{path})"
