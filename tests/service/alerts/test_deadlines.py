"""Calls that end in time."""

from __future__ import annotations

import socket
from threading import Event

import pytest
from tests.support.patience import PATIENCE

from gradmedic_service.alerts.deadlines import Connections, call_within
from gradmedic_service.alerts.messages import DeliveryFailed


def test_a_connection_that_is_made_too_late_is_closed() -> None:
    """A connection that is made after the time is over is closed, and the call ends with it."""
    may_connect, has_ended = Event(), Event()
    late: list[socket.socket] = []

    def call(connections: Connections) -> None:
        may_connect.wait(PATIENCE)
        left, right = socket.socketpair()
        late.append(left)
        try:
            connections.add(left)
        finally:
            right.close()
            has_ended.set()

    with pytest.raises(DeliveryFailed, match="within"):
        call_within(0.01, call)
    may_connect.set()
    assert has_ended.wait(PATIENCE)
    assert late[0].fileno() == -1


def test_a_failure_is_raised_where_the_call_was_made() -> None:
    """An error of the call is raised again; its connections are closed by then."""
    left, right = socket.socketpair()

    def call(connections: Connections) -> None:
        connections.add(left)
        raise DeliveryFailed("no")

    with pytest.raises(DeliveryFailed, match="no"):
        call_within(PATIENCE, call)
    assert left.fileno() == -1
    right.close()
