"""The addresses that a person may write, and how they are shown."""

from __future__ import annotations

import pytest

from gradmedic_service.alerts.addresses import MAX_ADDRESS_LENGTH, AddressRefused, parse_address

AUTOMATION = "/powerautomate/automations/direct/cu/07/workflows/ab/triggers/manual/paths/invoke"
BOT = "xoxb-1234-5678-abcdef"


@pytest.mark.parametrize(
    ("text", "kind", "service", "shown"),
    [
        ("https://hooks.example.com/t/secret?key=secret", "webhook", "webhook", "https://hooks.example.com/..."),
        ("https://hooks.example.com:8443", "webhook", "webhook", "https://hooks.example.com:8443/"),
        ("https://[2606:2800:21f::1]/x", "webhook", "webhook", "https://[2606:2800:21f::1]/..."),
        ("mailto:ml-team@example.com", "mail", "mail", "mailto:ml-team@example.com"),
        ("slack://T00AB/B00CD/secret", "chat", "slack", "slack://..."),
        ("slack://T00AB/B00CD/secret/#ml", "chat", "slack", "slack://.../#ml"),
        (f"slack://{BOT}/ml-alerts", "chat", "slack", "slack://.../#ml-alerts"),
        ("https://hooks.slack.com/services/T00AB/B00CD/secret", "chat", "slack", "slack://..."),
        ("discord://123456/secret-_1", "chat", "discord", "discord://123456/..."),
        ("https://discord.com/api/webhooks/123456/secret", "chat", "discord", "discord://123456/..."),
        ("https://discordapp.com/api/v10/webhooks/123456/secret", "chat", "discord", "discord://123456/..."),
        ("telegram://123:secret/-100200300", "chat", "telegram", "telegram://.../-100200300"),
        ("tgram://123:secret/@ml_alerts", "chat", "telegram", "telegram://.../@ml_alerts"),
        ("pagerduty://secret", "chat", "pagerduty", "pagerduty://..."),
        ("pagerduty://secret@secret+1?region=eu", "chat", "pagerduty", "pagerduty://..."),
        (
            "https://prod-12.westeurope.logic.azure.com:443/workflows/ab12/triggers/manual/paths/invoke?sp=%2F&sig=secret-_",
            "chat",
            "teams",
            "https://prod-12.westeurope.logic.azure.com/...",
        ),
        (
            f"https://d1.api.powerplatform.com{AUTOMATION}?api-version=1&sig=secret",
            "chat",
            "teams",
            "https://d1.api.powerplatform.com/...",
        ),
    ],
)
def test_addresses(text: str, kind: str, service: str, shown: str) -> None:
    """Each form of an address is known, and shown without its secrets."""
    address = parse_address(text, allows_loopback=False)
    assert (address.kind, address.service, address.shown) == (kind, service, shown)
    assert "secret" not in address.shown
    assert "secret" not in repr(address)
    assert address.has_secret == (kind != "mail")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be one of https://"),
        ("hooks.example.com", "must be one of https://"),
        ("json://hooks.example.com/", "begins with json:, which is not known"),
        ("file:///etc/passwd", "begins with file:, which is not known"),
        ("ntfy://topic", "slack://TOKEN_A"),
        ("http://hooks.example.com/", "must begin with https://"),
        ("https:///path", "names no host"),
        ("https://user:pw@hooks.example.com/", "must have no user"),
        ("https://hooks.example.com/#x", "#fragment"),
        ("https://hooks.example.com:0/", "a port from 1"),
        ("https://hooks.example.com:99999/", "is not a URL"),
        ("https://hooks.example.com/a b", "no spaces"),
        ("https://hooks.example.com/\r\nHost: x", "no spaces"),
        ("https://h\u00f6ks.example.com/", "beyond ASCII"),
        ("https://x/" + "a" * MAX_ADDRESS_LENGTH, f"at most {MAX_ADDRESS_LENGTH}"),
        ("mailto:a@example.com,b@example.com", "one mailbox"),
        ("mailto:a@example.com?bcc=b@example.com", "one mailbox"),
        ("mailto:<a@example.com>", "one mailbox"),
        ("mailto:a@example.com%0d%0aBcc:b@example.com", "one mailbox"),
        ("slack://T00AB/B00CD/secret/ml?template=file:///etc/passwd", "must be slack://"),
        ("slack://T00AB/B00CD/../../evil", "must be slack://"),
        (f"slack://{BOT}", "must be slack://"),
        ("https://hooks.slack.com/services/T00AB/B00CD/secret?verify=no", "must be slack://"),
        ("https://hooks.slack.com.evil.example/services/T00AB/B00CD/secret?a=%0d", None),
        ("discord://123456/secret?template=https://evil.example/", "must be discord://"),
        ("https://discord.com/channels/1/2", "must be discord://"),
        ("telegram://123:secret", "must be telegram://"),
        ("pagerduty://secret?region=evil.example", "must be pagerduty://"),
        ("workflows://evil.example/id/sig", "must be the URL of a workflow"),
        ("https://evil.example/.logic.azure.com/workflows/a/triggers/manual/paths/invoke?sig=b", None),
        ("https://evil.example?.logic.azure.com/workflows/a/triggers/manual/paths/invoke?sig=b", None),
        ("https://team.webhook.office.com/webhookb2/1", "must be the URL of a workflow"),
    ],
)
def test_bad_addresses(text: str, message: str | None) -> None:
    """An address with more than its service needs is refused; one that only looks like a chat's is a webhook."""
    if message is None:
        assert parse_address(text, allows_loopback=False).kind == "webhook"
        return
    with pytest.raises(AddressRefused) as caught:
        parse_address(text, allows_loopback=False)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_plain_http_where_loopback_is_allowed() -> None:
    """`http://` is an address where the service is on this machine alone."""
    assert parse_address("http://localhost:9000/hook", allows_loopback=True).shown == "http://localhost:9000/..."
