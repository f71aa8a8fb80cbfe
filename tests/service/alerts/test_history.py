"""The history has every alert with its deliveries, for those who reach its project."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from starlette.testclient import TestClient
from tests.support.alerts import KeptMessages, add_destination, let_time_pass
from tests.support.played_worker import suspect

from gradmedic.protocol.alert_history import AlertHistory
from gradmedic.protocol.ids import new_id
from gradmedic_service.access.principal import LOOPBACK, Principal
from gradmedic_service.alerts import history
from gradmedic_service.alerts.delivering import deliver_due
from gradmedic_service.alerts.making import make_due_alerts
from gradmedic_service.alerts.messages import DeliveryFailed
from gradmedic_service.alerts.policy import GATHERING_SECONDS
from gradmedic_service.database.engine import Database
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.http.metrics import Metrics


def alert(client: TestClient, database: Database, **fields: Any) -> UUID:
    """Let a run explode and make its alert; return the run's id."""
    run_id = suspect(client, **fields)
    let_time_pass(database, 10 * GATHERING_SECONDS)
    make_due_alerts(database)
    return UUID(run_id)


def read(database: Database, principal: Principal = LOOPBACK, **filters: Any) -> AlertHistory:
    """Return a page of the history."""
    query = {"project": None, "run_id": None, "trouble": None, "page_token": None, "max_results": 100} | filters
    with database.reading() as session:
        return history.list_page(session, principal, **query)


def found(page: AlertHistory) -> list[str]:
    """Return the titles of a page."""
    return [item.title for item in page.items]


def test_an_alert_shows_its_deliveries(client: TestClient, database: Database) -> None:
    """Each delivery shows its state, its attempts, the last error and the next attempt."""
    works, broken = (add_destination(database, name=name) for name in ("works", "broken"))
    alert(client, database, name="r")
    (before,) = read(database).items
    assert {(each.destination, each.state, each.attempts) for each in before.deliveries} == {
        ("works", "waiting", 0),
        ("broken", "waiting", 0),
    }
    assert all(each.next_attempt_at is not None for each in before.deliveries)
    sender = KeptMessages()
    sender.fail = lambda _: DeliveryFailed("It answered 500.") if "broken" in sender.sent[-1][0].shown else None
    deliver_due(database, sender, Metrics())
    (after,) = read(database).items
    deliveries = {each.destination_id: each for each in after.deliveries}
    assert (deliveries[works].state, deliveries[works].next_attempt_at) == ("delivered", None)
    assert deliveries[works].delivered_at is not None
    assert (deliveries[broken].state, deliveries[broken].last_error) == ("waiting", "It answered 500.")
    assert deliveries[broken].next_attempt_at is not None


def test_filters_and_pages(client: TestClient, database: Database) -> None:
    """Alerts are filtered by project, run and trouble; pages hold each once, the newest first."""
    for project in ("a", "b"):
        add_destination(database, project=project)
    first, _, _ = (alert(client, database, project=project, name=project) for project in ("a", "b", "a"))
    assert found(read(database)) == ["a is exploding", "b is exploding", "a is exploding"]
    assert found(read(database, project="b")) == ["b is exploding"]
    assert [item.run_ids for item in read(database, run_id=first).items] == [[first]]
    assert found(read(database, trouble="stalled")) == []
    page = read(database, max_results=2)
    assert page.next_page_token is not None
    rest = read(database, max_results=2, page_token=page.next_page_token)
    assert [item.id for item in (*page.items, *rest.items)] == [item.id for item in read(database).items]
    assert rest.next_page_token is None
    with pytest.raises(InvalidRequest, match="page_token: belongs to a list"):
        read(database, project="a", page_token=page.next_page_token)


def test_a_key_reads_the_alerts_of_its_project(client: TestClient, database: Database) -> None:
    """A key of a project reads its alerts alone; a key of one run reads none, because an alert may name other runs."""
    for project in ("mine", "theirs"):
        add_destination(database, project=project)
    run_id = alert(client, database, project="mine", name="m")
    alert(client, database, project="theirs", name="t")
    mine = Principal(name="k", project="mine", scopes=frozenset({"read"}))
    assert found(read(database, mine)) == found(read(database, mine, project="mine")) == ["m is exploding"]
    assert found(read(database, mine, project="theirs")) == []
    of_run = Principal(name="k", project="mine", run_id=run_id, scopes=frozenset({"read"}))
    assert found(read(database, of_run)) == found(read(database, of_run, run_id=run_id)) == []
    assert found(read(database, run_id=new_id())) == []
