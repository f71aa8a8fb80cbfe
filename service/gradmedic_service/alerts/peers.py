"""The addresses that a webhook may reach.

A project's administrator names the URL, but the service sends the request. So an address within the operator's network
must not be reachable: neither by its number, nor by a name that resolves to it, nor by a name that resolves to it only
at the second look.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network
Lookup = Callable[..., Sequence[tuple[Any, ...]]]
"""Looks up a name as `socket.getaddrinfo` does."""

NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
"""Addresses that a gateway translates into the IPv4 address in their last 32 bits (RFC 6052 and RFC 8215)."""
NEVER_PUBLIC: tuple[IpNetwork, ...] = (
    IPv4Network("168.63.129.16/32"),  # Azure's services for virtual machines, at a public address
    IPv4Network("192.0.0.0/24"),  # IETF assignments (RFC 6890), and a cloud's metadata at 192.0.0.192
    IPv6Network("fec0::/10"),  # the former site-local addresses (RFC 3879)
)
"""Networks that Python's `is_global` accepts, and that are not on the internet."""


class PeerRefused(Exception):
    """No address of a host may be reached. The message names the host and the address."""


class PeerPolicy:
    """The addresses that may be reached.

    Args:
        allowed: private networks that may be reached.
        allows_loopback: whether this machine may be reached.
        lookup: looks up a name.
    """

    def __init__(
        self, allowed: Sequence[IpNetwork] = (), *, allows_loopback: bool, lookup: Lookup = socket.getaddrinfo
    ) -> None:
        self._allowed = tuple(allowed)
        self._allows_loopback = allows_loopback
        self._lookup = lookup

    def find(self, host: str, port: int, *, loopback_only: bool) -> list[IpAddress]:
        """Look a host up once, and return its addresses, all of which may be reached.

        The caller connects to one of these addresses, and never to the name: it may resolve to another address then.

        Args:
            host: name or number of the host.
            port: its port.
            loopback_only: whether only this machine is accepted, for a connection without TLS.

        Raises PeerRefused if one address may not be reached, OSError if the name is unknown.
        """
        entries = self._lookup(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries))
        for address in addresses:
            if not self.allows(address):
                raise PeerRefused(f"{host} is {address}, which is no public address and not allowed.")
            if loopback_only and not address.is_loopback:
                raise PeerRefused(f"{host} is {address}; without TLS only this machine is allowed.")
        return addresses

    def allows(self, address: IpAddress) -> bool:
        """Whether an address may be reached, with every IPv4 address that is within it."""
        return all(self._allows_one(part) for part in _addresses_within(address))

    def _allows_one(self, address: IpAddress) -> bool:
        if any(address in network for network in self._allowed):
            return True
        if address.is_loopback:
            return self._allows_loopback
        return (
            address.is_global
            and not address.is_multicast
            and not address.is_reserved
            and not any(address in network for network in NEVER_PUBLIC)
        )


def _addresses_within(address: IpAddress) -> Iterator[IpAddress]:
    """Yield an address and the IPv4 addresses to which gateways and sockets translate it."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    if mapped is not None:  # the socket connects to the IPv4 address
        yield mapped
        return
    yield address
    if isinstance(address, IPv6Address):
        if address.sixtofour is not None:
            yield address.sixtofour
        if address.teredo is not None:
            yield from address.teredo
        if any(address in network for network in NAT64):
            yield IPv4Address(int(address) & 0xFFFF_FFFF)


def parse_networks(text: str) -> tuple[IpNetwork, ...]:
    """Return the networks of a text, which commas separate. Raises ValueError.

    >>> parse_networks("10.1.0.0/16, ::1")
    (IPv4Network('10.1.0.0/16'), IPv6Network('::1/128'))
    """
    return tuple(ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip())
