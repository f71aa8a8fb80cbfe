"""Addresses of destinations, as a person writes them: a webhook, a chat service or a mailbox.

An address is read once, when its destination is made. It becomes an `Address`, whose parts were checked one by one, so
that no part of the text reaches a library which reads more into a URL, such as files to attach or other hosts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from gradmedic_service.alerts import chat_addresses

MAX_ADDRESS_LENGTH = 2_048
"""Characters of an address. Browsers and servers agree on URLs of this length."""
MAX_MAIL_LENGTH = 254
"""Characters of the address of a mailbox (RFC 5321, section 4.5.3.1.3, without the angle brackets)."""
MAILBOX = (
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
"""The address of a mailbox without quotes and comments: RFC 5322, section 3.4.1, `dot-atom` on both sides."""
KNOWN_ADDRESSES = f"https://..., mailto:..., {chat_addresses.KNOWN_FORMS}"


class AddressRefused(ValueError):
    """An address cannot be a destination. The message is the end of a sentence, without a secret of the address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The address of a destination.

    `repr` shows no secret, so that an address may appear in a traceback.
    """

    kind: str
    """`webhook`, `chat` or `mail`."""
    service: str
    """`webhook`, `mail`, or the name of the chat service, such as `slack`."""
    shown: str
    """The address without its secrets."""
    parts: Mapping[str, str] = field(repr=False)
    """The parts of the address by name, with its secrets: `url` of a webhook, `mailbox` of a mail."""

    @property
    def has_secret(self) -> bool:
        """Whether a person who knows the address may send to it. That is not so for a mailbox."""
        return self.kind != "mail"


def parse_address(text: str, *, allows_loopback: bool) -> Address:
    """Return the address that a text names.

    Args:
        text: `https://...`, `mailto:...`, or the address of a chat service.
        allows_loopback: whether a webhook may be on this machine. `http://` is accepted only there.

    Raises AddressRefused.
    """
    if len(text) > MAX_ADDRESS_LENGTH:
        raise AddressRefused(f"has {len(text)} characters; at most {MAX_ADDRESS_LENGTH} are allowed")
    if not text.isascii() or any(character <= " " or character == "\x7f" for character in text):
        raise AddressRefused("must have no spaces, control characters or letters beyond ASCII")
    scheme, separator, rest = text.partition(":")
    scheme = scheme.lower()
    if not separator:
        raise AddressRefused(f"must be one of {KNOWN_ADDRESSES}")
    if scheme == "mailto":
        return _parse_mailbox(rest)
    try:
        chat = chat_addresses.parse(text)
    except ValueError as error:
        raise AddressRefused(str(error)) from None
    if chat is not None:
        return Address(kind="chat", service=chat.service, shown=chat.shown, parts=chat.parts)
    if scheme in ("http", "https"):
        return _parse_webhook(text, allows_loopback=allows_loopback)
    raise AddressRefused(f"begins with {scheme[:20]}:, which is not known; there are {KNOWN_ADDRESSES}")


def is_mailbox(text: str) -> bool:
    r"""Whether a text is the address of one mailbox.

    >>> [is_mailbox(text) for text in ("ml@example.com", "a@b, c@d", "a@b\r\nBcc: c@d", "Ml <ml@example.com>")]
    [True, False, False, False]
    """
    return len(text) <= MAX_MAIL_LENGTH and re.fullmatch(MAILBOX, text) is not None


def _parse_mailbox(text: str) -> Address:
    if not is_mailbox(text):
        raise AddressRefused(f"must be mailto: and one mailbox of at most {MAX_MAIL_LENGTH} characters")
    return Address(kind="mail", service="mail", shown=f"mailto:{text}", parts={"mailbox": text})


def _parse_webhook(text: str, *, allows_loopback: bool) -> Address:
    parts = _split(text)
    if parts.username is not None or parts.password is not None:
        raise AddressRefused("must have no user and no password: the signature proves the sender")
    if parts.fragment:
        raise AddressRefused("must have no #fragment")
    if parts.scheme == "http" and not allows_loopback:
        raise AddressRefused("must begin with https://")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = "" if parts.port is None else f":{parts.port}"
    has_more = parts.path not in ("", "/") or bool(parts.query)
    shown = f"{parts.scheme}://{host}{port}/{'...' if has_more else ''}"
    return Address(kind="webhook", service="webhook", shown=shown, parts={"url": text})


def _split(text: str) -> SplitResult:
    """Return the parts of a URL with a host. Raises AddressRefused."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise AddressRefused("is not a URL") from None
    if not host or "%" in host:
        raise AddressRefused("names no host")
    if port == 0:
        raise AddressRefused("must have a port from 1 to 65535")
    return parts
