"""Deliveries are sent one at a time, again after a failure, and given up after a day."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import update
from tests.support.alerts import KeptMessages, add_destination, let_time_pass, read_rows

from gradmedic.protocol.ids import new_id
from gradmedic_service.alerts import retention
from gradmedic_service.alerts.delivering import GIVE_UP_SECONDS, LEASE_SECONDS, MAX_PAUSE_SECONDS, deliver_due
from gradmedic_service.alerts.messages import DeliveryFailed, Message
from gradmedic_service.alerts.repository import first_id_at, remove_destination
from gradmedic_service.alerts.retention import remove_old_alerts
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import Alert, AlertDelivery, AlertDestination
from gradmedic_service.http.metrics import Metrics
from gradmedic_service.settings import Settings

RUN = new_id()


@pytest.fixture
def other_replica(settings: Settings) -> Iterator[Database]:
    """The same database, as another process uses it."""
    other = Database(settings)
    yield other
    other.close()


def add_alert(database: Database, *destinations: UUID, title: str = "r is exploding", age: float = 1.0) -> None:
    """Store an alert that was made some seconds ago, with a delivery to each destination."""
    now = datetime.now(UTC) - timedelta(seconds=age)
    alert = Alert(
        id=UUID(int=first_id_at(now).int | new_id().int % 2**80), project="tests", trouble="critical",
        run_ids=[str(RUN)], run_count=1, title=title, sentence="Gradients grow.", advice="clip_grad_norm(1.0): why",
        path=f"/runs/{RUN}", created_at=now,
    )  # fmt: skip
    with database.writing() as session:
        session.add(alert)
        session.flush()
        for destination in destinations:
            session.add(
                AlertDelivery(
                    id=new_id(), alert_id=alert.id, destination_id=destination, state="waiting", attempts=0,
                    next_attempt_at=now, lease_expires_at=None, last_error=None, delivered_at=None, created_at=now,
                )
            )  # fmt: skip


def deliver(database: Database, sender: KeptMessages, metrics: Metrics | None = None) -> int:
    """Send what is due, and return the number of attempts."""
    return deliver_due(database, sender, metrics or Metrics())


def states(database: Database) -> list[tuple[str, int]]:
    """Return state and attempts of all deliveries, the oldest first."""
    return [(delivery.state, delivery.attempts) for delivery in read_rows(database, AlertDelivery)]


def destination(database: Database) -> AlertDestination:
    """Return the only destination."""
    (found,) = read_rows(database, AlertDestination)
    assert isinstance(found, AlertDestination)
    return found


def answer_500(_: Message) -> DeliveryFailed:
    """Fail as a destination with an error of its own."""
    return DeliveryFailed("It answered 500: out of order.")


def test_a_message_has_all_of_its_alert(database: Database) -> None:
    """A message carries the alert, the link under the public URL, and the id of its delivery."""
    target = add_destination(database)
    add_alert(database, target)
    sender, metrics = KeptMessages(), Metrics()
    assert deliver(database, sender, metrics) == 1
    assert deliver(database, sender, metrics) == 0
    ((address, message),) = sender.sent
    (delivery,) = read_rows(database, AlertDelivery)
    assert address.parts["url"] == "https://hook.example.com"
    assert (message.id, message.title, message.sentence) == (delivery.id, "r is exploding", "Gradients grow.")
    assert (message.advice, message.project, message.trouble) == ("clip_grad_norm(1.0): why", "tests", "critical")
    assert (message.run_ids, message.is_test) == ([RUN], False)
    assert message.url == f"https://gradmedic.example.com/runs/{RUN}"
    assert (delivery.state, delivery.attempts, delivery.last_error) == ("delivered", 1, None)
    assert delivery.delivered_at is not None
    assert destination(database).last_delivered_at == delivery.delivered_at
    assert b'gradmedic_alert_deliveries_total{result="delivered"} 1.0' in metrics.render(database)


def test_a_destination_that_fails_for_a_day_is_given_up(database: Database) -> None:
    """A destination that answers 500 for a day gets a bounded number of attempts; then the delivery is dead."""
    add_alert(database, add_destination(database))
    sender = KeptMessages(answer_500)
    hours = 0
    while states(database)[0][0] != "dead":
        assert hours < 100
        deliver(database, sender)
        let_time_pass(database, MAX_PAUSE_SECONDS * 1.3)
        hours += 1
    assert hours * MAX_PAUSE_SECONDS * 1.3 <= GIVE_UP_SECONDS + 2 * MAX_PAUSE_SECONDS * 1.3
    assert len(sender.sent) < 40
    assert len({message.id for _, message in sender.sent}) == 1
    (delivery,) = read_rows(database, AlertDelivery)
    assert delivery.last_error == destination(database).last_error == "It answered 500: out of order."
    assert deliver(database, sender) == 0


def test_pauses_grow_and_are_bounded(database: Database) -> None:
    """Between two attempts the pause doubles up to an hour, and varies by a quarter."""
    add_alert(database, add_destination(database))
    sender = KeptMessages(answer_500)
    pauses = []
    for _ in range(12):
        before = datetime.now(UTC)
        assert deliver(database, sender) == 1
        paused_until = destination(database).paused_until
        assert paused_until is not None
        pauses.append((paused_until - before).total_seconds())
        let_time_pass(database, pauses[-1] + 1)
    expected = [min(10.0 * 2**n, MAX_PAUSE_SECONDS) for n in range(12)]
    assert all(0.7 * wanted < pause < 1.3 * wanted + 60 for pause, wanted in zip(pauses, expected, strict=True))


def test_a_destination_that_is_down_costs_one_attempt_per_pause(database: Database) -> None:
    """Many waiting messages do not each try a destination that is down; all arrive when it is up again."""
    target, other = (add_destination(database, name=name) for name in ("down", "up"))
    for number in range(20):
        add_alert(database, target, other, title=str(number))
    sender = KeptMessages(lambda message: answer_500(message) if is_down else None)
    is_down = True
    sender.fail = lambda message: (
        answer_500(message) if sender.sent[-1][0].shown == "https://down.example.com" else None
    )
    deliver(database, sender)
    assert [address.shown for address, _ in sender.sent].count("https://down.example.com") == 1
    assert [address.shown for address, _ in sender.sent].count("https://up.example.com") == 20
    let_time_pass(database, 30)
    sender.fail = lambda _: None
    assert deliver(database, sender) == 20
    assert {state for state, _ in states(database)} == {"delivered"}


def test_destinations_that_work_come_first(database: Database) -> None:
    """A destination that has failed is tried after those that work, so that one that hangs delays itself."""
    down, up = (add_destination(database, name=name) for name in ("down", "up"))
    add_alert(database, down)
    deliver(database, KeptMessages(answer_500))
    let_time_pass(database, 30)
    add_alert(database, down, up)
    sender = KeptMessages()
    deliver(database, sender)
    assert [address.shown.split("/")[2].split(".")[0] for address, _ in sender.sent] == ["up", "down", "down"]


def test_one_message_that_is_refused_does_not_hold_up_the_others(database: Database) -> None:
    """A message that a destination always answers with 500 waits behind the others."""
    target = add_destination(database)
    for title in ("poison", "second", "third"):
        add_alert(database, target, title=title)
    sender = KeptMessages(lambda message: answer_500(message) if message.title == "poison" else None)
    for _ in range(3):
        deliver(database, sender)
        let_time_pass(database, 120)
    assert sender.titles[:3] == ["poison", "second", "third"]
    assert [state for state, _ in states(database)] == ["waiting", "delivered", "delivered"]


def test_a_permanent_failure_is_not_repeated(database: Database) -> None:
    """A delivery that cannot succeed is dead at once, with the reason, and does not pause its destination."""
    target = add_destination(database)
    add_alert(database, target)
    sender, metrics = KeptMessages(lambda _: DeliveryFailed("It answered 410: gone.", is_permanent=True)), Metrics()
    deliver(database, sender, metrics)
    assert states(database) == [("dead", 1)]
    assert destination(database).last_error == "It answered 410: gone."
    assert b'gradmedic_alert_deliveries_total{result="dead"} 1.0' in metrics.render(database)
    sender.fail = lambda _: None
    add_alert(database, target)
    deliver(database, sender)
    assert states(database)[1] == ("delivered", 1)
    assert destination(database).last_error is None


def test_a_destination_that_asks_for_time_gets_it(database: Database) -> None:
    """A pause is as long as the destination asks for; an answer with an absurd wish counts as a day."""
    add_alert(database, add_destination(database))
    sender = KeptMessages(lambda _: DeliveryFailed("It answered 429.", retry_after=600.0))
    deliver(database, sender)
    let_time_pass(database, 590)
    assert deliver(database, sender) == 0
    let_time_pass(database, 11)
    sender.fail = lambda _: DeliveryFailed("It answered 429.", retry_after=1e12)
    assert deliver(database, sender) == 1
    assert states(database) == [("dead", 2)]


def test_a_bug_in_a_sender_is_a_failure(database: Database) -> None:
    """An unexpected error is stored without its text, which may hold a secret, and the message is tried again."""
    add_alert(database, add_destination(database))

    def break_down(_: Message) -> DeliveryFailed | None:
        raise ValueError("https://hook.example.com/secret")

    deliver(database, KeptMessages(break_down))
    (delivery,) = read_rows(database, AlertDelivery)
    assert (delivery.state, delivery.last_error) == ("waiting", "The service failed to send it (ValueError).")


def test_a_delivery_whose_process_ended_is_sent_again_with_its_id(database: Database) -> None:
    """After the end of the lease another process sends the message, with the same id."""
    add_alert(database, add_destination(database))

    def end(_: Message) -> DeliveryFailed | None:
        raise KeyboardInterrupt

    killed, sender = KeptMessages(end), KeptMessages()
    with pytest.raises(KeyboardInterrupt):
        deliver(database, killed)
    assert states(database) == [("sending", 1)]
    assert deliver(database, sender) == 0
    let_time_pass(database, LEASE_SECONDS)
    assert deliver(database, sender) == 1
    assert states(database) == [("delivered", 2)]
    assert killed.sent[0][1].id == sender.sent[0][1].id


def test_the_result_of_an_old_attempt_does_not_count(database: Database) -> None:
    """A process that was slower than its lease does not overwrite the result of the next attempt."""
    add_alert(database, add_destination(database))
    sender = KeptMessages()

    def be_late(_: Message) -> DeliveryFailed:
        let_time_pass(database, LEASE_SECONDS)
        assert deliver(database, sender) == 1
        return DeliveryFailed("Too late.", is_permanent=True)

    deliver(database, KeptMessages(be_late))
    assert states(database) == [("delivered", 2)]
    assert destination(database).last_error is None


def test_replicas_deliver_each_message_once(database: Database, other_replica: Database) -> None:
    """Two replicas with two threads each send every message exactly once."""
    targets = [add_destination(database, name=f"d{number}") for number in range(3)]
    for _ in range(10):
        add_alert(database, *targets)
    sender, start = KeptMessages(), threading.Barrier(4)

    def work(replica: Database) -> None:
        start.wait()
        deliver(replica, sender)

    threads = [threading.Thread(target=work, args=(each,)) for each in (database, other_replica) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deliver(database, sender)
    ids = [message.id for _, message in sender.sent]
    assert (len(ids), len(set(ids))) == (30, 30)
    assert set(states(database)) == {("delivered", 1)}


def test_a_destination_that_is_muted_later_gets_nothing(database: Database) -> None:
    """What waits for a destination when it is muted becomes muted, and the others are delivered."""
    target, other = (add_destination(database, name=name) for name in ("muted", "other"))
    add_alert(database, target, other)
    with database.writing() as session:
        until = datetime.now(UTC) + timedelta(hours=1)
        session.execute(update(AlertDestination).where(AlertDestination.id == target).values(muted_until=until))
    sender = KeptMessages()
    deliver(database, sender)
    assert {row.destination_id: row.state for row in read_rows(database, AlertDelivery)} == {
        target: "muted",
        other: "delivered",
    }
    assert [address.shown for address, _ in sender.sent] == ["https://other.example.com"]


def test_a_destination_that_is_removed_while_it_is_sent(database: Database) -> None:
    """Removing a destination during an attempt removes its deliveries; the attempt's result is dropped."""
    target = add_destination(database)
    add_alert(database, target)

    def remove(_: Message) -> DeliveryFailed | None:
        with database.writing() as session:
            remove_destination(session, target)
        return None

    assert deliver(database, KeptMessages(remove)) == 1
    assert states(database) == []


def test_an_ending_process_begins_no_attempt(database: Database) -> None:
    """Once the process is to end, what is due stays for others."""
    target = add_destination(database)
    add_alert(database, target)
    add_alert(database, target)
    is_ending = threading.Event()

    def end(_: Message) -> None:
        is_ending.set()

    sender = KeptMessages(end)
    assert deliver_due(database, sender, Metrics(), is_ending) == 1
    assert sorted(states(database)) == [("delivered", 1), ("waiting", 0)]


def test_old_alerts_are_removed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alerts older than a month go with their deliveries, and a project keeps a limited number of the others."""
    monkeypatch.setattr(retention, "MAX_ALERTS", 3)
    monkeypatch.setattr(retention, "BATCH", 2)
    target = add_destination(database)
    for age in (31, 32, 33):
        add_alert(database, target, title="old", age=age * 86_400.0)
    for number in range(5):
        add_alert(database, target, title=str(number), age=100.0 - number)
    assert remove_old_alerts(database) == 5
    assert [alert.title for alert in read_rows(database, Alert)] == ["2", "3", "4"]
    assert len(states(database)) == 3
    assert remove_old_alerts(database) == 0


def test_deliveries_that_wait_behind_others_are_given_up_too(database: Database) -> None:
    """A delivery that failed a day ago is dead, also if its destination was never free for another attempt."""
    target = add_destination(database)
    for title in ("first", "second"):
        add_alert(database, target, title=title)
    sender = KeptMessages(answer_500)
    deliver(database, sender)
    let_time_pass(database, GIVE_UP_SECONDS + 1)
    remove_old_alerts(database)
    assert states(database) == [("dead", 1), ("waiting", 0)]
    deliver(database, sender)
    assert states(database) == [("dead", 1), ("dead", 1)]
