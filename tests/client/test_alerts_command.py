"""`gradmedic alerts` and `client.alerts`, with a real service and a receiver of webhooks."""

from __future__ import annotations

import io
import json
import sys
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from standardwebhooks import Webhook
from tests.support.receivers import Receiver, answering

import gradmedic
from gradmedic.cli.main import main


@pytest.fixture(autouse=True)
def _service(service_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands find the service by the environment."""
    monkeypatch.setenv("GRADMEDIC_BASE_URL", service_url)


@pytest.fixture
def project() -> str:
    """A project of its own."""
    return f"alerts-{uuid4()}"


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """Run `gradmedic alerts` and return what it prints: on standard error if the code is not 0."""
    capsys.readouterr()
    assert main(["alerts", *arguments]) == code, capsys.readouterr().err
    printed = capsys.readouterr()
    return printed.err if code else printed.out


def test_a_destination_from_the_first_to_the_last_command(project: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A webhook is added, tested, listed, muted, and removed, by its name or a part of its id."""
    with Receiver() as receiver:
        address = f"http://127.0.0.1:{receiver.port}/secret"
        added = run(capsys, "add", address, "--project", project, "--name", "on call", "--trouble", "critical")
        short = added.partition(":")[0]
        secret = added.splitlines()[1].removeprefix("signing secret, shown only now: ")
        assert f"send a test: gradmedic alerts test {short}" in added
        assert "/secret" not in added
        assert run(capsys, "test", short) == "on call has accepted a test message\n"
        request = receiver.take()
        assert Webhook(secret).verify(request.body, request.headers)["data"]["is_test"]
        receiver.answer = answering(500)
        assert "on call: The destination answered 500." in run(capsys, "test", "on call", code=2)
    listed = run(capsys, "list", "--project", project).splitlines()
    assert listed[0].split() == ["ID", "PROJECT", "NAME", "ADDRESS", "TROUBLES", "STATE"]
    assert "critical" in listed[1]
    assert listed[1].endswith("failed: The destination answered 500.")
    assert run(capsys, "mute", "on call", "--for", "8h").startswith("on call is muted until ")
    assert "muted until" in run(capsys, "list", "--project", project)
    assert run(capsys, "mute", "on call", "--off") == "on call is no longer muted\n"
    assert "failed:" in run(capsys, "list", "--project", project)
    assert run(capsys, "remove", "on call", "--project", project) == "on call: removed\n"
    assert "no destinations" in run(capsys, "list", "--project", project)
    assert "no destination is called 'on call'" in run(capsys, "test", "on call", "--project", project, code=2)


def test_everything_is_printed_as_json(project: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json`, each action prints an object of the API per line."""
    with Receiver() as receiver:
        address = f"http://127.0.0.1:{receiver.port}/"
        added = json.loads(run(capsys, "add", address, "--project", project, "--json"))
        assert added["signing_secret"].startswith("whsec_")
        tested = json.loads(run(capsys, "test", added["id"], "--json"))
        assert tested == {"is_delivered": True, "error": None}
    (listed,) = [json.loads(line) for line in run(capsys, "list", "--project", project, "--json").splitlines()]
    assert listed["id"] == added["id"]
    assert "signing_secret" not in listed
    muted = json.loads(run(capsys, "mute", "--project", project, "--for", "2d", "--json"))
    until = datetime.fromisoformat(muted["alerts_muted_until"])
    assert timedelta(days=1) < until - datetime.now(UTC) <= timedelta(days=2)
    assert "no longer muted" in run(capsys, "mute", "--project", project, "--off")
    assert json.loads(run(capsys, "remove", added["id"], "--json"))["id"] == added["id"]
    assert run(capsys, "history", "--project", project, "--json") == ""
    assert run(capsys, "history", "--project", project) == "no alerts\n"


def test_an_address_is_read_from_the_standard_input(
    project: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `-`, the address is in no list of processes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("slack://T00AB/B00CD/secret/#ml\n"))
    assert f"alerts of {project} go to slack://.../#ml" in run(capsys, "add", "-", "--project", project)


def test_wrong_arguments(project: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An address that is refused, an ambiguous name and a wrong time are named."""
    assert "begins with ftp:" in run(capsys, "add", "ftp://x", "--project", project, code=2)
    for _ in range(2):
        run(capsys, "add", "https://hooks.example.com/", "--project", project, "--name", "twice")
    assert "2 destinations match 'twice'" in run(capsys, "remove", "twice", "--project", project, code=2)
    for arguments, message in (
        (["mute", "--for", "soon"], "must be days, hours or minutes like 2d, 8h or 30m, not 'soon'"),
        (["mute", "x"], "one of the arguments --for --off is required"),
        (["ad"], "there is no action 'ad'; did you mean 'add'?"),
    ):
        with pytest.raises(SystemExit):
            main(["alerts", *arguments])
        assert message in capsys.readouterr().err


def test_the_client_reads_all_pages(project: str, client: gradmedic.Client) -> None:
    """The iterator over destinations fetches page after page; an update changes what it names alone."""
    added = [client.alerts.add(project, "https://hooks.example.com/", name=f"d{number}") for number in range(3)]
    listed = list(client.alerts.destinations(project=project, page_size=2))
    assert [destination.id for destination in listed] == [destination.id for destination in added]
    changed = client.alerts.update(added[0].id, troubles=["failed"])
    assert (changed.name, changed.troubles) == ("d0", ["failed"])
    assert list(client.alerts.history(project=project, trouble="critical")) == []
    client.alerts.remove(added[0].id)
    with pytest.raises(gradmedic.NotFoundError, match="There is no alert destination"):
        client.alerts.test(added[0].id)
