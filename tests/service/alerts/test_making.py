"""Waiting events become alerts: one per trouble, gathered over runs, and none for those who want none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, insert, update
from starlette.testclient import TestClient
from tests.support.alerts import add_destination, let_time_pass, mute_project, read_rows
from tests.support.played_worker import API, CLIP, PlayedWorker, block, rerun, suspect

from gradmedic.protocol.ids import new_id
from gradmedic_service.alerts import grouping, making
from gradmedic_service.alerts.making import make_due_alerts
from gradmedic_service.alerts.policy import COOLDOWN_SECONDS, GATHERING_SECONDS, LASTING_SECONDS, MAX_GATHERING_SECONDS
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import Alert, AlertDelivery, AlertEvent, Run
from gradmedic_service.settings import Settings


@pytest.fixture
def other_replica(settings: Settings) -> Iterator[Database]:
    """The same database, as another process uses it."""
    other = Database(settings)
    yield other
    other.close()


def make_after(database: Database, seconds: float = GATHERING_SECONDS) -> list[str]:
    """Let time pass, make what is due, and return the titles of all alerts, the oldest first."""
    let_time_pass(database, seconds)
    make_due_alerts(database)
    return titles(database)


def titles(database: Database) -> list[str]:
    """Return the titles of all alerts, the oldest first."""
    return [alert.title for alert in read_rows(database, Alert)]


def explode_many(client: TestClient, database: Database, count: int, *, name: str = "r", **fields: Any) -> list[UUID]:
    """Store runs as copies of one that explodes, each with an event that it is critical; return their ids."""
    run_id = UUID(suspect(client, name=f"{name}-first", **fields))
    with database.writing() as session:
        table, events = Run.__table__, AlertEvent.__table__
        row = dict(session.execute(table.select().where(table.c.id == run_id)).one()._mapping)
        stored = dict(session.execute(events.select().where(events.c.run_id == run_id)).one()._mapping)
        ids = [new_id() for _ in range(count - 1)]
        session.execute(insert(Run), [row | {"id": each, "name": f"{name}-{n}"} for n, each in enumerate(ids)])
        session.execute(insert(AlertEvent), [stored | {"id": new_id(), "run_id": each} for each in ids])
    return [run_id, *ids]


def test_a_run_that_explodes_becomes_one_alert(client: TestClient, database: Database) -> None:
    """An alert has the sentence, the first advice and the page of the run, and one delivery for each destination."""
    destinations = {add_destination(database, name=name) for name in ("a", "b")}
    add_destination(database, project="other")
    run_id = suspect(client, name="lstm")
    assert make_after(database, GATHERING_SECONDS / 2) == []
    assert make_after(database, GATHERING_SECONDS / 2) == ["lstm is exploding"]
    assert make_after(database, COOLDOWN_SECONDS) == ["lstm is exploding"]
    (alert,) = read_rows(database, Alert)
    assert (alert.project, alert.trouble, alert.run_ids, alert.run_count) == ("tests", "critical", [run_id], 1)
    diagnosis = client.get(f"{API}/runs/{run_id}/diagnosis").json()
    assert alert.sentence == diagnosis["summary"]
    assert alert.advice.startswith(diagnosis["advice"][0]["remedy"]["id"])
    assert alert.path == f"/runs/{run_id}"
    deliveries = read_rows(database, AlertDelivery)
    assert {delivery.destination_id for delivery in deliveries} == destinations
    assert {(delivery.alert_id, delivery.state, delivery.attempts) for delivery in deliveries} == {
        (alert.id, "waiting", 0)
    }


def test_a_thousand_runs_that_explode_at_once_are_one_alert(client: TestClient, database: Database) -> None:
    """A sweep whose thousand runs explode within seconds is one alert, which counts them."""
    add_destination(database)
    explode_many(client, database, 1_000, group="sweep")
    assert make_after(database) == ["1000 of 1000 runs of sweep are exploding"]
    (alert,) = read_rows(database, Alert)
    assert (len(alert.run_ids), alert.run_count) == (20, 1_000)
    assert {row.alert_id for row in read_rows(database, AlertEvent)} == {alert.id}


def test_runs_that_explode_one_after_the_other_are_a_handful(client: TestClient, database: Database) -> None:
    """Where runs explode for ten minutes, later ones are gathered for longer; each of them is in one alert."""
    add_destination(database)
    for minute in range(10):
        explode_many(client, database, 20, name=f"minute{minute}")
        for _ in range(3):
            make_after(database, 20)
    make_after(database, MAX_GATHERING_SECONDS)
    alerts = read_rows(database, Alert)
    assert sum(alert.run_count for alert in alerts) == 200
    assert 2 <= len(alerts) <= 6


def test_more_runs_than_one_transaction_takes(
    client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs beyond those of one alert come in the next one; none is lost."""
    monkeypatch.setattr(making, "MAX_EVENTS", 30)
    add_destination(database)
    explode_many(client, database, 70)
    for _ in range(5):
        make_after(database, MAX_GATHERING_SECONDS)
    assert [alert.run_count for alert in read_rows(database, Alert)] == [30, 30, 10]


def test_attention_that_passes_and_attention_that_lasts(client: TestClient, database: Database) -> None:
    """Only attention that lasts becomes an alert."""
    add_destination(database)
    passing, lasting = (UUID(suspect(client, name=name)) for name in ("passing", "lasting"))
    with database.writing() as session:
        session.execute(
            update(AlertEvent).values(
                trouble="attention", due_at=datetime.now(UTC) + timedelta(seconds=LASTING_SECONDS)
            )
        )
    assert make_after(database, LASTING_SECONDS - 1) == []
    client.post(f"{API}/runs/{passing}/rewind", json={"step": 10, "generation": 0})
    assert make_after(database, GATHERING_SECONDS + 1) == ["lasting needs attention"]
    assert make_after(database, 2 * LASTING_SECONDS) == ["lasting needs attention"]
    assert read_rows(database, Alert)[0].run_ids == [str(lasting)]


def test_resolved_and_told_again_after_the_cooldown(client: TestClient, database: Database) -> None:
    """A run that recovers is told once that has lasted; a relapse is told when the cooldown has passed."""
    add_destination(database)
    run_id = suspect(client, name="r")
    make_after(database)
    client.post(f"{API}/runs/{run_id}/rewind", json={"step": 10, "generation": 0})
    assert make_after(database, LASTING_SECONDS + GATHERING_SECONDS) == ["r is exploding", "r has recovered"]
    client.post(f"{API}/runs/{run_id}/steps", json=block("exploding", first=11))
    assert len(make_after(database, 10 * GATHERING_SECONDS)) == 2
    assert make_after(database, COOLDOWN_SECONDS) == ["r is exploding", "r has recovered", "r is exploding"]


def test_a_run_that_recovers_without_an_alert_is_not_told(client: TestClient, database: Database) -> None:
    """A trouble that has passed before its alert was made is not told, and neither is its end."""
    add_destination(database)
    run_id = suspect(client)
    client.post(f"{API}/runs/{run_id}/rewind", json={"step": 10, "generation": 0})
    assert make_after(database, 2 * LASTING_SECONDS) == []
    assert all(row.handled_at is not None for row in read_rows(database, AlertEvent))


def test_a_verified_remedy_is_told_and_trials_are_not(
    client: TestClient, worker: PlayedWorker, database: Database
) -> None:
    """A rerun that verifies a remedy is one alert that leads to it, however many of its trials explode."""
    add_destination(database)
    run_id = suspect(client, name="r")
    made = rerun(client, run_id, CLIP)
    worker.work({0: "exploding", 1: "learning"})
    assert sorted(make_after(database)) == ["r has a verified remedy", "r is exploding"]
    verified = next(alert for alert in read_rows(database, Alert) if alert.trouble == "verified")
    assert verified.path == f"/reruns/{made['id']}"
    assert verified.sentence.startswith("clip_grad_norm(1.0): ")


def test_a_project_without_destinations_makes_no_alert(client: TestClient, database: Database) -> None:
    """Without a destination an event is all that is stored, and it is not looked at again."""
    suspect(client)
    assert make_after(database) == []
    assert [row.alert_id for row in read_rows(database, AlertEvent)] == [None]
    assert read_rows(database, AlertEvent)[0].handled_at is not None
    add_destination(database)
    assert make_after(database, MAX_GATHERING_SECONDS) == []


def test_a_destination_gets_the_troubles_that_it_wants(client: TestClient, database: Database) -> None:
    """A destination that wants other troubles gets no delivery; if no destination wants it, there is no alert."""
    add_destination(database, name="failures", troubles=["failed"])
    suspect(client, name="first")
    assert make_after(database) == []
    wanted = add_destination(database, name="critical", troubles=["critical", "stalled"])
    suspect(client, name="second")
    assert make_after(database) == ["second is exploding"]
    assert [delivery.destination_id for delivery in read_rows(database, AlertDelivery)] == [wanted]


def test_a_muted_project_makes_no_alert(client: TestClient, database: Database) -> None:
    """What happens while a project is muted is never told; what happens later is."""
    add_destination(database)
    suspect(client, name="before")
    mute_project(database, "tests", seconds=2 * GATHERING_SECONDS)
    assert make_after(database) == []
    suspect(client, name="after")
    assert make_after(database, MAX_GATHERING_SECONDS) == ["after is exploding"]


def test_a_muted_destination_shows_in_the_history(client: TestClient, database: Database) -> None:
    """A delivery to a muted destination is stored as muted; other destinations get theirs."""
    muted = add_destination(database, name="muted", muted_until=datetime.now(UTC) + timedelta(hours=1))
    other = add_destination(database, name="other")
    suspect(client)
    make_after(database)
    states = {delivery.destination_id: delivery.state for delivery in read_rows(database, AlertDelivery)}
    assert states == {muted: "muted", other: "waiting"}


def test_replicas_make_one_alert(client: TestClient, database: Database, other_replica: Database) -> None:
    """Two replicas that make alerts at the same moment make one for each project and trouble."""
    for number in range(4):
        add_destination(database, project=f"p{number}")
        explode_many(client, database, 20, project=f"p{number}")
    let_time_pass(database, GATHERING_SECONDS)
    start = threading.Barrier(4)

    def make(replica: Database) -> None:
        start.wait()
        make_due_alerts(replica)

    threads = [threading.Thread(target=make, args=(each,)) for each in (database, other_replica) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    make_due_alerts(database)
    assert [alert.run_count for alert in read_rows(database, Alert)] == [20] * 4


def test_an_alert_and_its_events_are_stored_together(
    client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an alert cannot be stored, its events still wait, and the other projects get their alerts."""
    for project in ("broken", "sound"):
        add_destination(database, project=project)
        suspect(client, project=project, name=project)
    compose = grouping.compose

    def fail(project: str, *arguments: Any) -> Any:
        if project == "broken":
            raise RuntimeError("no text")
        return compose(project, *arguments)

    monkeypatch.setattr(making, "compose", fail)
    assert make_after(database) == ["sound is exploding"]
    monkeypatch.setattr(making, "compose", compose)
    assert make_after(database, 0) == ["sound is exploding", "broken is exploding"]


def test_a_run_that_is_deleted_meanwhile_is_left_out(client: TestClient, database: Database) -> None:
    """Events of deleted runs are gone; the alert is about the others."""
    add_destination(database)
    first, second = (UUID(suspect(client, name=name)) for name in ("first", "second"))
    with database.writing() as session:
        session.execute(delete(Run).where(Run.id == first))
    assert make_after(database) == ["second is exploding"]
    assert read_rows(database, Alert)[0].run_ids == [str(second)]
