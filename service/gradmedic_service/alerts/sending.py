"""`Sender`, which sends a message to an address. It opens no database, and is called outside of transactions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gradmedic_service.alerts.addresses import Address
from gradmedic_service.alerts.chat import ChatSender
from gradmedic_service.alerts.mail import MailSender, MailServer
from gradmedic_service.alerts.messages import DeliveryFailed, Message
from gradmedic_service.alerts.peers import PeerPolicy
from gradmedic_service.alerts.secrets import SecretBox, SecretUnreadable
from gradmedic_service.alerts.webhooks import WebhookSender
from gradmedic_service.settings import Settings

__all__ = ["DeliveryFailed", "Message", "Sender", "build_sender"]


class KindSender(Protocol):
    """Sends messages to destinations of one kind."""

    def send(self, address: Address, message: Message) -> None:
        """Send a message once. Raises DeliveryFailed."""


class Sender:
    """Sends messages to destinations of every kind.

    Args:
        box: encrypts and decrypts addresses.
        webhooks: sends to webhooks.
        chat: sends to chat services.
        mail: sends mail.
        allows_loopback: whether a webhook may be on this machine.
        link_base: the URL in front of the path of a page.
    """

    def __init__(
        self,
        *,
        box: SecretBox,
        webhooks: WebhookSender,
        chat: ChatSender,
        mail: MailSender,
        allows_loopback: bool,
        link_base: str,
    ) -> None:
        self.box = box
        self.mail = mail
        self.allows_loopback = allows_loopback
        self.link_base = link_base
        self._senders: Mapping[str, KindSender] = {"webhook": webhooks, "chat": chat, "mail": mail}

    def open(self, sealed: bytes) -> Address:
        """Return the address of a stored destination. Raises DeliveryFailed if no secret key decrypts it."""
        try:
            return self.box.open(sealed)
        except SecretUnreadable:
            raise DeliveryFailed(
                "Its secret cannot be read: GRADMEDIC_SECRET_KEY has changed. Add the destination again, or give the "
                "old key behind the new one, separated by a comma."
            ) from None

    def send(self, address: Address, message: Message) -> None:
        """Send a message once. It takes 20 seconds at most. Raises DeliveryFailed."""
        self._senders[address.kind].send(address, message)


def build_sender(settings: Settings) -> Sender:
    """Return the sender that the settings describe."""
    allows_loopback = not settings.requires_keys
    server = None if settings.smtp_url is None else MailServer.from_url(settings.smtp_url.get_secret_value())
    return Sender(
        box=SecretBox(settings.secret_key),
        webhooks=WebhookSender(PeerPolicy(settings.webhook_allowed_addresses, allows_loopback=allows_loopback)),
        chat=ChatSender(),
        mail=MailSender(server, settings.mail_from),
        allows_loopback=allows_loopback,
        link_base=settings.link_base,
    )
