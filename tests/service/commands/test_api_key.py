"""`gradmedic api-key`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.support.commands import run

from gradmedic_service.access.secrets import is_secret
from gradmedic_service.commands.api_key import API_KEY
from gradmedic_service.database import schema


def test_create_list_and_revoke(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A key is made with a name and an expiry, is listed, and is revoked by the part of its secret that is listed."""
    url = ("--database-url", database_url)
    make = ("create", "--project", "p", "--scope", "ingest", "--scope", "read", "--name", "nightly", "--expires", "30d")
    assert run(API_KEY, *make, "--json", *url) == 0
    made = json.loads(capsys.readouterr().out)
    assert is_secret(made["secret"])
    assert (made["name"], made["scopes"]) == ("nightly", ["ingest", "read"])
    days = (datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)) / timedelta(days=1)
    assert days == pytest.approx(30, abs=0.01)
    assert run(API_KEY, "list", *url) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["KEY", "NAME", "PROJECT"]
    assert row.split()[:4] == [made["prefix"], "nightly", "p", "ingest,read"]
    assert "never" in row
    assert run(API_KEY, "revoke", made["secret"][:-3], *url) == 0
    assert run(API_KEY, "revoke", "nothing", *url) == 1
    assert "no key has" in capsys.readouterr().err
    assert run(API_KEY, "list", "--project", "p", *url) == 0
    assert "revoked" in capsys.readouterr().out
    assert run(API_KEY, "list", "--project", "q", *url) == 0
    assert capsys.readouterr().out == "no keys\n"


def test_create_from_a_file(empty_database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--from-file` writes a secret that only its owner can read. The same command again changes nothing."""
    schema.upgrade(empty_database_url)
    file, url = tmp_path / "key", ("--database-url", empty_database_url)
    admin = ("create", "--all-projects", "--scope", "admin", "--from-file", str(file))
    assert run(API_KEY, *admin, *url) == 0
    secret = file.read_text().strip()
    assert is_secret(secret)
    assert file.stat().st_mode & 0o777 == 0o600
    assert run(API_KEY, *admin, *url) == 0
    assert file.read_text().strip() == secret
    shown = capsys.readouterr()
    assert shown.out == ""
    assert secret not in shown.err
    run(API_KEY, "list", "--json", *url)
    assert len(capsys.readouterr().out.splitlines()) == 1
    other = ("create", "--project", "p", "--scope", "read", "--from-file", str(file))
    assert run(API_KEY, *other, *url) == 1
    run(API_KEY, "revoke", secret, *url)
    assert run(API_KEY, *admin, *url) == 1
    assert "was revoked" in capsys.readouterr().err
    file.write_text("password123")
    assert run(API_KEY, *admin, *url) == 1
    assert "password123" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "--scope", "read"], "--project"),
        (["create", "--project", "p"], "--scope"),
        (["create", "--project", "p", "--scope", "root"], "root"),
        (["create", "--project", "p", "--scope", "read", "--expires", "soon"], "30d"),
        (["create", "--project", "p", "--scope", "read", "--expires", "2020-01-01"], "future"),
        (["create", "--project", "p", "--scope", "read", "--expires", "9" * 20 + "d"], "30d"),
        (["create", "--project", "p", "--scope", "read", "--expires", "9999-12-31T23:59:59-23:59"], "9999-12-30"),
        (["create", "--project", " ", "--scope", "read"], "project: must not be empty"),
    ],
)
def test_invalid_keys(arguments: list[str], words: str, sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid key is refused with the reason, and no key is made."""
    try:
        status: int | str | None = run(API_KEY, *arguments, "--database-url", sqlite_url)
    except SystemExit as error:
        status = error.code
    assert status in (1, 2)
    assert words in capsys.readouterr().err
    run(API_KEY, "list", "--database-url", sqlite_url)
    assert capsys.readouterr().out == "no keys\n"
