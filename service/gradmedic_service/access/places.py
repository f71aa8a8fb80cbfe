"""The places of requests that are served at the same time, shared fairly between clients.

A free place goes to the client that holds fewest, so that a client with many requests delays itself and not the others.
One API key holds at most PLACES_SHARE of the places, because some of its requests may take long.
"""

from __future__ import annotations

import asyncio
from collections import deque

from gradmedic_service.access.shares import Client, Shares

PLACES_SHARE = 0.75
"""Part of the places that one API key may hold. More places than the machine has cores make no request faster, so
a single key loses nothing."""

Waiter = asyncio.Future[bool]
"""Becomes true with a place, or false if the request has to leave."""


class Places:
    """The places of a process. Belongs to one event loop.

    Args:
        total: requests that are served at the same time.
        max_waiting: requests that wait for a place.
    """

    def __init__(self, total: int, max_waiting: int) -> None:
        self._held = Shares(total, max(1, int(total * PLACES_SHARE)))
        self._max_waiting = max_waiting
        self._queues: dict[Client, deque[Waiter]] = {}
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return self._waiting

    def has_room(self, client: Client) -> bool:
        """Whether a request of a client would get a place or may wait for one."""
        return self._held.fits(client) or self._waiting < self._max_waiting or self._longest_queue(client) is not None

    async def enter(self, client: Client, seconds: float) -> bool:
        """Wait for a place, and return whether there is one in time. If so, `leave` must be called."""
        if client not in self._queues and self._held.take(client):
            return True
        if self._waiting >= self._max_waiting and not self._displace(client):
            return False
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(waiter)
        self._waiting += 1
        try:
            await asyncio.wait((waiter,), timeout=seconds)
        except asyncio.CancelledError:
            if waiter.done() and waiter.result():
                self.leave(client)
            self._remove(client, waiter)
            raise
        self._remove(client, waiter)
        return waiter.done() and waiter.result()

    def leave(self, client: Client) -> None:
        """Give a place back; it goes to the waiting client that holds fewest, of several to that served longest ago."""
        self._held.give_back(client)
        waiting = [other for other in self._queues if self._held.fits(other)]
        if waiting:
            next_client = min(waiting, key=self._held.held_by)
            queue = self._queues.pop(next_client)
            self._queues[next_client] = queue  # the last in turn
            waiter = queue[0]
            self._remove(next_client, waiter)
            self._held.take(next_client)
            waiter.set_result(True)

    def _remove(self, client: Client, waiter: Waiter) -> None:
        queue = self._queues.get(client, deque())
        if waiter in queue:
            queue.remove(waiter)
            self._waiting -= 1
        if client in self._queues and not queue:
            del self._queues[client]

    def _longest_queue(self, client: Client) -> Client | None:
        """Return the client with most waiting requests, if it has more than this one would have then."""
        longest = max(self._queues, key=lambda other: len(self._queues[other]), default=None)
        if longest is None or len(self._queues[longest]) <= len(self._queues.get(client, ())) + 1:
            return None
        return longest

    def _displace(self, client: Client) -> bool:
        """Send away the last waiting request of the client with most of them; return whether there is one."""
        longest = self._longest_queue(client)
        if longest is None:
            return False
        waiter = self._queues[longest][-1]
        self._remove(longest, waiter)
        waiter.set_result(False)
        return True
