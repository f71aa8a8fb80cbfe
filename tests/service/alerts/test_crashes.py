"""A service that is killed at any moment of an alert loses nothing, and repeats a message at most once, with its id."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import httpx2
import msgspec
from pydantic import SecretStr
from standardwebhooks import Webhook
from tests.support.alerts import add_destination, let_time_pass, read_rows
from tests.support.patience import PATIENCE
from tests.support.played_worker import suspect
from tests.support.receivers import ReceivedRequest, Receiver, answering
from tests.support.services import RunningService, Serve

from gradmedic_service.alerts.addresses import Address
from gradmedic_service.alerts.delivering import LEASE_SECONDS
from gradmedic_service.alerts.policy import GATHERING_SECONDS
from gradmedic_service.alerts.secrets import SecretBox
from gradmedic_service.alerts.webhooks import new_signing_secret
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import Alert, AlertDelivery

SECRET_KEY = "a secret key for the tests of alerts alone"  # noqa: S105 (of tests)
SIGNING_SECRET = new_signing_secret()
RARELY = {"GRADMEDIC_DUE_WORK_INTERVAL": "86400", "GRADMEDIC_SECRET_KEY": SECRET_KEY}
OFTEN = {"GRADMEDIC_DUE_WORK_INTERVAL": "0.05", "GRADMEDIC_SECRET_KEY": SECRET_KEY}
WaitUntil = Callable[[Callable[[], bool]], None]


def add_receiver(database: Database, receiver: Receiver) -> None:
    """Store a webhook to a receiver."""
    url = f"http://127.0.0.1:{receiver.port}/hook"
    address = Address(
        kind="webhook", service="webhook", shown=url, parts={"url": url, "signing_secret": SIGNING_SECRET}
    )
    add_destination(database, secret=SecretBox(SecretStr(SECRET_KEY)).seal(address))


def explode(served: RunningService) -> None:
    """Let a run of a service explode."""
    with httpx2.Client(base_url=served.url, timeout=PATIENCE) as client:
        suspect(client, name="lstm")


def verify(request: ReceivedRequest) -> dict[str, Any]:
    """Return the body of a message whose signature is right."""
    Webhook(SIGNING_SECRET).verify(request.body, request.headers)
    body: dict[str, Any] = msgspec.json.decode(request.body)
    return body


def are_delivered(database: Database) -> bool:
    """Whether there is a delivery, and all are done."""
    states = [delivery.state for delivery in read_rows(database, AlertDelivery)]
    return bool(states) and set(states) == {"delivered"}


def test_a_kill_between_the_commit_and_the_alert(
    serve: Serve, database: Database, database_url: str, wait_until: WaitUntil
) -> None:
    """A trouble that was stored before the kill is told after it, once, signed and with its link."""
    with Receiver() as receiver:
        add_receiver(database, receiver)
        with serve(database_url, **RARELY) as served:
            explode(served)
            served.process.kill()
        let_time_pass(database, GATHERING_SECONDS)
        with serve(database_url, **OFTEN, GRADMEDIC_PUBLIC_URL="https://gradmedic.example.com"):
            wait_until(lambda: are_delivered(database))
        message = verify(receiver.take())
        assert receiver.requests.empty()
    (alert,) = read_rows(database, Alert)
    assert (message["type"], message["data"]["title"]) == ("alert.critical", "lstm is exploding")
    assert message["data"]["url"] == f"https://gradmedic.example.com{alert.path}"


def test_a_kill_during_the_send(serve: Serve, database: Database, database_url: str, wait_until: WaitUntil) -> None:
    """A message whose sender is killed before the answer is repeated once, with the same id."""
    processes: list[Any] = []

    def kill_then_answer(connection: socket.socket) -> None:
        receiver.answer = answering(204)
        processes[0].kill()
        answering(204)(connection)

    with Receiver(kill_then_answer) as receiver:
        add_receiver(database, receiver)
        with serve(database_url, **OFTEN) as served:
            processes.append(served.process)
            explode(served)
            let_time_pass(database, GATHERING_SECONDS)
            first = receiver.take()
            served.process.wait(PATIENCE)
        (delivery,) = read_rows(database, AlertDelivery)
        assert (delivery.state, delivery.attempts) == ("sending", 1)
        let_time_pass(database, LEASE_SECONDS)
        with serve(database_url, **OFTEN):
            wait_until(lambda: are_delivered(database))
        second = receiver.take()
        assert receiver.requests.empty()
    assert verify(first)["data"] == verify(second)["data"]
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    (delivery,) = read_rows(database, AlertDelivery)
    assert (delivery.state, delivery.attempts) == ("delivered", 2)
