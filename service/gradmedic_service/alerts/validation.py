"""The fields of alert destinations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from gradmedic.protocol.alert_destinations import AlertDestinationCreate, AlertDestinationUpdate
from gradmedic.protocol.alert_history import TROUBLES
from gradmedic.protocol.names import name_error
from gradmedic.protocol.service import FieldError, Limits
from gradmedic_service.alerts.addresses import Address, AddressRefused, parse_address
from gradmedic_service.alerts.secrets import HOW_TO_MAKE_A_KEY
from gradmedic_service.alerts.sending import Sender
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.projects.service import MAX_MUTE


def check_new_destination(body: AlertDestinationCreate, limits: Limits, sender: Sender) -> Address:
    """Return the address of a new destination. Raises InvalidRequest with every invalid field."""
    errors = [*_name_errors("project", body.project, limits), *_name_errors("name", body.name, limits)]
    errors += _trouble_errors(body.troubles)
    try:
        address = parse_address(body.address, allows_loopback=sender.allows_loopback)
    except AddressRefused as refusal:
        raise InvalidRequest([FieldError(path="address", message=str(refusal)), *errors]) from None
    if address.has_secret and not sender.box.has_key:
        message = f"has a secret, and the service has no GRADMEDIC_SECRET_KEY to encrypt it; {HOW_TO_MAKE_A_KEY}"
        errors.append(FieldError(path="address", message=message))
    if address.kind == "mail" and not sender.mail.has_server:
        message = "needs a mail server; the service's operator sets GRADMEDIC_SMTP_URL and GRADMEDIC_MAIL_FROM"
        errors.append(FieldError(path="address", message=message))
    InvalidRequest.raise_if_any(errors)
    return address


def check_update(body: AlertDestinationUpdate, limits: Limits) -> None:
    """Raise InvalidRequest with every invalid field of a change."""
    errors = [*_name_errors("name", body.name, limits), *_trouble_errors(body.troubles)]
    if body.muted_until is not None and body.muted_until > datetime.now(UTC) + MAX_MUTE:
        errors.append(FieldError(path="muted_until", message=f"must be at most {MAX_MUTE.days} days from now"))
    InvalidRequest.raise_if_any(errors)


def _name_errors(path: str, name: str | None, limits: Limits) -> Iterator[FieldError]:
    if name is not None and (message := name_error(name, limits.max_name_length)) is not None:
        yield FieldError(path=path, message=message)


def _trouble_errors(troubles: Sequence[str] | None) -> Iterator[FieldError]:
    if troubles == []:
        yield FieldError(path="troubles", message=f"names none of {', '.join(TROUBLES)}")
    for index, trouble in enumerate(troubles or ()):
        path = f"troubles[{index}]"
        if trouble not in TROUBLES:
            yield FieldError(path=path, message=f"{trouble!r} is not one of {', '.join(TROUBLES)}")
            return
        if trouble in (troubles or ())[:index]:
            yield FieldError(path=path, message=f"repeats {trouble!r}")
            return
