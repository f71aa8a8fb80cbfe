"""Addresses: those that only this machine can reach, and those that one sender may choose from."""

from __future__ import annotations

import ipaddress
import socket

IPV6_PREFIX = 64
"""Bits of the network of a single site (RFC 4291, section 2.5.4)."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address or a host name.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "")]
    [True, True, True, False, False]
    """
    if not host:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        entries = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in entries)


def sender_of(address: str) -> str:
    """Return what identifies the sender at an address: of IPv6 the network, from which a host takes any address.

    >>> sender_of("192.0.2.7"), sender_of("2001:db8:1:2:3:4:5:6")
    ('192.0.2.7', '2001:db8:1:2::/64')
    """
    if ":" not in address:
        return address
    return str(ipaddress.ip_network((address.partition("%")[0], IPV6_PREFIX), strict=False))
