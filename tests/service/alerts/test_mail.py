"""Mail, through a real mail server on this machine."""

from __future__ import annotations

import email
import email.policy
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from tests.service.alerts.messages import RUN_ID, message
from tests.support.patience import PATIENCE
from tests.support.ports import free_port

from gradmedic_service.alerts.addresses import parse_address
from gradmedic_service.alerts.deadlines import Connections
from gradmedic_service.alerts.mail import MailSender, MailServer, mail_of
from gradmedic_service.alerts.messages import DeliveryFailed

TLS = Path(__file__).parents[2] / "data" / "tls"
SENDER = "gradmedic@example.com"
SHORT = 0.2
"""Seconds of an attempt that must fail because they pass."""


class Mailboxes:
    """Keeps the mails that arrive, and refuses recipients by reply."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.logins: list[tuple[bytes, bytes]] = []
        self.refusals: dict[str, str] = {}

    async def handle_RCPT(  # noqa: N802 (aiosmtpd's name)
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Accept a recipient, or refuse it with its reply."""
        if address in self.refusals:
            return self.refusals[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 (aiosmtpd's name)
        """Keep a mail."""
        self.envelopes.append(envelope)
        return "250 OK"

    def authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: LoginPassword
    ) -> AuthResult:
        """Accept one user and password."""
        self.logins.append((data.login, data.password))
        return AuthResult(success=(data.login, data.password) == (b"user@x", b"p:w/1"), handled=False)

    def mail(self) -> EmailMessage:
        """Return the only mail."""
        (envelope,) = self.envelopes
        assert isinstance(envelope.content, bytes)
        parsed = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(parsed, EmailMessage)
        return parsed


@contextmanager
def mail_server(mailboxes: Mailboxes, **options: Any) -> Iterator[int]:
    """Run a mail server and yield its port."""
    port = free_port()
    controller = Controller(mailboxes, hostname="localhost", port=port, ready_timeout=PATIENCE, **options)
    controller.start()
    try:
        yield port
    finally:
        controller.stop()


def server_context() -> ssl.SSLContext:
    """Return the TLS of a server named localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    return context


def send(
    url: str, *, trusts: bool = True, to: str = "ml@example.com", seconds: float = PATIENCE, **fields: Any
) -> None:
    """Send a message through the server at a URL, whose certificate may be trusted."""
    context = ssl.create_default_context(cafile=str(TLS / "certificate.pem")) if trusts else None
    sender = MailSender(MailServer.from_url(url), SENDER, seconds=seconds, ssl_context=context)
    sender.send(parse_address(f"mailto:{to}", allows_loopback=False), message(**fields))


def test_a_mail_arrives() -> None:
    """The mail has title, sentence, advice and link, the id of the delivery, and asks for no automatic answer."""
    mailboxes = Mailboxes()
    with mail_server(mailboxes) as port:
        send(f"smtp://localhost:{port}?tls=none", sentence="Der Verlust wächst ×1.9.")
    (envelope,) = mailboxes.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == (SENDER, ["ml@example.com"])
    mail = mailboxes.mail()
    assert mail["Subject"] == "lstm-3 is exploding"
    assert (mail["From"], mail["To"], mail["Auto-Submitted"]) == (SENDER, "ml@example.com", "auto-generated")
    assert mail["Message-ID"] == f"<{message().id}@example.com>"
    text = mail.get_content()
    for part in ("Der Verlust wächst ×1.9.", "First advice: clip_grad_norm(max_norm=1.0)", str(RUN_ID)):
        assert part in text


def test_starttls_and_a_login() -> None:
    """With STARTTLS, user and password of the URL are sent after the certificate was checked."""
    mailboxes = Mailboxes()
    options = {"tls_context": server_context(), "require_starttls": True, "authenticator": mailboxes.authenticate}
    with mail_server(mailboxes, **options, auth_required=True) as port:
        send(f"smtp://user%40x:p%3Aw%2F1@localhost:{port}")
        assert mailboxes.logins == [(b"user@x", b"p:w/1")]
        assert mailboxes.mail()["To"] == "ml@example.com"
        with pytest.raises(DeliveryFailed, match="refused the service's user and password") as caught:
            send(f"smtp://user%40x:wrong@localhost:{port}")
        assert not caught.value.is_permanent
        with pytest.raises(DeliveryFailed, match="certificate of the mail server is refused: self-signed"):
            send(f"smtp://user%40x:p%3Aw%2F1@localhost:{port}", trusts=False)
    assert set(mailboxes.logins) == {(b"user@x", b"p:w/1"), (b"user@x", b"wrong")}


def test_tls_from_the_start() -> None:
    """`smtps://` begins with TLS."""
    mailboxes = Mailboxes()
    with mail_server(mailboxes, ssl_context=server_context()) as port:
        send(f"smtps://localhost:{port}")
    assert mailboxes.mail()["Subject"] == "lstm-3 is exploding"


def test_no_mail_without_the_protection_of_the_url() -> None:
    """A server without STARTTLS gets nothing, unless the URL says that none is used."""
    mailboxes = Mailboxes()
    with mail_server(mailboxes) as port, pytest.raises(DeliveryFailed, match="offers no STARTTLS"):
        send(f"smtp://localhost:{port}")
    assert mailboxes.envelopes == []


@pytest.mark.parametrize(
    ("reply", "is_permanent"), [("550 No such user", True), ("451 Try later", False), ("452 Full", False)]
)
def test_refused_recipients(reply: str, is_permanent: bool) -> None:
    """A recipient that the server refuses for good is a permanent failure, a temporary refusal is none."""
    mailboxes = Mailboxes()
    mailboxes.refusals["ml@example.com"] = reply
    with mail_server(mailboxes) as port, pytest.raises(DeliveryFailed, match=reply[:3]) as caught:
        send(f"smtp://localhost:{port}?tls=none")
    assert caught.value.is_permanent == is_permanent


def test_a_title_adds_no_header() -> None:
    """The line breaks of a run's name become spaces, so that it names no further recipient."""
    mailboxes = Mailboxes()
    with mail_server(mailboxes) as port:
        send(f"smtp://localhost:{port}?tls=none", title="run\r\nBcc: other@example.com\r\n\r\nbody")
    mail = mailboxes.mail()
    assert mail["Subject"] == "run Bcc: other@example.com body"
    assert mail["Bcc"] is None
    assert mailboxes.envelopes[0].rcpt_tos == ["ml@example.com"]


def test_a_server_that_hangs() -> None:
    """A server that never greets ends the attempt, and so does one that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"smtp://127.0.0.1:{silent.getsockname()[1]}?tls=none"
        with pytest.raises(DeliveryFailed, match="did not answer"):
            send(url, seconds=SHORT)
    with pytest.raises(DeliveryFailed, match="The mail server cannot be reached"):
        send(url)


def test_a_server_that_hangs_is_named_as_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the connection's own limit is over first, a server that never greets is still reported as late."""
    monkeypatch.setattr("gradmedic_service.alerts.mail.call_within", lambda _seconds, call: call(Connections()))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"smtp://127.0.0.1:{silent.getsockname()[1]}?tls=none"
        with pytest.raises(DeliveryFailed, match="The mail server did not answer in time"):
            send(url, seconds=SHORT)


def test_without_a_server() -> None:
    """Without a mail server, the failure names the setting."""
    with pytest.raises(DeliveryFailed, match="GRADMEDIC_SMTP_URL"):
        MailSender(None, None).send(parse_address("mailto:a@example.com", allows_loopback=False), message())


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("mail.example.com", "must be like smtp://"),
        ("http://mail.example.com", "must be like smtp://"),
        ("smtp://mail.example.com/path", "must be like smtp://"),
        ("smtp://mail.example.com:99999", "is not a URL"),
        ("smtp://mail.example.com?tls=maybe", "no parameter but tls=none"),
        ("smtps://mail.example.com?tls=none", "no parameter but tls=none"),
        ("smtp://user:secret@mail.example.com?tls=none", "the password would be readable"),
    ],
)
def test_bad_urls(url: str, part: str) -> None:
    """A URL that is no mail server's is refused, without its password."""
    with pytest.raises(ValueError, match=part) as caught:
        MailServer.from_url(url)
    assert "secret" not in str(caught.value)


def test_ports_and_repr() -> None:
    """Without a port, the usual one of the protection is used. The text of a server has no password."""
    ports = [MailServer.from_url(url).port for url in ("smtp://m", "smtps://m", "smtp://m?tls=none")]
    assert ports == [587, 465, 25]
    assert "secret" not in repr(MailServer.from_url("smtp://user:secret@m"))


def test_long_titles_stay_one_header() -> None:
    """A long title with letters beyond ASCII is encoded, and read again as it was."""
    title = "Änderung " * 40
    mail = email.message_from_bytes(
        mail_of(message(title=title), SENDER, "a@b").as_bytes(), policy=email.policy.default
    )
    assert mail["Subject"] == title.strip()
