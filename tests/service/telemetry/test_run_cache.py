"""The cache of runs between appends changes no answer, also where another replica writes the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, event, func, select, text, update
from starlette.testclient import TestClient
from tests.support.approximation import approximately
from tests.support.service_app import ReplaceServices

from gradmedic.protocol.ids import new_id
from gradmedic.protocol.runs import Layer
from gradmedic_diagnosis import Diagnostician
from gradmedic_service.app import create_app
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import DiagnosisSnapshot, DiagnosisState, Run, TelemetryChunk
from gradmedic_service.services import services_of
from gradmedic_service.settings import Settings
from gradmedic_service.telemetry import diagnosis_state, repository
from gradmedic_service.telemetry.chunk_writer import Tail
from gradmedic_service.telemetry.run_cache import RUN_SIZE, CachedRun, RunCache


def append(client: TestClient, run: str, first: int, count: int = 5, norm: float = 1.0) -> None:
    """Append steps."""
    rows = [[norm, 1.0] for _ in range(count)]
    body = {"steps": list(range(first, first + count)), "loss": [1.0] * count, "statistics": {"grad_norm": rows}}
    response = client.post(f"{run}/steps", json=body)
    assert response.status_code == 200, response.text


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect one entry for each state that is restored from bytes."""
    times: list[int] = []
    restore: Callable[..., Diagnostician] = Diagnostician.from_bytes

    def counted(*arguments: Any, **facts: Any) -> Diagnostician:
        times.append(1)
        return restore(*arguments, **facts)

    monkeypatch.setattr(Diagnostician, "from_bytes", counted)
    return times


def test_a_cached_run_is_not_restored(client: TestClient, create_run: Any, restored: list[int]) -> None:
    """While one process appends to a run, it never restores the diagnosis state."""
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
    """After a change of the run or of its project, the next append restores the state from the database."""
    run = create_run(client)
    append(client, run, 0)
    assert client.patch(run if place == "run" else "/api/v1/projects/tests", json=change).status_code == 200
    append(client, run, 5)
    assert len(restored) == 1


@pytest.mark.slow
def test_replicas_in_turns_reach_the_same_diagnosis(client: TestClient, create_run: Any, settings: Settings) -> None:
    """Two replicas that append in turns reach the same diagnosis as one replica alone."""
    run, alone = create_run(client), create_run(client)
    with TestClient(create_app(settings)) as other:
        for block in range(12):
            for path, replica in ((run, (client, other)[block % 3 == 1]), (alone, client)):
                append(replica, path, 5 * block, norm=1.4 ** max(0, block - 6))
    answers = [client.get(f"{path}/diagnosis").json() for path in (run, alone)]
    for answer in answers:
        del answer["run_id"]
    assert answers[0] == answers[1]


def test_a_new_run_with_the_id_of_a_deleted_one_starts_anew(
    client: TestClient, create_run: Any, restored: list[int]
) -> None:
    """A run that is created with the id of a deleted run does not use its cached diagnostician."""
    run_id = str(new_id())
    run = create_run(client, id=run_id)
    append(client, run, 0, norm=1e30)
    assert client.delete(run).status_code == 204
    assert create_run(client, id=run_id) == run
    append(client, run, 0)
    append(client, run, 5)
    assert client.get(f"{run}/diagnosis").json()["findings"] == []


def test_a_failed_append_is_not_cached(
    client: TestClient, create_run: Any, database: Database, restored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A diagnostician that has read a block which was not stored is not used again."""
    run = create_run(client)
    append(client, run, 0)

    def fail(*_arguments: object) -> bytes:
        raise RuntimeError("no more")

    with monkeypatch.context() as patch:
        patch.setattr("gradmedic_service.telemetry.chunk_writer.encode_chunk", fail)
        assert client.post(f"{run}/steps", json={"steps": [5], "loss": ["NaN"]}).status_code == 500
    append(client, run, 5)
    assert len(restored) == 1
    assert client.get(f"{run}/diagnosis").json()["findings"] == []


def test_a_restored_database_wins_over_the_cache(client: TestClient, create_run: Any, database: Database) -> None:
    """After the database was restored to an earlier moment, the cached run is not used."""
    run = create_run(client)
    append(client, run, 0)
    run_id = UUID(run.rpartition("/")[2])
    with database.reading_rows() as connection:
        earlier, stored = repository.read_run(connection, run_id), repository.read_diagnosis(connection, run_id)
    assert earlier is not None
    assert stored is not None
    append(client, run, 5, norm=1e30)
    with database.writing() as session:
        session.execute(update(Run).values(last_step=earlier.last_step))
        session.execute(update(DiagnosisState).values(state=stored.state))
    append(client, run, 20)
    assert client.get(f"{run}/diagnosis").json()["findings"] == []


@pytest.fixture
def reads(database: Database) -> list[str]:
    """Collect the statements by which an append reads a run."""
    found: list[str] = []

    def collect(*arguments: Any) -> None:
        if arguments[2].startswith("SELECT") and "muted_by_project" in arguments[2]:
            found.append(arguments[2])

    event.listen(database.engine, "before_cursor_execute", collect)
    return found


def test_the_cached_row_is_the_stored_one(client: TestClient, create_run: Any, database: Database) -> None:
    """A run in the cache has the very row that the database has, whatever an append changes."""
    run = create_run(client)
    run_id = UUID(run.rpartition("/")[2])
    run_cache = services_of(client.app).run_cache  # type: ignore[arg-type]
    bodies = [
        {"steps": [0], "loss": [1.0]},
        {"steps": [1, 2], "loss": [0.5, None], "statistics": {"grad_norm": [[1.0, 1.0]]}, "sampled": [True, False]},
        {"steps": [3], "metrics": {"m": [0.25], "n": ["NaN"]}, "time": [1.7e9]},
        {"steps": list(range(10, 60)), "loss": ["NaN"] * 50, "statistics": {"grad_norm": [["NaN", 1.0]] * 50}},
    ]
    for body in bodies:
        assert client.post(f"{run}/steps", json=body).status_code == 200
        cached = run_cache.pop(run_id)
        assert cached is not None
        with database.reading_rows() as connection:
            assert repository.read_run(connection, run_id) == cached.row
        run_cache.add(cached)


def test_only_a_changed_run_is_read(client: TestClient, create_run: Any, database: Database, reads: list[str]) -> None:
    """An append that goes on where the process left the run reads nothing; after a change, it reads the run again."""
    run = create_run(client)
    append(client, run, 0)
    assert len(reads) == 1
    append(client, run, 5)
    append(client, run, 3, count=20)  # five steps are known
    assert len(reads) == 1
    assert client.patch(run, json={"notes": "n"}).status_code == 200
    append(client, run, 30)
    assert len(reads) == 2


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"stop_after": -1}, {"accepted": 0, "ignored": 5, "stop": True}),
        ({"stop_after": 7}, {"accepted": 3, "ignored": 2, "stop": True}),
        ({"status": "failed"}, {"accepted": 5, "stop": False}),
        ({"generation": 1, "revision": 3}, {"accepted": 5, "generation": 1}),
        ({"last_step": 6}, {"accepted": 3, "ignored": 2}),
    ],
)
def test_a_change_without_the_process_is_seen(
    client: TestClient, create_run: Any, database: Database, change: dict[str, Any], answer: dict[str, Any]
) -> None:
    """What another process has changed in the row counts for the next append, also where the revision stays."""
    run = create_run(client)
    append(client, run, 0)
    with database.writing() as session:
        session.execute(update(Run).values(**change))
    body = {"steps": list(range(5, 10)), "loss": [1.0] * 5}
    assert answer.items() <= client.post(f"{run}/steps", json=body).json().items()
    assert client.get(run).json()["status"] == change.get("status", "running")


@pytest.mark.parametrize("stored", ['["plateau", "nonfinite"]', '["plateau","nonfinite"]', "[ ]"])
def test_muted_detectors_in_any_form(
    client: TestClient, create_run: Any, database: Database, restored: list[int], stored: str
) -> None:
    """A run of a project stays in the cache, however another program has written the project's JSON."""
    run = create_run(client)
    assert client.patch("/api/v1/projects/tests", json={"muted_detectors": ["plateau"]}).status_code == 200
    json_type = "json" if database.engine.dialect.name == "postgresql" else "text"
    with database.writing() as session:
        session.execute(text(f"UPDATE projects SET muted_detectors = CAST(:stored AS {json_type})"), {"stored": stored})  # noqa: S608 (our own text)
    for block in range(4):
        append(client, run, 5 * block)
    assert restored == []


def test_a_deleted_run_is_not_found(client: TestClient, create_run: Any, database: Database) -> None:
    """A run in the cache that another process has deleted is not found, and nothing of it is stored."""
    run = create_run(client)
    append(client, run, 0)
    with database.writing() as session:
        session.execute(delete(Run))
    response = client.post(f"{run}/steps", json={"steps": [5], "loss": [1.0]})
    assert (response.status_code, response.json()["error_code"]) == (404, "run_not_found")
    with database.reading_rows() as connection:
        assert connection.scalar(select(func.count()).select_from(TelemetryChunk)) == 0


def test_refused_and_repeated_blocks_keep_the_cached_run(
    client: TestClient, create_run: Any, restored: list[int]
) -> None:
    """A block that does not fit, or that is sent again, does not cost the next append a restoration."""
    run = create_run(client)
    append(client, run, 0)
    refused = client.post(f"{run}/steps", json={"steps": [5], "statistics": {"grad_norm": [[1.0]]}})
    assert (refused.status_code, refused.json()["error_code"]) == (422, "invalid_request")
    append(client, run, 0)
    unknown = client.post(f"{run}/steps", json={"steps": [5], "loss": [1.0], "generation": 1})
    assert unknown.status_code == 409
    append(client, run, 5)
    assert restored == []


def test_the_cache_is_bounded(client: TestClient, create_run: Any, database: Database) -> None:
    """A full cache removes the run that was appended to longest ago."""
    states = []
    for _ in range(3):
        run = create_run(client)
        append(client, run, 0)
        with database.reading_rows() as connection:
            state = repository.read_run(connection, UUID(run.rpartition("/")[2]))
        assert state is not None
        states.append(state)
    run_cache = RunCache(max_size=2 * (RUN_SIZE + 2))
    for state in states:
        diagnostician = Diagnostician([Layer(name="w"), Layer(name="v")])
        run_cache.add(
            CachedRun(
                row=state,
                diagnostician=diagnostician,
                steps_since_snapshot=0,
                steps_since_state=0,
                tail=Tail((), None),
            )
        )
    assert [run_cache.pop(state.id) is not None for state in states] == [False, True, True]
    assert run_cache.pop(states[2].id) is None


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, 13])
def test_restoring_an_older_state_changes_nothing(
    client: TestClient,
    create_run: Any,
    database: Database,
    replace_services: ReplaceServices,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    """Restoring a state and reading the steps after it gives the diagnosis of a process that cached the run."""
    monkeypatch.setattr(diagnosis_state, "STATE_STEPS", 20)
    monkeypatch.setattr(diagnosis_state, "SNAPSHOT_STEPS", 50)
    runs = [create_run(client) for _ in range(2)]
    snapshots, answers = [], []
    for run, empties_cache in zip(runs, (False, True), strict=True):
        for block in range(160 // size):
            if empties_cache and block % 3:
                replace_services(run_cache=RunCache())
            append(client, run, size * block, size, norm=1.05 ** max(0, size * block - 60))
            if block % 5 == 0:
                answers.append((run, block, client.get(f"{run}/diagnosis").json() | {"run_id": None}))
        answers.append((run, -1, client.get(f"{run}/diagnosis/history").json()))
        with database.reading() as session:
            of_run = select(DiagnosisSnapshot.step).where(DiagnosisSnapshot.run_id == UUID(run.rpartition("/")[2]))
            snapshots.append(session.scalars(of_run.order_by(DiagnosisSnapshot.step)).all())
    for (_, block, cached), (_, same_block, restored) in zip(
        answers[: len(answers) // 2], answers[len(answers) // 2 :], strict=True
    ):
        assert block == same_block
        assert restored == approximately(cached)
    assert snapshots[0] == snapshots[1]
    assert len(snapshots[0]) == 160 // size * size // 50
