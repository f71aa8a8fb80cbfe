"""Messages to chat services, which Apprise sends.

Apprise is given the parts of an address, never a URL: its URLs may also name files to attach, templates to read, and
whether certificates are checked. The classes used here send to a host that is fixed in Apprise, or, for Microsoft
Teams, to one of Microsoft's hosts (`chat_addresses`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from importlib import import_module
from threading import get_ident
from typing import TYPE_CHECKING

from gradmedic_service.alerts.addresses import Address
from gradmedic_service.alerts.deadlines import Connections, call_within
from gradmedic_service.alerts.messages import GOOD_NEWS, DeliveryFailed, Message, is_permanent, text_of

if TYPE_CHECKING:
    from apprise.plugins.base import NotifyBase

CHAT_SECONDS = 20.0
"""Seconds that one attempt may take in all. Apprise may wait for a rate limit of the chat service meanwhile."""
CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
_TITLES = {
    "slack": "Slack",
    "discord": "Discord",
    "teams": "Microsoft Teams",
    "telegram": "Telegram",
    "pagerduty": "PagerDuty",
}
ZERO_WIDTH_SPACE = "\u200b"
_PLAIN = str.maketrans({"<": "\u2039", ">": "\u203a", "@": f"@{ZERO_WIDTH_SPACE}"})
_LOGGERS = ("apprise", "urllib3")
"""Loggers whose lines of finer levels contain URLs with tokens."""
_STATUS = re.compile(r"\berror=(\d{3})\b")
"""The status of HTTP in the lines that Apprise's plugins log about a failure."""


class ChatSender:
    """Sends messages to chat services.

    Args:
        seconds: seconds that one attempt may take in all.
    """

    def __init__(self, *, seconds: float = CHAT_SECONDS) -> None:
        self._seconds = seconds

    def send(self, address: Address, message: Message) -> None:
        """Send a message. Raises DeliveryFailed."""
        call_within(self._seconds, lambda connections: _notify(address, message, connections))


def _notify(address: Address, message: Message, _connections: Connections) -> None:
    """Send a message. Apprise keeps its connections to itself; each read of them has a limit of its own."""
    from apprise.common import NotifyFormat, NotifyType  # here, because a start of the service needs no Apprise

    kind = NotifyType.SUCCESS if message.trouble in GOOD_NEWS else NotifyType.WARNING
    if message.trouble in ("critical", "failed"):
        kind = NotifyType.FAILURE
    shown = replace(
        message,
        title=_plain(message.title),
        sentence=_plain(message.sentence),
        advice=None if message.advice is None else _plain(message.advice),
    )
    with _failures() as lines:
        plugins = _BUILDERS[address.service](address.parts, message)
        is_sent = all(
            plugin.notify(title=shown.title, body=text_of(shown), notify_type=kind, body_format=NotifyFormat.TEXT)
            for plugin in plugins
        )
    if is_sent:
        return
    title = _TITLES[address.service]
    statuses = [int(match.group(1)) for line in lines if (match := _STATUS.search(line)) is not None]
    if not statuses:
        raise DeliveryFailed(f"{title} cannot be reached.")
    if statuses[-1] < HTTPStatus.MULTIPLE_CHOICES:
        raise DeliveryFailed(f"{title} refused the message; check the channel and what the token may do.")
    raise DeliveryFailed(f"{title} answered {statuses[-1]}.", is_permanent=is_permanent(statuses[-1]))


def _plain(text: str) -> str:
    """Return a text in which no chat service finds a mention, a tag or a link with another text.

    A run may have any name, and its owner need not be allowed to mention a whole channel.

    >>> _plain("<!channel> [here](https://example.com) @everyone").replace(ZERO_WIDTH_SPACE, "|")
    '‹!channel› [here] (https://example.com) @|everyone'
    """
    return text.translate(_PLAIN).replace("](", "] (")


def _plugin(module: str, name: str, *arguments: object, **options: object) -> NotifyBase:
    """Return a plugin of Apprise. Certificates are checked, which is the default, and no redirect is followed."""
    from apprise.asset import AppriseAsset

    plugin: NotifyBase = getattr(import_module(f"apprise.plugins.{module}"), name)(
        *arguments,
        asset=AppriseAsset(app_id="gradmedic", app_desc="gradmedic", app_url="", async_mode=False),
        redirect=False,
        cto=CONNECT_SECONDS,
        rto=READ_SECONDS,
        **options,
    )
    return plugin


def _build_slack(parts: Mapping[str, str], _message: Message) -> list[NotifyBase]:
    tokens = {name: parts[name] for name in ("token_a", "token_b", "token_c", "access_token") if name in parts}
    targets = [f"#{parts['channel']}"] if "channel" in parts else None
    return [_plugin("slack", "NotifySlack", **tokens, targets=targets, include_image=False, include_footer=False)]


def _build_discord(parts: Mapping[str, str], _message: Message) -> list[NotifyBase]:
    return [_plugin("discord", "NotifyDiscord", parts["webhook_id"], parts["webhook_token"], avatar=False)]


def _build_teams(parts: Mapping[str, str], _message: Message) -> list[NotifyBase]:
    plugin = _plugin(
        "workflows",
        "NotifyWorkflows",
        parts["workflow"],
        parts["signature"],
        include_image=False,
        power_automate="automation" in parts,
        routing_id=parts.get("routing"),
        host=parts["host"],
    )
    return [plugin]


def _build_telegram(parts: Mapping[str, str], _message: Message) -> list[NotifyBase]:
    return [_plugin("telegram", "NotifyTelegram", parts["bot_token"], [parts["chat"]], detect_owner=False)]


def _build_pagerduty(parts: Mapping[str, str], message: Message) -> list[NotifyBase]:
    """Return a plugin for each run whose incident is resolved, else one that opens an incident.

    An incident has the id of its first run as key, so that the news about this run resolves it.
    """
    is_resolved = message.trouble == "resolved"
    keys = [str(run_id) for run_id in message.run_ids] or [str(message.id)]
    return [
        _plugin(
            "pagerduty",
            "NotifyPagerDuty",
            parts.get("api_key", "none"),
            parts["integration_key"],
            source="gradmedic",
            component=message.project,
            region_name=parts.get("region"),
            include_image=False,
            click=message.url,
            action="resolve" if is_resolved else "trigger",
            dedup=key,
        )
        for key in (keys if is_resolved else keys[:1])
    ]


_BUILDERS: Mapping[str, Callable[[Mapping[str, str], Message], list[NotifyBase]]] = {
    "slack": _build_slack,
    "discord": _build_discord,
    "teams": _build_teams,
    "telegram": _build_telegram,
    "pagerduty": _build_pagerduty,
}


@contextmanager
def _failures() -> Iterator[list[str]]:
    """Collect the warnings that Apprise logs in this thread. They go nowhere else."""
    lines: list[str] = []
    thread = get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                lines.append(record.getMessage())

    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    logger, handler = logging.getLogger("apprise"), Collector(logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
