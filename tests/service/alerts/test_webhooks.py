"""Webhooks over real connections: what is sent, what is refused, and that every attempt ends."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from standardwebhooks import Webhook
from tests.service.alerts.messages import RUN_ID, message, webhook
from tests.support.patience import PATIENCE
from tests.support.receivers import Receiver, answering

from gradmedic_service.alerts.deadlines import ATTEMPT_THREAD
from gradmedic_service.alerts.messages import DeliveryFailed
from gradmedic_service.alerts.peers import PeerPolicy, parse_networks
from gradmedic_service.alerts.webhooks import WebhookSender

TLS = Path(__file__).parents[2] / "data" / "tls"
LOCAL = PeerPolicy(allows_loopback=True)
SHORT = 0.2
"""Seconds of an attempt that must fail because they pass."""


def sender(policy: PeerPolicy = LOCAL, *, seconds: float = PATIENCE, trusts: Path | None = None) -> WebhookSender:
    """Return a sender that waits as long as a slow machine needs, and that may trust a certificate of the tests."""
    context = None if trusts is None else ssl.create_default_context(cafile=str(trusts))
    return WebhookSender(policy, seconds=seconds, ssl_context=context)


def failure_of(sending: WebhookSender, url: str) -> DeliveryFailed:
    """Return why a message is not delivered."""
    with pytest.raises(DeliveryFailed) as caught:
        sending.send(webhook(url), message())
    return caught.value


def server_context() -> ssl.SSLContext:
    """Return the TLS of a server named localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    return context


class Names:
    """A resolver that answers each lookup of a name with the next of some lists of addresses."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.lookups = 0

    def __call__(self, _host: str, port: int, **_options: Any) -> list[tuple[Any, ...]]:
        """Look a name up."""
        addresses = self._answers[min(self.lookups, len(self._answers) - 1)]
        self.lookups += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port)) for address in addresses]


def test_a_receiver_verifies_the_message() -> None:
    """A library of Standard Webhooks verifies the message; its id and body are the same at every attempt."""
    with Receiver() as receiver:
        address = webhook(f"http://localhost:{receiver.port}/hooks/7?team=ml")
        sending = sender()
        sending.send(address, message())
        sending.send(address, message())
        first, second = receiver.take(), receiver.take()
    assert first.line == "POST /hooks/7?team=ml HTTP/1.1"
    assert first.headers["host"] == f"localhost:{receiver.port}"
    assert first.headers["content-type"] == "application/json"
    verified = Webhook(address.parts["signing_secret"]).verify(first.body, first.headers)
    assert verified["type"] == "alert.critical"
    assert verified["timestamp"] == "2027-01-02T03:04:05Z"
    assert verified["data"]["run_ids"] == [str(RUN_ID)]
    assert verified["data"]["advice"] == "clip_grad_norm(max_norm=1.0)"
    assert verified["data"]["id"] == first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body


def test_another_secret_does_not_verify() -> None:
    """A receiver with another signing secret refuses the message."""
    with Receiver() as receiver:
        sender().send(webhook(f"http://127.0.0.1:{receiver.port}/"), message())
        request = receiver.take()
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(webhook("https://x/").parts["signing_secret"]).verify(request.body, request.headers)


def test_the_certificate_is_checked_against_the_name() -> None:
    """A trusted certificate of the URL's name is accepted, although the connection is to a number."""
    with Receiver(ssl_context=server_context()) as receiver:
        sender(trusts=TLS / "certificate.pem").send(webhook(f"https://localhost:{receiver.port}/"), message())
        assert json.loads(receiver.take().body)["data"]["project"] == "char-lm"


def test_wrong_certificates_are_refused() -> None:
    """A certificate that no authority signed, and one of another name, end the attempt before anything is sent."""
    with Receiver(ssl_context=server_context()) as receiver:
        unknown = failure_of(sender(), f"https://localhost:{receiver.port}/")
        policy = PeerPolicy(allows_loopback=True, lookup=Names(["127.0.0.1"]))
        other = failure_of(sender(policy, trusts=TLS / "certificate.pem"), f"https://example.com:{receiver.port}/")
        assert receiver.requests.empty()
    assert unknown.reason.startswith("The certificate of the destination is refused: self-signed certificate")
    assert "Hostname mismatch" in other.reason
    assert not unknown.is_permanent


@pytest.mark.parametrize(
    ("status", "is_permanent"),
    [(301, False), (400, True), (404, True), (408, False), (410, True), (425, False), (429, False), (500, False)],
)
def test_statuses(status: int, is_permanent: bool) -> None:
    """A status other than 2xx fails, with the number; those after which a retry is useless are permanent."""
    with Receiver(answering(status)) as receiver:
        failure = failure_of(sender(), f"http://127.0.0.1:{receiver.port}/")
    assert f"answered {status}" in failure.reason
    assert (failure.is_permanent, failure.retry_after) == (is_permanent, None)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("120", 120.0), ("999999999", 86_400.0), ("-5", None), ("soon", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    """The failure has the seconds of `Retry-After`, a day at most; a date of the past means at once."""
    with Receiver(answering(503, headers=f"Retry-After: {value}\r\n")) as receiver:
        assert failure_of(sender(), f"http://127.0.0.1:{receiver.port}/").retry_after == seconds


def test_a_redirect_is_not_followed() -> None:
    """A redirect to another address, such as that of a cloud's metadata, fails, and the other address gets nothing."""
    with Receiver() as other:
        location = f"Location: http://127.0.0.1:{other.port}/latest/meta-data\r\n"
        with Receiver(answering(302, headers=location)) as receiver:
            failure = failure_of(sender(), f"http://127.0.0.1:{receiver.port}/")
        assert other.requests.empty()
    assert failure.reason == "The destination answered 302; redirects are not followed."


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest", "https://[::ffff:169.254.169.254]/", "https://10.0.0.1/"]
)
def test_private_addresses_are_refused(url: str) -> None:
    """A private address is refused with its number, whether it stands in the URL or behind a name."""
    assert "no public address" in failure_of(sender(), url).reason
    policy = PeerPolicy(allows_loopback=False, lookup=Names(["10.9.8.7"]))
    failure = failure_of(sender(policy), "https://hooks.example.com/")
    assert failure.reason == (
        "The destination is refused: hooks.example.com is 10.9.8.7, which is no public address and not allowed."
    )


def test_plain_http_stays_on_this_machine() -> None:
    """A private address that is allowed is not reached without TLS."""
    policy = PeerPolicy(parse_networks("10.0.0.0/8"), allows_loopback=True)
    assert "without TLS" in failure_of(sender(policy), "http://10.0.0.1/").reason


def test_a_name_that_resolves_to_another_address_later_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection goes to the address that was checked; the name is not looked up a second time (DNS rebinding)."""
    names = Names(["93.184.215.14"], ["127.0.0.1"])
    connected: list[str] = []

    def connect(address: tuple[str, int], *, timeout: float) -> socket.socket:
        connected.append(address[0])
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", connect)
    with Receiver() as receiver:
        policy = PeerPolicy(allows_loopback=False, lookup=names)
        failure = failure_of(sender(policy), f"https://rebinding.example.com:{receiver.port}/")
        assert receiver.requests.empty()
    assert (connected, names.lookups) == (["93.184.215.14"], 1)
    assert failure.reason == "The destination cannot be reached: Connection refused."
    # The next attempt looks the name up again, and refuses what it finds then.
    assert "127.0.0.1" in failure_of(sender(policy), f"https://rebinding.example.com:{receiver.port}/").reason
    assert connected == ["93.184.215.14"]


def test_the_next_address_is_tried() -> None:
    """A host with several addresses is reached at the first one that accepts a connection."""
    with Receiver() as receiver:
        policy = PeerPolicy(allows_loopback=True, lookup=Names(["127.0.0.2", "127.0.0.1"]))
        sender(policy).send(webhook(f"http://localhost:{receiver.port}/"), message())
        assert receiver.take().headers["host"] == f"localhost:{receiver.port}"


def test_a_receiver_that_hangs() -> None:
    """A receiver that never answers ends the attempt after its seconds, and its connection is cut."""

    def hang(connection: socket.socket) -> None:
        connection.recv(1)

    with Receiver(hang) as receiver:
        failure = failure_of(sender(seconds=SHORT), f"http://127.0.0.1:{receiver.port}/")
        assert receiver.ended.get(timeout=PATIENCE) == "ok"  # its read ended, because the other side did
    assert failure.reason == f"The destination did not answer within {SHORT:g} seconds."


def test_a_receiver_that_drips() -> None:
    """A receiver that sends a byte now and then, so that no read takes long, ends the attempt too."""

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        connection.settimeout(SHORT / 20)
        while True:
            connection.sendall(b"a")
            try:
                if connection.recv(1) == b"":
                    return
            except TimeoutError:
                continue

    with Receiver(drip) as receiver:
        failure = failure_of(sender(seconds=SHORT), f"http://127.0.0.1:{receiver.port}/")
        receiver.ended.get(timeout=PATIENCE)
    assert "did not answer within" in failure.reason


def test_a_handshake_that_hangs() -> None:
    """A receiver that accepts a connection and starts no TLS ends the attempt."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}/"
        assert "did not answer within" in failure_of(sender(seconds=SHORT), url).reason
        for thread in threading.enumerate():
            if thread.name == ATTEMPT_THREAD:
                thread.join(PATIENCE)
                assert not thread.is_alive()


def test_a_lookup_that_hangs() -> None:
    """A name whose lookup does not end, ends the attempt."""
    may_end = Event()

    def lookup(*_arguments: Any, **_options: Any) -> list[tuple[Any, ...]]:
        may_end.wait(PATIENCE)
        return []

    policy = PeerPolicy(allows_loopback=True, lookup=lookup)
    assert "did not answer within" in failure_of(sender(policy, seconds=SHORT), "https://example.com/").reason
    may_end.set()


def test_a_huge_answer_is_not_read() -> None:
    """A receiver that answers without end has its message: the status is enough."""

    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(bytes(2**16))

    with Receiver(flood) as receiver:
        sender().send(webhook(f"http://127.0.0.1:{receiver.port}/"), message())
        assert receiver.ended.get(timeout=PATIENCE) in ("ConnectionResetError", "BrokenPipeError")


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200])
def test_an_answer_that_is_no_http(answer: bytes) -> None:
    """A receiver that speaks another protocol fails with that reason, and may be tried again."""
    with Receiver(lambda connection: connection.sendall(answer)) as receiver:
        failure = failure_of(sender(), f"http://127.0.0.1:{receiver.port}/")
    assert "in HTTP" in failure.reason or "cannot be reached" in failure.reason
    assert not failure.is_permanent


def test_a_port_without_a_receiver() -> None:
    """A refused connection is the reason, without the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    failure = failure_of(sender(), f"http://127.0.0.1:{port}/secret-path")
    assert failure.reason == "The destination cannot be reached: Connection refused."


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment gets nothing: it would connect to an address that was not checked."""
    with Receiver() as proxy, Receiver() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        sender().send(webhook(f"http://127.0.0.1:{receiver.port}/"), message())
        receiver.take()
        assert proxy.requests.empty()


def test_no_secret_is_shown() -> None:
    """The text of an address has neither its URL nor its signing secret."""
    address = webhook("https://hooks.example.com/token-1234")
    assert "token-1234" not in repr(address)
    assert address.parts["signing_secret"] not in repr(address)


def test_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """A webhook at an IPv6 address is reached, with the address in brackets as its host."""
    monkeypatch.setenv("NO_PROXY", "*")
    with Receiver(host="::1") as receiver:
        sender().send(webhook(f"http://[::1]:{receiver.port}/"), message())
        assert receiver.take().headers["host"] == f"[::1]:{receiver.port}"
    assert LOCAL.allows(ip_address("::1"))
