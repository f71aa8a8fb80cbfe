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


def test_links_have_the_public_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links in alerts begin with the public URL, by default with the service's own address."""
    assert Settings().link_base == "http://127.0.0.1:8642"
    assert Settings(host="::1", port=80, ssl_certfile=Path("a.pem")).link_base == "https://[::1]:80"
    monkeypatch.setenv("GRADMEDIC_PUBLIC_URL", "https://gradmedic.example.com/")
    assert Settings().link_base == "https://gradmedic.example.com"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PUBLIC_URL", "gradmedic.example.com", "must be like https://gradmedic.example.com"),
        ("PUBLIC_URL", "https://x/?a=1", "must be like https://gradmedic.example.com"),
        ("SMTP_URL", "smtp://mail.example.com", "smtp_url needs mail_from"),
        ("SMTP_URL", "smtp://user:hidden@mail.example.com?tls=none", "the password would be readable"),
        ("MAIL_FROM", "Ml <ml@example.com>", "must be the address of a mailbox"),
        ("WEBHOOK_ALLOWED_ADDRESSES", "10.0.0.0/99", "10.0.0.0/99"),
        ("SECRET_KEY", "hidden", "at least 32 characters; `openssl rand -base64 32` prints a new one"),
    ],
)
def test_bad_settings_of_alerts(name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a bad setting has what is expected, and no secret."""
    monkeypatch.setenv(f"GRADMEDIC_{name}", value)
    with pytest.raises(CommandError) as caught:
        read_settings()
    assert message in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_an_empty_variable_is_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of alerts may be empty, as docker compose passes them on where they are not set."""
    for name in ("SECRET_KEY", "PUBLIC_URL", "SMTP_URL", "MAIL_FROM", "WEBHOOK_ALLOWED_ADDRESSES"):
        monkeypatch.setenv(f"GRADMEDIC_{name}", "")
    settings = Settings()
    assert (settings.secret_key, settings.smtp_url, settings.mail_from) == (None, None, None)
    assert (settings.link_base, settings.webhook_allowed_addresses) == ("http://127.0.0.1:8642", ())


def test_networks_of_webhooks_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is a list of networks; a single address is a network of its own."""
    monkeypatch.setenv("GRADMEDIC_WEBHOOK_ALLOWED_ADDRESSES", "10.1.2.3/16, fd12::1")
    assert [str(network) for network in Settings().webhook_allowed_addresses] == ["10.1.0.0/16", "fd12::1/128"]
