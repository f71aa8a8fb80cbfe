"""Messages by mail, through the operator's mail server."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from gradmedic_service.alerts.addresses import Address
from gradmedic_service.alerts.deadlines import Connections, call_within
from gradmedic_service.alerts.messages import DeliveryFailed, Message, text_of

if TYPE_CHECKING:
    import ssl
    from email.message import EmailMessage
    from smtplib import SMTP

MAIL_SECONDS = 20.0
"""Seconds that one attempt may take in all. Servers that delay a greeting against spam take some seconds."""
PERMANENT_REPLY = 500
"""First code of the replies by which a mail server refuses for good (RFC 5321, section 4.2.1)."""
DEFAULT_PORTS = {"starttls": 587, "tls": 465, "none": 25}
"""Ports by the protection of the connection (RFC 8314)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MailServer:
    """The operator's mail server."""

    host: str
    port: int
    protection: str
    """`starttls`, `tls` or `none`."""
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def from_url(cls, url: str) -> MailServer:
        """Return the server that the setting `smtp_url` names. Raises ValueError, without the password."""
        try:
            parts = urlsplit(url)
            host, port, options = (
                parts.hostname,
                parts.port,
                dict(parse_qsl(parts.query, strict_parsing=bool(parts.query))),
            )
        except ValueError:
            raise ValueError("smtp_url is not a URL") from None
        if parts.scheme not in ("smtp", "smtps") or not host or parts.path not in ("", "/") or parts.fragment:
            raise ValueError("smtp_url must be like smtp://user:password@mail.example.com:587")
        if options not in ({}, {"tls": "none"}) or (options and parts.scheme == "smtps"):
            raise ValueError("smtp_url takes no parameter but tls=none, and that only after smtp://")
        if options and parts.username is not None:
            raise ValueError("smtp_url has a password and tls=none: the password would be readable on its way")
        protection = "none" if options else "tls" if parts.scheme == "smtps" else "starttls"
        return cls(
            host=host,
            port=port or DEFAULT_PORTS[protection],
            protection=protection,
            user=None if parts.username is None else unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password),
        )


class MailSender:
    """Sends messages by mail.

    Args:
        server: the mail server; None where the operator named none.
        sender: address of the sender.
        seconds: seconds that one attempt may take in all.
        ssl_context: checks the server's certificate; by default against the authorities of this machine.
    """

    def __init__(
        self,
        server: MailServer | None,
        sender: str | None,
        *,
        seconds: float = MAIL_SECONDS,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._server = server
        self._sender = sender
        self._seconds = seconds
        self._ssl_context = ssl_context

    @property
    def has_server(self) -> bool:
        """Whether messages can be sent."""
        return self._server is not None

    def send(self, address: Address, message: Message) -> None:
        """Send a message. Raises DeliveryFailed."""
        server, sender = self._server, self._sender
        if server is None or sender is None:
            raise DeliveryFailed("The service has no mail server; its operator sets GRADMEDIC_SMTP_URL.")
        mail = mail_of(message, sender, address.parts["mailbox"])
        call_within(self._seconds, lambda connections: self._deliver(server, mail, connections))

    def _deliver(self, server: MailServer, mail: EmailMessage, connections: Connections) -> None:
        import smtplib
        import ssl

        context = self._ssl_context or ssl.create_default_context()
        try:
            with _open(server, self._seconds, context) as smtp:
                _register(smtp, connections)
                if server.protection == "starttls":
                    smtp.starttls(context=context)
                    _register(smtp, connections)
                if server.user is not None:
                    smtp.login(server.user, server.password or "")
                smtp.send_message(mail)
        except smtplib.SMTPAuthenticationError:
            raise DeliveryFailed("The mail server refused the service's user and password.") from None
        except smtplib.SMTPNotSupportedError:
            raise DeliveryFailed("The mail server offers no STARTTLS or no login.") from None
        except smtplib.SMTPRecipientsRefused as error:
            code = max((code for code, _ in error.recipients.values()), default=PERMANENT_REPLY)
            raise _refused(code) from None
        except smtplib.SMTPResponseException as error:
            raise _refused(error.smtp_code) from None
        except ssl.SSLCertVerificationError as error:
            raise DeliveryFailed(f"The certificate of the mail server is refused: {error.verify_message}.") from None
        except (smtplib.SMTPException, OSError) as error:
            is_late = isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError)  # smtplib wraps it
            reason = "did not answer in time" if is_late else "cannot be reached"
            raise DeliveryFailed(f"The mail server {reason}.") from None


def _open(server: MailServer, seconds: float, context: ssl.SSLContext) -> SMTP:
    """Return a session with the server, which is not protected yet if the server uses STARTTLS."""
    import smtplib

    if server.protection == "tls":
        return smtplib.SMTP_SSL(server.host, server.port, timeout=seconds, context=context)
    return smtplib.SMTP(server.host, server.port, timeout=seconds)


def mail_of(message: Message, sender: str, recipient: str) -> EmailMessage:
    """Return a message as a mail. A line break in its title becomes a space, so that it adds no header."""
    # Here, because a start of the service needs no mail.
    from email.message import EmailMessage
    from email.policy import SMTP as SMTP_POLICY
    from email.utils import format_datetime

    mail = EmailMessage(policy=SMTP_POLICY)
    mail["Subject"] = " ".join(message.title.split())
    mail["From"] = sender
    mail["To"] = recipient
    mail["Date"] = format_datetime(message.created_at)
    mail["Message-ID"] = f"<{message.id}@{sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answer
    mail.set_content(text_of(message) + "\n")
    return mail


def _register(smtp: SMTP, connections: Connections) -> None:
    if isinstance(smtp.sock, socket.socket):
        connections.add(smtp.sock)


def _refused(code: int) -> DeliveryFailed:
    return DeliveryFailed(f"The mail server refused the message ({code}).", is_permanent=code >= PERMANENT_REPLY)
