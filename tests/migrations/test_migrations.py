"""The migrations create the tables of the models on both databases, and can be undone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import column, insert, inspect, select, table

from gradmedic.protocol.ids import new_id
from gradmedic_service.database import schema
from gradmedic_service.database.engine import make_engine
from gradmedic_service.database.errors import UnknownRevision
from gradmedic_service.database.models import Base
from gradmedic_service.database.urls import parse_url


def tables(url: str) -> set[str]:
    """Return the names of a database's tables."""
    engine = make_engine(parse_url(url))
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def test_the_needed_revision_is_the_last_one() -> None:
    """The revision that the service reads from the files is the head that Alembic finds."""
    assert schema.head() == ScriptDirectory(str(schema.migrations_folder())).get_current_head()


def test_upgrade_creates_every_table(empty_database_url: str) -> None:
    """An empty database that is upgraded to head has the tables and the revision of the models."""
    assert schema.current(empty_database_url) is None
    schema.upgrade(empty_database_url)
    assert tables(empty_database_url) == {*Base.metadata.tables, schema.VERSION_TABLE}
    assert schema.current(empty_database_url) == schema.head()


def test_upgrade_can_be_repeated(empty_database_url: str) -> None:
    """Upgrading an upgraded database changes nothing."""
    schema.upgrade(empty_database_url)
    schema.upgrade(empty_database_url)
    assert schema.current(empty_database_url) == schema.head()


def test_downgrade_removes_everything(empty_database_url: str) -> None:
    """Downgrading to base removes all tables of the models, and upgrading works again."""
    schema.upgrade(empty_database_url)
    schema.downgrade(empty_database_url, "base")
    assert tables(empty_database_url) == {schema.VERSION_TABLE}
    schema.upgrade(empty_database_url)
    assert schema.current(empty_database_url) == schema.head()


def test_migrations_match_the_models(database_url: str) -> None:
    """Alembic finds no difference between the migrated database and the models."""
    engine = make_engine(parse_url(database_url))
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_server_default": True})
            assert compare_metadata(context, Base.metadata) == []
    finally:
        engine.dispose()


def test_upgrade_creates_the_projects_of_runs(empty_database_url: str) -> None:
    """Upgrading a database with runs creates each of their projects once, and keeps the runs."""
    schema.upgrade(empty_database_url, "0001")
    engine = make_engine(parse_url(empty_database_url))
    run = {
        "project": "p", "name": "n", "status": "running", "verdict": "undetermined", "score": 0.0, "generation": 0,
        "revision": 1, "created_at": datetime(2026, 1, 2, tzinfo=UTC), "updated_at": datetime(2026, 1, 2, tzinfo=UTC),
        "statistics": [], "metrics": [], "layer_counts": [0], "facts_digest": bytes(16),
    }  # fmt: skip
    try:
        columns = [found for found in Base.metadata.tables["runs"].columns if found.name in {"id", *run}]
        runs = table("runs", *(column(found.name, found.type) for found in columns))
        with engine.begin() as connection:
            for _ in range(2):
                connection.execute(insert(runs).values(id=new_id(), **run))
        schema.upgrade(empty_database_url)
        with engine.connect() as connection:
            found = connection.execute(select(Base.metadata.tables["projects"])).all()
            assert [(row.name, row.muted_detectors) for row in found] == [("p", [])]
            assert found[0].created_at == run["created_at"]
            assert len(connection.execute(select(runs)).all()) == 2
    finally:
        engine.dispose()
    schema.downgrade(empty_database_url, "0001")
    schema.upgrade(empty_database_url)


def test_downgrade_keeps_one_trainable_of_a_name(empty_database_url: str) -> None:
    """Of the trainables that several projects have under one name, the version before knows only the first."""
    schema.upgrade(empty_database_url)
    engine = make_engine(parse_url(empty_database_url))
    fields = {"owner": "", "gpus": 0, "timeout": 1.0, "parameters": [], "updated_at": datetime(2026, 1, 2, tzinfo=UTC)}
    rows: list[dict[str, object]] = [
        {"name": "train", "given_name": None, "project": "first"},
        {"name": "\nx", "given_name": "train", "project": "second"},
    ]
    trainables = Base.metadata.tables["trainables"]
    try:
        with engine.begin() as connection:
            connection.execute(insert(trainables), [fields | row for row in rows])
        schema.downgrade(empty_database_url, "0010")
        with engine.connect() as connection:
            found = connection.execute(select(trainables.c.name, trainables.c.project)).all()
            assert found == [("train", "first")]
    finally:
        engine.dispose()
    schema.upgrade(empty_database_url)


def test_unknown_revision_is_refused(sqlite_url: str) -> None:
    """A revision that does not exist is refused, and the error names it."""
    with pytest.raises(UnknownRevision, match="nonsense"):
        schema.upgrade(sqlite_url, "nonsense")


def test_template_warns_about_the_previous_version() -> None:
    """The template of a migration warns not to break the running version."""
    template = schema.migrations_folder() / "script.py.mako"
    assert "Do not break the previous version of the code" in template.read_text()


def test_migrations_are_found_in_the_checkout() -> None:
    """Without a packaged folder, the migrations are read from the root of the checkout."""
    assert schema.migrations_folder() == Path(__file__).parents[2] / "migrations"
