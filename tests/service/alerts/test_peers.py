"""The addresses that a webhook may reach."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis.strategies import ip_addresses

from gradmedic_service.alerts.peers import PeerPolicy, PeerRefused, parse_networks

STRICT = PeerPolicy(allows_loopback=False)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "8.8.8.8"])
def test_public_addresses_are_allowed(address: str) -> None:
    """A public address may be reached, in both families."""
    assert STRICT.allows(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "0.0.0.0",  # noqa: S104 (it must be refused)
        "::",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",  # shared by carriers, RFC 6598; and the metadata of a cloud, 100.100.100.200
        "169.254.169.254",
        "168.63.129.16",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "240.0.0.1",
        "192.0.0.192",
        "198.18.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::1",
        "2002:a9fe:a9fe::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
)
def test_other_addresses_are_refused(address: str) -> None:
    """Loopback, private, link-local, multicast and metadata addresses are refused, also within IPv6 addresses."""
    assert not STRICT.allows(ip_address(address))


@given(ip_addresses(v=4))
def test_a_mapped_address_is_judged_as_its_ipv4_address(address: Any) -> None:
    """An IPv4-mapped IPv6 address is allowed exactly if the IPv4 address is, to which a socket connects."""
    assert STRICT.allows(ip_address(f"::ffff:{address}")) == STRICT.allows(address)


def test_an_operator_allows_networks() -> None:
    """A private address within a named network may be reached, its neighbours may not."""
    policy = PeerPolicy(parse_networks("10.1.0.0/16, fd12::/32"), allows_loopback=False)
    reached = [policy.allows(ip_address(address)) for address in ("10.1.2.3", "10.2.2.3", "fd12::1", "::ffff:10.1.2.3")]
    assert reached == [True, False, True, True]


def test_loopback_is_allowed_where_the_service_is_on_it() -> None:
    """With loopback allowed, this machine may be reached, and no other private address."""
    policy = PeerPolicy(allows_loopback=True)
    reached = [policy.allows(ip_address(address)) for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1")]
    assert reached == [True, True, True, False]


def test_one_bad_address_refuses_the_host() -> None:
    """A name with a public and a private address is refused, whichever is first."""

    def lookup(_host: str, port: int, **_options: Any) -> list[tuple[Any, ...]]:
        return [(0, 0, 0, "", (address, port)) for address in ("93.184.215.14", "10.0.0.1")]

    policy = PeerPolicy(allows_loopback=False, lookup=lookup)
    with pytest.raises(PeerRefused, match=r"hooks\.example\.com is 10\.0\.0\.1"):
        policy.find("hooks.example.com", 443, loopback_only=False)
