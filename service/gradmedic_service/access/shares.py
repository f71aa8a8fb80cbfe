"""Shares: what the clients of a process hold together, and the part that one of them may hold.

One client that asks for all, in good or in bad faith, leaves room for the others.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

from starlette.types import Scope

from gradmedic_service.access.principal import RESULT, Principal
from gradmedic_service.http.addresses import sender_of


@dataclass(frozen=True, slots=True)
class Client:
    """The sender of requests, as far as it can be told apart from others: an API key or an address."""

    name: str
    has_all: bool
    """Whether it may hold everything: where no key is needed, the only client is the user of this machine."""


def client_of(scope: Scope) -> Client:
    """Return the client of a request that `Authentication` has seen."""
    principal = scope["state"][RESULT]
    if isinstance(principal, Principal) and principal.key_id is not None:
        return Client(str(principal.key_id), has_all=False)
    return Client(sender_of((scope.get("client") or ("",))[0]), has_all=isinstance(principal, Principal))


class Shares:
    """Counts what each client holds; threads may share it.

    Args:
        total: what all clients may hold together.
        per_client: what one of them may hold.
    """

    def __init__(self, total: int, per_client: int) -> None:
        self._total = total
        self._per_client = per_client
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self._sum = 0

    def held_by(self, client: Client) -> int:
        """Return what a client holds."""
        return self._held[client.name]

    def largest(self, client: Client) -> int:
        """Return the most that a client may hold."""
        return self._total if client.has_all else min(self._per_client, self._total)

    def fits(self, client: Client, amount: int = 1) -> bool:
        """Whether a client may take an amount beside what it holds."""
        return (
            client.has_all or self._held[client.name] + amount <= self._per_client
        ) and self._sum + amount <= self._total

    def take(self, client: Client, amount: int = 1) -> bool:
        """Take an amount for a client, if it fits; return whether it did."""
        with self._lock:
            if not self.fits(client, amount):
                return False
            self._add(client, amount)
            return True

    def take_anyway(self, client: Client, amount: int = 1) -> None:
        """Take an amount that exists already, whether it fits or not."""
        with self._lock:
            self._add(client, amount)

    def give_back(self, client: Client, amount: int = 1) -> None:
        """Give back an amount that was taken."""
        with self._lock:
            self._add(client, -amount)

    def _add(self, client: Client, amount: int) -> None:
        self._sum += amount
        self._held[client.name] += amount
        if self._held[client.name] == 0:
            del self._held[client.name]
