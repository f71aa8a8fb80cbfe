"""Which addresses only this machine can reach."""

from __future__ import annotations

from gradmedic_service.http.addresses import is_loopback


def test_loopback_addresses() -> None:
    """All of 127.0.0.0/8 and ::1 are loopback addresses; a private network's address is not."""
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.9.1", "::1", "10.0.0.1")] == [True, True, True, False]
