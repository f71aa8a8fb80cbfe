"""The settings."""

from __future__ import annotations

from gradmedic_service.http.addresses import is_loopback
from gradmedic_service.settings import Settings


def test_defaults_are_loopback() -> None:
    """By default only this machine can connect, and the database is in the working directory."""
    settings = Settings()
    assert is_loopback(settings.host)
    assert settings.database_url.get_secret_value() == "sqlite:///.gradmedic/gradmedic.db"
