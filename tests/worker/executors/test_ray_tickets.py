"""Tickets, and the cluster's token from which they are computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradmedic.exceptions import ConfigurationError
from gradmedic_worker.executors.ray_tickets import compute_ticket, read_cluster_token


def test_every_attempt_and_token_has_another_ticket() -> None:
    """Tickets of different attempts, and of different tokens, differ."""
    tickets = {compute_ticket(token, name) for token in ("a" * 32, "b" * 32) for name in ("x-1", "x-2", "y-1")}
    assert len(tickets) == 6
    assert all(len(ticket) == 53 for ticket in tickets)


def test_the_token_is_read_where_ray_reads_it(tmp_path: Path) -> None:
    """The configured file comes first, then the variables in Ray's order, then the file in the home folder."""
    configured, named = tmp_path / "configured", tmp_path / "named"
    configured.write_text("token of the configured file\n")
    named.write_text("token of the named file\n")
    (tmp_path / ".ray").mkdir()
    home_file = tmp_path / ".ray" / "auth_token"
    home_file.write_text("token of the home folder")
    environment = {
        "HOME": str(tmp_path),
        "RAY_AUTH_TOKEN_PATH": str(named),
        "RAY_AUTH_TOKEN": "token of a variable",
    }
    assert read_cluster_token(environment, configured) == "token of the configured file"
    assert read_cluster_token(environment) == "token of a variable"
    del environment["RAY_AUTH_TOKEN"]
    assert read_cluster_token(environment) == "token of the named file"
    del environment["RAY_AUTH_TOKEN_PATH"]
    assert read_cluster_token(environment) == "token of the home folder"
    home_file.write_text("short")
    with pytest.raises(ConfigurationError, match="has 5 characters"):
        read_cluster_token(environment)
