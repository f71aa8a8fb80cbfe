"""Ports of this machine for servers of tests and benchmarks."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Final

PORTS: Final = (20_000, 32_000)
"""The range lies between the ports that Ray gives to its processes and those that the kernel gives to connections."""


def free_port() -> int:
    """Return a port at which no process listens, and which the kernel gives to no connection."""
    while True:
        port = random.SystemRandom().randrange(*PORTS)  # independent of the seed that a test has set
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def is_listening(port: int) -> bool:
    """Whether a process accepts connections at a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
