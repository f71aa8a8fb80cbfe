"""The settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradmedic_service.commands.errors import CommandError
from gradmedic_service.commands.options import read_settings
from gradmedic_service.database.urls import parse_url
from gradmedic_service.http.addresses import is_loopback
from gradmedic_service.settings import Settings


def default_database() -> Path:
    """Return the path of the database of settings that nothing configures."""
    return Path(parse_url(Settings().database_url.get_secret_value()).database or "")


def test_defaults_are_loopback() -> None:
    """By default only this machine can connect."""
    assert is_loopback(Settings().host)


def test_the_database_has_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default database does not depend on the working directory: it is in the user's folder of data."""
    monkeypatch.setenv("HOME", str(tmp_path / "user%20 ?"))
    for given in ("", "relative/path"):  # the specification of XDG ignores a relative path
        monkeypatch.setenv("XDG_DATA_HOME", given)
        assert default_database() == tmp_path / "user%20 ?" / ".local" / "share" / "gradmedic" / "gradmedic.db"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_database() == tmp_path / "data" / "gradmedic" / "gradmedic.db"


def test_a_database_of_version_0_1_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `.gradmedic/gradmedic.db` in the working directory is used; a journal of the SDK there is not enough."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    Path(".gradmedic").mkdir()
    assert default_database() == tmp_path / "data" / "gradmedic" / "gradmedic.db"
    Path(".gradmedic/gradmedic.db").touch()
    assert default_database() == tmp_path / ".gradmedic" / "gradmedic.db"


def test_a_user_without_a_home_must_name_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user has no home directory, the error names the variable that names a database."""

    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(CommandError, match="GRADMEDIC_DATABASE_URL"):
        read_settings()
    assert read_settings(database_url="sqlite:///a.db").database_url.get_secret_value() == "sqlite:///a.db"
