"""`gradmedic db`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.commands import run

from gradmedic_service.commands.db import DB
from gradmedic_service.database import schema


def test_upgrade_current_and_downgrade(empty_database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`db upgrade`, `db current` and `db downgrade` do their work and print the revision."""
    url = ("--database-url", empty_database_url)
    assert run(DB, "upgrade", *url) == 0
    assert f"revision {schema.head()}, this version needs {schema.head()}" in capsys.readouterr().out
    assert run(DB, "current", *url) == 0
    assert run(DB, "downgrade", "base", *url) == 0
    assert "revision none" in capsys.readouterr().out
    assert schema.current(empty_database_url) is None


def test_current_creates_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`db current` of a SQLite file that does not exist fails, names the command to run, and creates nothing."""
    path = tmp_path / "none" / "a.db"
    assert run(DB, "current", "--database-url", f"sqlite:///{path}") == 1
    assert "run `gradmedic db upgrade`" in capsys.readouterr().err
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["upgrade", "nonsense"], "nonsense"),
        (["upgrade", "--database-url", "mysql://h/d"], "mysql is not supported"),
        (["current", "--database-url", "postgresql://u:hidden@127.0.0.1:1/d"], "refused"),
    ],
)
def test_bad_schema_commands(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An action that is not possible fails with one line that gives the reason and no password."""
    monkeypatch.chdir(tmp_path)
    assert run(DB, *arguments) in (1, 2)
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error
    assert "hidden" not in error
