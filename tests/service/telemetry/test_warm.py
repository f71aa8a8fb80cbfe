"""Diagnosticians that are kept between requests: never seen, whoever else writes the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient
from tests.service.conftest import ReplaceServices
from tests.support.approximation import approximately

from gradmedic.protocol.ids import new_id
from gradmedic_diagnosis import Diagnostician, LayerFacts
from gradmedic_service.app import create_app
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import DiagnosisSnapshot, DiagnosisState, Run
from gradmedic_service.settings import Settings
from gradmedic_service.telemetry import repository, service
from gradmedic_service.telemetry.chunk_writer import Tail
from gradmedic_service.telemetry.run_cache import WEIGHT_OF_A_RUN, CachedRun, RunCache


def append(client: TestClient, run: str, first: int, count: int = 5, norm: float = 1.0) -> None:
    """Append steps."""
    rows = [[norm, 1.0] for _ in range(count)]
    body = {"steps": list(range(first, first + count)), "loss": [1.0] * count, "statistics": {"grad_norm": rows}}
    response = client.post(f"{run}/steps", json=body)
    assert response.status_code == 200, response.text


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a state was read from bytes."""
    times: list[int] = []
    restore: Callable[..., Diagnostician] = Diagnostician.from_bytes

    def counted(*arguments: Any) -> Diagnostician:
        times.append(1)
        return restore(*arguments)

    monkeypatch.setattr(Diagnostician, "from_bytes", counted)
    return times


def test_a_run_that_nobody_else_writes_is_not_restored(
    client: TestClient, create_run: Any, restored: list[int]
) -> None:
    """Block after block, the state is written but never read."""
    run = create_run(client)
    for block in range(10):
        append(client, run, 5 * block)
    assert restored == []


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("run", {"notes": "n"}),
        ("run", {"muted_detectors": ["plateau"]}),
        ("project", {"muted_detectors": ["plateau"]}),
        ("run", {"training": {"batch_size": 3}}),
    ],
)
def test_a_changed_run_is_restored(
    client: TestClient, create_run: Any, restored: list[int], place: str, change: Any
) -> None:
    """Whatever changes the run or what is heard of it, the state in the database is read again."""
    run = create_run(client)
    append(client, run, 0)
    assert client.patch(run if place == "run" else "/api/v1/projects/tests", json=change).status_code == 200
    append(client, run, 5)
    assert len(restored) == 1


@pytest.mark.slow
def test_another_replica_is_noticed(client: TestClient, create_run: Any, settings: Settings) -> None:
    """Two replicas that take turns conclude what one alone would."""
    run, alone = create_run(client), create_run(client)
    with TestClient(create_app(settings)) as other:
        for block in range(12):
            for path, replica in ((run, (client, other)[block % 3 == 1]), (alone, client)):
                append(replica, path, 5 * block, norm=1.4 ** max(0, block - 6))
    answers = [client.get(f"{path}/diagnosis").json() for path in (run, alone)]
    for answer in answers:
        del answer["run_id"]
    assert answers[0] == answers[1]


def test_a_run_of_the_same_id_is_another(client: TestClient, create_run: Any, restored: list[int]) -> None:
    """A run that was deleted and created again with its id does not inherit what was kept."""
    run_id = str(new_id())
    run = create_run(client, id=run_id)
    append(client, run, 0, norm=1e30)
    assert client.delete(run).status_code == 204
    assert create_run(client, id=run_id) == run
    append(client, run, 0)
    append(client, run, 5)
    assert client.get(f"{run}/diagnosis").json()["findings"] == []


def test_a_failed_append_keeps_nothing(
    client: TestClient, create_run: Any, database: Database, restored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A diagnostician that has read a block which was not stored is never used again."""
    run = create_run(client)
    append(client, run, 0)

    def fail(*_arguments: object) -> bytes:
        raise RuntimeError("no more")

    with monkeypatch.context() as patch:
        patch.setattr("gradmedic_service.telemetry.chunk_writer.encode", fail)
        assert client.post(f"{run}/steps", json={"steps": [5], "loss": ["NaN"]}).status_code == 500
    append(client, run, 5)
    assert len(restored) == 1
    assert client.get(f"{run}/diagnosis").json()["findings"] == []


def test_an_older_state_in_the_database_is_believed(client: TestClient, create_run: Any, database: Database) -> None:
    """A database that was put back to an earlier moment is read, whatever this process remembers."""
    run = create_run(client)
    append(client, run, 0)
    run_id = UUID(run.rpartition("/")[2])
    with database.reading_rows() as connection:
        earlier, stored = repository.read_state(connection, run_id), repository.read_stored_state(connection, run_id)
    assert earlier is not None
    assert stored is not None
    append(client, run, 5, norm=1e30)
    with database.writing() as session:
        session.execute(update(Run).values(last_step=earlier.last_step))
        session.execute(update(DiagnosisState).values(state=stored.state))
    append(client, run, 20)
    assert client.get(f"{run}/diagnosis").json()["findings"] == []


def test_what_is_kept_is_bounded(client: TestClient, create_run: Any, database: Database) -> None:
    """The run that was advanced longest ago makes room."""
    states = []
    for _ in range(3):
        run = create_run(client)
        append(client, run, 0)
        with database.reading_rows() as connection:
            state = repository.read_state(connection, UUID(run.rpartition("/")[2]))
        assert state is not None
        states.append(state)
    warm = RunCache(max_weight=2 * (WEIGHT_OF_A_RUN + 2))
    for state in states:
        doctor = Diagnostician([LayerFacts(name="w"), LayerFacts(name="v")])
        warm.keep(
            CachedRun(
                run=state,
                revision=state.revision,
                last_step=state.last_step or 0,
                diagnostician=doctor,
                steps_since_snapshot=0,
                steps_since_state=0,
                tail=Tail((), None),
            )
        )
    assert [warm.take(state) is not None for state in states] == [False, True, True]
    assert warm.take(states[2]) is None


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, 13])
def test_forgetting_changes_nothing(
    client: TestClient,
    create_run: Any,
    database: Database,
    replace_services: ReplaceServices,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    """The stored state may lie behind: a process that restores it reads on to where one that never forgot stands."""
    monkeypatch.setattr(service, "STATE_STEPS", 20)
    monkeypatch.setattr(service, "SNAPSHOT_STEPS", 50)
    runs = [create_run(client) for _ in range(2)]
    snapshots, answers = [], []
    for run, forgets in zip(runs, (False, True), strict=True):
        for block in range(160 // size):
            if forgets and block % 3:
                replace_services(run_cache=RunCache())
            append(client, run, size * block, size, norm=1.05 ** max(0, size * block - 60))
            if block % 5 == 0:
                answers.append((run, block, client.get(f"{run}/diagnosis").json() | {"run_id": None}))
        answers.append((run, -1, client.get(f"{run}/diagnosis/history").json()))
        with database.reading() as session:
            of_run = select(DiagnosisSnapshot.step).where(DiagnosisSnapshot.run_id == UUID(run.rpartition("/")[2]))
            snapshots.append(session.scalars(of_run.order_by(DiagnosisSnapshot.step)).all())
    for (_, block, kept), (_, same_block, restored) in zip(
        answers[: len(answers) // 2], answers[len(answers) // 2 :], strict=True
    ):
        assert block == same_block
        assert restored == approximately(kept)
    assert snapshots[0] == snapshots[1]
    assert len(snapshots[0]) == 160 // size * size // 50
