"""Chat services: the real plugins, which send to receivers on this machine in place of their fixed hosts."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
from apprise.plugins import pagerduty
from apprise.plugins.discord import NotifyDiscord
from apprise.plugins.pagerduty import NotifyPagerDuty
from apprise.plugins.slack import NotifySlack
from apprise.plugins.telegram import NotifyTelegram
from apprise.plugins.workflows import NotifyWorkflows
from tests.service.alerts.messages import RUN_ID, message
from tests.support.patience import PATIENCE
from tests.support.receivers import Receiver, answering

from gradmedic_service.alerts import chat
from gradmedic_service.alerts.addresses import parse_address
from gradmedic_service.alerts.chat import ChatSender
from gradmedic_service.alerts.messages import DeliveryFailed

SLACK = "slack://T00AB/B00CD/secret/#ml"
AUTOMATION = "/powerautomate/automations/direct/cu/07/workflows/ab/triggers/manual/paths/invoke"
SHORT = 0.2
"""Seconds of an attempt that must fail because they pass."""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver that stands in for every chat service."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(chat, "CONNECT_SECONDS", float(PATIENCE))
    monkeypatch.setattr(chat, "READ_SECONDS", float(PATIENCE))
    with Receiver(answering(200, body=b"ok")) as receiver:
        base = f"http://127.0.0.1:{receiver.port}"
        monkeypatch.setattr(NotifySlack, "webhook_url", f"{base}/services")
        monkeypatch.setattr(NotifySlack, "api_url", f"{base}/api/{{}}")
        monkeypatch.setattr(NotifyDiscord, "notify_url", f"{base}/api/webhooks")
        monkeypatch.setattr(NotifyTelegram, "notify_url", f"{base}/bot")
        monkeypatch.setitem(pagerduty.PAGERDUTY_API_LOOKUP, "us", f"{base}/us/enqueue")
        monkeypatch.setitem(pagerduty.PAGERDUTY_API_LOOKUP, "eu", f"{base}/eu/enqueue")
        yield receiver


def send(text: str, *, seconds: float = PATIENCE, **fields: Any) -> None:
    """Send a message to the address that a text names."""
    ChatSender(seconds=seconds).send(parse_address(text, allows_loopback=False), message(**fields))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (SLACK, "/services/T00AB/B00CD/secret"),
        ("https://hooks.slack.com/services/T00AB/B00CD/secret", "/services/T00AB/B00CD/secret"),
        ("discord://123456/secret", "/api/webhooks/123456/secret"),
        ("telegram://123:secret/-100200", "/bot123:secret/sendMessage"),
        ("pagerduty://secret", "/us/enqueue"),
        ("pagerduty://secret@key?region=eu", "/eu/enqueue"),
    ],
)
def test_every_service_gets_the_message(receiver: Receiver, text: str, path: str) -> None:
    """The request has the path of the channel, and the body has title, sentence, advice and link."""
    send(text)
    request = receiver.take()
    assert request.line == f"POST {path} HTTP/1.1"
    body = json.dumps(json.loads(request.body), ensure_ascii=False)
    for part in ("lstm-3 is exploding", "since step 371", "clip_grad_norm(max_norm=1.0)", str(RUN_ID)):
        assert part in body
    assert "apprise" not in body.lower()
    assert "caronc" not in body.lower()


def test_slack_names_the_channel(receiver: Receiver) -> None:
    """The channel of the address is in the message to Slack."""
    send(SLACK)
    assert json.loads(receiver.take().body)["channel"] == "#ml"


def test_a_bot_of_slack_sends_its_token_in_a_header(receiver: Receiver) -> None:
    """The token of a bot is in no URL. A refusal in the body, which has status 200, is a failure."""
    receiver.answer = answering(200, body=b'{"ok": false, "error": "channel_not_found"}')
    with pytest.raises(DeliveryFailed, match="Slack refused the message; check the channel"):
        send("slack://xoxb-1234-5678-secret/ml")
    request = receiver.take()
    assert request.headers["authorization"] == "Bearer xoxb-1234-5678-secret"
    assert "secret" not in request.line


@pytest.mark.parametrize("text", [SLACK, "discord://123456/secret", "telegram://123:secret/-100200"])
def test_names_of_runs_mention_nobody(receiver: Receiver, text: str) -> None:
    """The name of a run can neither mention a whole channel or a person, nor hide a link behind another text."""
    link = "https://evil.example"
    send(
        text, title="<!channel> @everyone <i>", sentence=f"[a]({link}) <@U1|x> <{link}|b>", advice=f'<a href="{link}">'
    )
    shown = json.dumps(json.loads(receiver.take().body), ensure_ascii=False)
    for part in ("!channel", "everyone", "U1", "|b"):
        assert part in shown
    for part in ("<!", "@everyone", "<@", "@U1", "](", f"<{link}", "<a", "<i>"):
        assert part not in shown


def test_pagerduty_resolves_the_incident_it_opened(receiver: Receiver) -> None:
    """The trouble of some runs opens an incident with the first run's key; when runs are well, theirs are resolved."""
    runs = [uuid4(), uuid4()]
    send("pagerduty://secret", run_ids=runs)
    opened = json.loads(receiver.take().body)
    assert (opened["event_action"], opened["dedup_key"]) == ("trigger", str(runs[0]))
    assert opened["payload"]["severity"] == "critical"
    send("pagerduty://secret", run_ids=runs, trouble="resolved")
    resolved = [json.loads(receiver.take().body) for _ in runs]
    assert [event["event_action"] for event in resolved] == ["resolve", "resolve"]
    assert [event["dedup_key"] for event in resolved] == [str(run) for run in runs]


@pytest.mark.parametrize(("status", "is_permanent"), [(404, True), (403, True), (408, False), (500, False)])
@pytest.mark.parametrize(
    "text", [SLACK, "telegram://123:secret/-100200", "discord://123456/secret", "pagerduty://secret"]
)
def test_failures_have_their_status(receiver: Receiver, text: str, status: int, is_permanent: bool) -> None:
    """A status that is no success is the reason, without a token; it decides whether a retry is of use."""
    receiver.answer = answering(status, body=b"secret no_service")
    with pytest.raises(DeliveryFailed, match=f"answered {status}") as caught:
        send(text)
    assert caught.value.is_permanent == is_permanent
    assert "secret" not in caught.value.reason


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    """A redirect is a failure, and its target gets nothing."""
    with Receiver() as other:
        receiver.answer = answering(307, headers=f"Location: http://127.0.0.1:{other.port}/\r\n")
        with pytest.raises(DeliveryFailed, match="Slack answered 307"):
            send(SLACK)
        assert other.requests.empty()


def test_a_service_that_hangs(receiver: Receiver) -> None:
    """A chat service that does not answer ends the attempt."""
    may_end = Event()

    def answer(_connection: socket.socket) -> None:
        may_end.wait(PATIENCE)

    receiver.answer = answer
    with pytest.raises(DeliveryFailed, match=f"within {SHORT:g} seconds"):
        send(SLACK, seconds=SHORT)
    may_end.set()


def test_tokens_are_not_logged(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """No line of the log has a token, whatever its level, also for a failure."""
    caplog.set_level(logging.DEBUG)
    receiver.answer = answering(500, body=b"secret")
    with pytest.raises(DeliveryFailed):
        send(SLACK)
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (
            "https://prod-1.westeurope.logic.azure.com/workflows/ab/triggers/manual/paths/invoke?sv=1&sig=cd",
            "https://prod-1.westeurope.logic.azure.com/workflows/ab/triggers/manual/paths/invoke",
        ),
        (
            f"https://x.api.powerplatform.com:443{AUTOMATION}?api-version=1&sig=cd",
            f"https://x.api.powerplatform.com{AUTOMATION}",
        ),
    ],
)
def test_teams_gets_the_url_that_was_pasted(monkeypatch: pytest.MonkeyPatch, text: str, url: str) -> None:
    """The workflow of Microsoft Teams is called at its own URL, with its signature, checked and without redirects."""
    calls: list[tuple[str, dict[str, Any]]] = []

    class Accepted:
        status_code = 202
        content = b""

    def post(address: str, **options: Any) -> Accepted:
        calls.append((address, options))
        return Accepted()

    monkeypatch.setattr("apprise.plugins.workflows.requests.post", post)
    send(text)
    (address, options), *others = calls
    assert (address, options["params"]["sig"], others) == (url, "cd", [])
    assert (options["verify"], options["allow_redirects"]) == (True, False)
    assert "lstm-3 is exploding" in options["data"]


@pytest.mark.parametrize(
    ("plugin", "attribute", "value"),
    [
        (NotifySlack, "webhook_url", "https://hooks.slack.com/services"),
        (NotifySlack, "api_url", "https://slack.com/api/{}"),
        (NotifyDiscord, "notify_url", "https://discord.com/api/webhooks"),
        (NotifyTelegram, "notify_url", "https://api.telegram.org/bot"),
    ],
)
def test_hosts_are_fixed(plugin: type, attribute: str, value: str) -> None:
    """The installed Apprise sends to the hosts for which its services were accepted, and checks certificates."""
    assert getattr(plugin, attribute) == value
    assert NotifyWorkflows.verify_certificate
    assert NotifyPagerDuty.verify_certificate
    assert set(pagerduty.PAGERDUTY_API_LOOKUP.values()) == {
        "https://events.pagerduty.com/v2/enqueue",
        "https://events.eu.pagerduty.com/v2/enqueue",
    }
