"""Addresses of chat services: those whose host is fixed, as `slack://...` or as the URL that the service shows.

Each part of an address has a pattern of its own. A service whose host is a part of the address is not accepted, except
for Microsoft Teams, whose hosts belong to Microsoft by their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAddress:
    """The address of a channel of a chat service."""

    service: str
    """Name of the chat service, such as `slack`."""
    shown: str
    """The address without its secrets."""
    parts: Mapping[str, str] = field(repr=False)
    """The parts of the address by name, with its secrets."""


@dataclass(frozen=True, slots=True)
class _Form:
    """One form in which the address of a chat service is written."""

    service: str
    pattern: str
    """Pattern of the whole address; its named groups are the parts. It is compiled when it is first used."""
    shown: str
    """The address without secrets: `{channel}` is the part of that name."""


_SLACK_CHANNEL = r"/?(?:/[#]?(?P<channel>[a-zA-Z0-9_-]{1,80}))?"
_TEAMS_HOST = r"(?P<host>[a-z0-9.-]+\.(?:logic\.azure\.com|api\.powerplatform\.com))"
"""Hosts of Power Automate, below which customers cannot make names."""
_FORMS = (
    _Form(
        "slack",
        (
            r"slack://(?P<token_a>[A-Z0-9]{1,40})/(?P<token_b>[A-Z0-9]{1,40})/(?P<token_c>[A-Za-z0-9]{1,80})"
            + _SLACK_CHANNEL
        ),
        "slack://...{channel}",
    ),
    _Form(
        "slack",
        (r"slack://(?P<access_token>xox[abp]-[A-Za-z0-9-]{1,200})/[#]?(?P<channel>[a-zA-Z0-9_-]{1,80})/?"),
        "slack://...{channel}",
    ),
    _Form(
        "slack",
        (
            r"https://hooks\.slack\.com/services/"
            r"(?P<token_a>[A-Z0-9]{1,40})/(?P<token_b>[A-Z0-9]{1,40})/(?P<token_c>[A-Za-z0-9]{1,80})/?"
        ),
        "slack://...",
    ),
    _Form(
        "discord",
        (r"discord://(?P<webhook_id>[0-9]{1,30})/(?P<webhook_token>[A-Za-z0-9_-]{1,200})/?"),
        "discord://{webhook_id}/...",
    ),
    _Form(
        "discord",
        (
            r"https://(?:discord|discordapp)\.com/api/(?:v\d+/)?webhooks/"
            r"(?P<webhook_id>[0-9]{1,30})/(?P<webhook_token>[A-Za-z0-9_-]{1,200})/?"
        ),
        "discord://{webhook_id}/...",
    ),
    _Form(
        "teams",
        (
            rf"https://{_TEAMS_HOST}(?::443)?(?P<automation>/powerautomate/automations/direct(?:/cu/(?P<routing>[0-9]+))?)?"
            r"/workflows/(?P<workflow>[A-Za-z0-9_-]{1,200})/triggers/manual/paths/invoke/?"
            r"\?(?:[^#]*&)?sig=(?P<signature>[A-Za-z0-9_-]{1,200})(?:&[^#]*)?"
        ),
        "https://{host}/...",
    ),
    _Form(
        "telegram",
        (
            r"(?:telegram|tgram)://(?P<bot_token>[0-9]{1,30}:[A-Za-z0-9_-]{1,100})/"
            r"(?P<chat>-?[0-9]{1,30}|@?[A-Za-z][A-Za-z0-9_]{3,63})/?"
        ),
        "telegram://.../{chat}",
    ),
    _Form(
        "pagerduty",
        (
            r"pagerduty://(?P<integration_key>[A-Za-z0-9_-]{1,100})(?:@(?P<api_key>[A-Za-z0-9_+-]{1,100}))?/?"
            r"(?:\?region=(?P<region>us|eu))?"
        ),
        "pagerduty://...",
    ),
)
KNOWN_FORMS = (
    "slack://TOKEN_A/TOKEN_B/TOKEN_C, slack://xoxb-TOKEN/CHANNEL, discord://WEBHOOK_ID/TOKEN, "
    "telegram://BOT_TOKEN/CHAT_ID, pagerduty://INTEGRATION_KEY, or the URL that Slack, Discord or Teams shows for a "
    "webhook"
)
_EXPECTED = {
    "slack": "slack://TOKEN_A/TOKEN_B/TOKEN_C, slack://xoxb-TOKEN/CHANNEL or https://hooks.slack.com/services/...",
    "discord": "discord://WEBHOOK_ID/TOKEN or https://discord.com/api/webhooks/...",
    "teams": "the URL of a workflow, https://....logic.azure.com/workflows/... or "
    "https://....api.powerplatform.com/powerautomate/automations/direct/workflows/..., with its sig=",
    "telegram": "telegram://BOT_TOKEN/CHAT_ID",
    "pagerduty": "pagerduty://INTEGRATION_KEY or pagerduty://INTEGRATION_KEY?region=eu",
}
_SCHEMES = {
    "slack": "slack",
    "discord": "discord",
    "telegram": "telegram",
    "tgram": "telegram",
    "pagerduty": "pagerduty",
    "teams": "teams",
    "msteams": "teams",
    "workflow": "teams",
    "workflows": "teams",
}
"""The chat service that a scheme names."""
_HOSTS = (
    r"(?i)https?://(?:[^/?#]*@)?(?:(?P<slack>[a-z0-9.-]*\bslack\.com)|(?P<discord>[a-z0-9.-]*\bdiscord(?:app)?\.com)"
    r"|(?P<teams>[a-z0-9.-]+\.(?:logic\.azure\.com|api\.powerplatform\.com|webhook\.office\.com)))(?=[:/?#]|$)"
)
"""The chat service to which an https URL belongs. It would not understand the body of a webhook."""


def parse(text: str) -> ChatAddress | None:
    """Return the address of a chat service that a text names, None if it names none.

    Raises ValueError if the text names a chat service, and is not in one of its forms.
    """
    for form in _FORMS:
        if (match := re.fullmatch(form.pattern, text)) is not None:
            parts = {name: value for name, value in match.groupdict().items() if value}
            return ChatAddress(service=form.service, shown=_show(form, parts), parts=parts)
    service = _SCHEMES.get(text.partition("://")[0].lower())
    if service is None and (host := re.match(_HOSTS, text)) is not None:
        service = host.lastgroup
    if service is None:
        return None
    raise ValueError(f"must be {_EXPECTED[service]}")


def _show(form: _Form, parts: Mapping[str, str]) -> str:
    channel = f"/#{parts['channel']}" if "channel" in parts else ""
    return form.shown.format(**{**parts, "channel": channel})
