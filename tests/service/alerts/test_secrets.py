"""The encryption of addresses."""

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError
from tests.service.alerts.messages import webhook

from gradmedic_service.alerts.addresses import parse_address
from gradmedic_service.alerts.secrets import SecretBox, SecretKeyMissing, SecretUnreadable
from gradmedic_service.alerts.sending import DeliveryFailed, build_sender
from gradmedic_service.settings import Settings

OLD, NEW = "o" * 43, "n" * 43


def box(keys: str | None) -> SecretBox:
    """Return a box with keys, which commas separate."""
    return SecretBox(None if keys is None else SecretStr(keys))


def test_an_address_is_encrypted() -> None:
    """The stored bytes have nothing of the address, and are read again with the key, also in another process."""
    address = webhook("https://hooks.example.com/token-1234")
    sealed = box(NEW).seal(address)
    assert b"token-1234" not in sealed
    assert b"example" not in sealed
    assert box(NEW).open(sealed) == address
    assert sealed != box(NEW).seal(address)


def test_a_key_is_changed_by_giving_both() -> None:
    """The first key encrypts, every key decrypts: so a key is replaced without adding the destinations again."""
    address = webhook("https://hooks.example.com/")
    sealed = box(OLD).seal(address)
    assert box(f"{NEW}, {OLD}").open(sealed) == address
    renewed = box(f"{NEW},{OLD}").seal(address)
    assert box(NEW).open(renewed) == address
    with pytest.raises(SecretUnreadable):
        box(OLD).open(renewed)


@pytest.mark.parametrize("keys", [NEW, None])
def test_a_lost_key_is_an_error_of_the_destination(keys: str | None) -> None:
    """Without the key that encrypted, the failure says what to do, and may pass when the key comes back."""
    sealed = box(OLD).seal(webhook("https://hooks.example.com/"))
    settings = Settings(secret_key=None if keys is None else SecretStr(keys))
    with pytest.raises(DeliveryFailed) as caught:
        build_sender(settings).open(sealed)
    assert caught.value.reason.startswith("Its secret cannot be read: GRADMEDIC_SECRET_KEY has changed.")
    assert not caught.value.is_permanent


def test_damaged_bytes_are_unreadable() -> None:
    """Changed bytes are refused, not read as another address."""
    sealed = bytearray(box(NEW).seal(webhook("https://hooks.example.com/")))
    sealed[20] ^= 1
    with pytest.raises(SecretUnreadable):
        box(NEW).open(bytes(sealed))


def test_a_mailbox_needs_no_key() -> None:
    """A mailbox has no secret and is stored without a key; a webhook is not."""
    mailbox = parse_address("mailto:ml@example.com", allows_loopback=False)
    assert box(None).open(box(None).seal(mailbox)) == mailbox
    with pytest.raises(SecretKeyMissing):
        box(None).seal(webhook("https://hooks.example.com/"))


@pytest.mark.parametrize("value", ["short", f"{NEW},short", " , "])
def test_weak_keys_are_refused(value: str) -> None:
    """A key that could be guessed is refused, with how to make one, and without the key."""
    with pytest.raises(ValidationError, match="at least 32 characters; `openssl rand -base64 32`") as caught:
        Settings(secret_key=SecretStr(value))
    assert NEW not in str(caught.value)
