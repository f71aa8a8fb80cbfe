"""One-time tickets: how a process on a cluster gets the key of its attempt, and that no other process does."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from tests.support.api_keys import ClientWithKey
from tests.support.api_keys import client_with_key as client_with_key
from tests.support.api_keys import client_without_key as client_without_key
from tests.support.api_keys import make_secret as make_secret
from tests.support.app_client import AppClient
from tests.support.played_worker import API, CLIP, PlayedWorker, rerun, suspect
from tests.support.service_app import ReplaceServices

from gradmedic_service.access.secrets import new_secret
from gradmedic_service.services import services_of

Claimed = dict[str, Any]
Holding = Callable[[str], TestClient]


def code(response: httpx2.Response) -> str:
    """Return the error code of an answer."""
    found: str = response.json()["error_code"]
    return found


@pytest.fixture
def person(client_with_key: ClientWithKey) -> TestClient:
    """A client that may create reruns."""
    return client_with_key("ingest", "read", "rerun")


@pytest.fixture
def supervisor(client_with_key: ClientWithKey) -> PlayedWorker:
    """A supervisor with its own key, which has offered its trainable."""
    played = PlayedWorker(client_with_key("worker"))
    played.register(gpus=1, timeout=50.0)
    return played


@pytest.fixture
def holding(client_without_key: TestClient) -> Holding:
    """Make clients that present a ticket, or a key."""

    def hold(secret: str) -> TestClient:
        headers = {"Authorization": f"Bearer {secret}"}
        return AppClient(
            client_without_key.app,
            raise_server_exceptions=False,
            headers=headers,
            base_url=str(client_without_key.base_url),
        )

    return hold


def claim(supervisor: PlayedWorker, executor: str = "ray") -> Claimed | None:
    """Claim a trial for an executor."""
    body = {"worker": "s", "trainables": ["train"], "executor": executor}
    response = supervisor.client.post(f"{API}/trials/claim", json=body)
    assert response.status_code in (200, 204), response.text
    return response.json() if response.status_code == 200 else None


@pytest.fixture
def waiting(person: TestClient, supervisor: PlayedWorker) -> Claimed:
    """An attempt that waits for its process."""
    rerun(person, suspect(person, project="mine"), CLIP, executor="ray")
    claimed = claim(supervisor)
    assert claimed is not None
    return claimed


def issue(supervisor: PlayedWorker, claimed: Claimed, secret: str, **fields: Any) -> httpx2.Response:
    """Store a ticket."""
    body = {"attempt": claimed["attempt"], "ticket": secret, "seconds": 600} | fields
    return supervisor.client.post(f"{API}/trials/{claimed['trial_id']}/ticket", json=body)


def redeem(client: TestClient, claimed: Claimed) -> httpx2.Response:
    """Redeem a ticket."""
    return client.post(f"{API}/trials/{claimed['trial_id']}/redeem", json={"attempt": claimed["attempt"]})


def lease(client: httpx2.Client, claimed: Claimed) -> httpx2.Response:
    """Read the lease of an attempt."""
    return client.get(f"{API}/trials/{claimed['trial_id']}/lease", params={"attempt": claimed["attempt"]})


def test_a_ticket_is_exchanged_once_for_the_key_of_its_attempt(
    waiting: Claimed, supervisor: PlayedWorker, holding: Holding, session_app: FastAPI
) -> None:
    """The claim has no key. The ticket is exchanged for the key and the trial, and only once."""
    assert waiting["api_key"] is None
    ticket = new_secret()
    assert issue(supervisor, waiting, ticket).status_code == 200
    bearer = holding(ticket)
    bought = redeem(bearer, waiting)
    assert bought.status_code == 200
    assert bought.json() | {"api_key": None, "seconds": waiting["seconds"]} == waiting
    assert 0 < bought.json()["seconds"] <= 50.0
    assert code(redeem(bearer, waiting)) in ("stale_attempt", "api_key_revoked")
    services_of(session_app).keyring.clear()
    assert code(redeem(bearer, waiting)) == "api_key_revoked"
    assert code(issue(supervisor, waiting, new_secret())) == "stale_attempt"
    process = PlayedWorker(holding(bought.json()["api_key"]))
    process.stream(waiting, "exploding")
    assert lease(process.client, waiting).json()["seconds"] > 0
    assert supervisor.publish(waiting).status_code == 200
    services_of(session_app).keyring.clear()
    assert code(lease(process.client, waiting)) == "api_key_revoked"


def test_of_many_processes_that_redeem_a_ticket_one_gets_the_key(
    waiting: Claimed, supervisor: PlayedWorker, holding: Holding
) -> None:
    """Of the processes that redeem a ticket at the same time, one starts."""
    ticket = new_secret()
    issue(supervisor, waiting, ticket)
    answers: list[int] = []
    bearers = [holding(ticket) for _ in range(6)]
    threads = [
        threading.Thread(target=lambda bearer=bearer: answers.append(redeem(bearer, waiting).status_code))
        for bearer in bearers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers)[0] == 200
    assert sorted(answers)[1] > 400


def test_a_ticket_opens_nothing_else(waiting: Claimed, supervisor: PlayedWorker, holding: Holding) -> None:
    """A ticket opens neither its run nor another attempt, and no route of workers or readers."""
    ticket = new_secret()
    issue(supervisor, waiting, ticket)
    bearer = holding(ticket)
    assert code(bearer.get(f"{API}/runs/{waiting['run_id']}")) == "scope_missing"
    assert code(bearer.post(f"{API}/trials/claim", json={"worker": "w", "trainables": []})) == "scope_missing"
    assert code(lease(bearer, waiting)) == "scope_missing"
    assert code(redeem(bearer, waiting | {"attempt": 2})) == "trial_not_found"
    assert code(redeem(bearer, waiting | {"trial_id": waiting["run_id"]})) == "trial_not_found"


@pytest.mark.parametrize("scopes", [("worker",), ("ingest", "read", "rerun"), ("admin",)], ids="+".join)
def test_no_key_of_a_person_or_worker_is_a_ticket(
    waiting: Claimed, client_with_key: ClientWithKey, scopes: tuple[str, ...]
) -> None:
    """No other key than the ticket is exchanged for the key of an attempt, not even an administrator's."""
    assert code(redeem(client_with_key(*scopes), waiting)) in ("scope_missing", "trial_not_found")


def test_no_key_has_the_scope_of_tickets(client_with_key: ClientWithKey) -> None:
    """No key can be created with the scope of tickets."""
    asked = client_with_key("admin").post(f"{API}/api-keys", json={"scopes": ["ticket"], "project": "mine"})
    assert asked.status_code == 422


@pytest.mark.parametrize(
    ("fields", "path"),
    [({"ticket": "guessable"}, "ticket"), ({"seconds": 0}, "seconds"), ({"seconds": 1e6}, "seconds")],
    ids=["form", "none", "long"],
)
def test_tickets_that_are_short_or_long_lived_are_refused(
    waiting: Claimed, supervisor: PlayedWorker, fields: dict[str, Any], path: str
) -> None:
    """A ticket has the form of a key and is valid for a day at most."""
    refused = issue(supervisor, waiting, new_secret(), **fields)
    assert refused.status_code == 422
    assert [error["path"] for error in refused.json()["errors"]] == [path]


def test_only_its_supervisor_stores_a_ticket(
    waiting: Claimed, client_with_key: ClientWithKey, supervisor: PlayedWorker
) -> None:
    """A worker does not see the trials of another one; an attempt that has ended takes no ticket."""
    assert code(issue(PlayedWorker(client_with_key("worker")), waiting, new_secret())) == "trial_not_found"
    assert code(issue(supervisor, waiting | {"attempt": 3}, new_secret())) == "trial_not_found"
    ticket = new_secret()
    assert issue(supervisor, waiting, ticket).status_code == 200
    assert issue(supervisor, waiting, ticket).status_code == 200
    supervisor.publish(waiting, "lost", exit_code=None)
    assert code(issue(supervisor, waiting, secrets.token_hex())) == "invalid_request"
    assert code(issue(supervisor, waiting, ticket)) == "stale_attempt"


def test_a_ticket_expires_with_its_lease(
    waiting: Claimed, supervisor: PlayedWorker, holding: Holding, replace_services: ReplaceServices, wait_until: Any
) -> None:
    """After its lease has expired, an attempt's ticket is refused, also before the trial is queued again."""
    ticket = new_secret()
    replace_services(trial_lease=0.05)
    issue(supervisor, waiting, ticket)
    supervisor.beat(waiting)  # until a twentieth of a second from now
    wait_until(lambda: issue(supervisor, waiting, ticket).json()["seconds"] < 0)
    assert code(redeem(holding(ticket), waiting)) == "stale_attempt"


def test_a_ticket_that_expired_is_refused(
    waiting: Claimed, supervisor: PlayedWorker, holding: Holding, wait_until: Any
) -> None:
    """A ticket is valid for the requested seconds, also while its attempt waits."""
    ticket = new_secret()
    assert issue(supervisor, waiting, ticket, seconds=0.01).status_code == 200
    over = time.monotonic() + 0.1
    wait_until(lambda: time.monotonic() > over)
    assert code(redeem(holding(ticket), waiting)) == "api_key_expired"


def test_a_new_ticket_replaces_the_one_before(waiting: Claimed, supervisor: PlayedWorker, holding: Holding) -> None:
    """Of two tickets of one attempt only the later one is valid."""
    first, second = new_secret(), new_secret()
    issue(supervisor, waiting, first)
    issue(supervisor, waiting, second)
    assert code(redeem(holding(first), waiting)) == "api_key_revoked"
    again = issue(supervisor, waiting, first)
    assert again.json()["errors"] == [{"path": "ticket", "message": "was used before"}]
    assert redeem(holding(second), waiting).status_code == 200


def test_waiting_costs_nothing_and_running_does(
    waiting: Claimed, person: TestClient, supervisor: PlayedWorker, holding: Holding
) -> None:
    """The seconds of a rerun are those of its processes, not of the queue before them."""
    supervisor.publish(waiting, "lost", reason="no place was found", exit_code=None)
    made = person.get(f"{API}/reruns/{waiting['rerun_id']}").json()
    assert made["cost_seconds"] == 0
    assert made["trials"][0]["attempts"][0]["reason"] == "no place was found"
    again = claim(supervisor)
    assert again is not None
    ticket = new_secret()
    issue(supervisor, again, ticket)
    redeem(holding(ticket), again)
    supervisor.publish(again, "lost", exit_code=None)
    assert person.get(f"{API}/reruns/{waiting['rerun_id']}").json()["cost_seconds"] > 0


def test_a_trial_shows_that_it_waits_for_a_place(
    waiting: Claimed, person: TestClient, supervisor: PlayedWorker, holding: Holding
) -> None:
    """Until its process has started, a running trial shows that it waits; so does each further attempt."""

    def status_and_reason() -> tuple[str, str | None]:
        (trial,) = person.get(f"{API}/reruns/{waiting['rerun_id']}").json()["trials"]
        return trial["status"], trial["reason"]

    assert status_and_reason() == ("running", "it waits for a place on the cluster")
    supervisor.publish(waiting, "lost", reason="no place was found", exit_code=None)
    assert status_and_reason() == ("queued", None)
    again = claim(supervisor)
    assert again is not None
    assert status_and_reason() == ("running", "it waits for a place on the cluster")
    ticket = new_secret()
    issue(supervisor, again, ticket)
    redeem(holding(ticket), again)
    assert status_and_reason() == ("running", None)


def test_what_is_lost_is_tried_again_and_then_given_up(
    waiting: Claimed, person: TestClient, supervisor: PlayedWorker
) -> None:
    """A lost attempt is no result: its trial is queued again, once for each attempt, until the third."""
    path = f"{API}/reruns/{waiting['rerun_id']}"
    for attempt in (1, 2, 3):
        claimed = waiting if attempt == 1 else claim(supervisor)
        assert claimed is not None
        assert claimed["attempt"] == attempt
        assert supervisor.publish(claimed, "lost", reason="the node died", exit_code=None).status_code == 200
        assert supervisor.publish(claimed, "lost", exit_code=None).status_code == 200  # its answer was lost
        assert code(supervisor.publish(claimed, "done")) == "stale_attempt"
    made = person.get(path).json()
    assert (made["status"], [attempt["status"] for attempt in made["trials"][0]["attempts"]]) == (
        "failed",
        ["lost"] * 3,
    )
    assert "the last one: the node died" in made["reason"]


def test_executors_take_their_own_reruns(person: TestClient, supervisor: PlayedWorker) -> None:
    """A rerun runs on the executor that it names; without one, on that of the first worker that claims a trial."""
    suspects = [suspect(person, project="mine") for _ in range(3)]
    local = rerun(person, suspects[0], CLIP, executor="local")
    assert claim(supervisor, "ray") is None
    assert (claim(supervisor, "local") or {})["rerun_id"] == local["id"]
    unbound = rerun(person, suspects[1], CLIP)
    assert unbound["executor"] is None
    assert (claim(supervisor, "ray") or {})["rerun_id"] == unbound["id"]
    assert person.get(f"{API}/reruns/{unbound['id']}").json()["executor"] == "ray"
    refused = supervisor.client.post(
        f"{API}/trials/claim", json={"worker": "s", "trainables": ["train"], "executor": "slurm"}
    )
    assert refused.json()["errors"] == [{"path": "executor", "message": "'slurm' is not one of local, ray"}]


def test_a_loopback_service_has_tickets_too(client: TestClient) -> None:
    """Where no keys are needed, a client without a ticket cannot redeem one."""
    worker = PlayedWorker(client)
    worker.register()
    rerun(client, suspect(client), CLIP, executor="ray")
    claimed = claim(worker)
    assert claimed is not None
    ticket = new_secret()
    assert issue(worker, claimed, ticket).status_code == 200
    assert code(redeem(client, claimed)) == "trial_not_found"
    bearer = AppClient(client.app, headers={"Authorization": f"Bearer {ticket}"}, base_url=str(client.base_url))
    assert redeem(bearer, claimed).json()["api_key"] is not None
