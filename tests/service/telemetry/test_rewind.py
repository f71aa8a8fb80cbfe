"""Rewinding a run to a checkpoint, and the snapshots of the diagnosis, on both databases."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient

from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import DiagnosisSnapshot
from gradmedic_service.telemetry import chunk_repository
from gradmedic_service.telemetry.codec import compress
from gradmedic_service.telemetry.diagnosis_state import SNAPSHOT_STEPS


def block(steps: list[int], explodes_at: int = 10**9) -> dict[str, Any]:
    """Return steps with a falling loss and noisy norms, which grow from step `explodes_at` on."""
    random = np.random.default_rng(steps[0])
    growth = [1.5 ** max(0, min(step - explodes_at, 60)) for step in steps]
    rows = [[factor * norm for norm in random.uniform(0.5, 1.5, 2).tolist()] for factor in growth]
    losses = [2.0 * 0.999**step * factor for step, factor in zip(steps, growth, strict=True)]
    return {"steps": steps, "loss": losses, "statistics": {"grad_norm": rows}}


def fill(client: TestClient, run: str, first: int, last: int, size: int = 20, **fields: Any) -> None:
    """Append the steps from `first` to `last`."""
    for start in range(first, last + 1, size):
        body = block(list(range(start, min(start + size, last + 1))), fields.get("explodes_at", 10**9))
        if "generation" in fields:
            body["generation"] = fields["generation"]
        response = client.post(f"{run}/steps", json=body)
        assert response.status_code == 200, response.text


def rewind(client: TestClient, run: str, step: int, generation: int) -> Any:
    """Rewind a run and return the answer."""
    response = client.post(f"{run}/rewind", json={"step": step, "generation": generation})
    assert response.status_code == 200, response.text
    return response.json()


def conclusions_about(client: TestClient, run: str) -> Any:
    """Return the diagnosis, the history and the series of a run, without its id."""
    diagnosis = client.get(f"{run}/diagnosis").json()
    query: dict[str, Any] = {"statistic": ["grad_norm", "loss"], "max_points": 10_000}
    series = client.get(f"{run}/steps", params=query).json()
    return (
        {name: value for name, value in diagnosis.items() if name != "run_id"},
        client.get(f"{run}/diagnosis/history").json(),
        {name: value for name, value in series.items() if name != "run_id"},
    )


@pytest.mark.parametrize("step", [99, 113, 40])
def test_a_rewound_run_equals_one_that_ended_there(client: TestClient, create_run: Any, step: int) -> None:
    """Series, diagnosis and history of a rewound run equal those of a run that ended there, also after new steps."""
    rewound, plain = create_run(client), create_run(client)
    fill(client, rewound, 0, 199, explodes_at=100)
    assert client.get(rewound).json()["verdict"] == "exploding"
    client.patch(rewound, json={"status": "failed"})
    answer = rewind(client, rewound, step, 0)
    fill(client, plain, 0, step, explodes_at=100)
    assert (answer["generation"], answer["last_step"]) == (1, step)
    run = client.get(rewound).json()
    assert (run["generation"], run["last_step"], run["status"]) == (1, step, "running")
    assert (run["verdict"], run["revision"]) == (answer["verdict"], answer["revision"])
    assert conclusions_about(client, rewound) == conclusions_about(client, plain)
    for path in (rewound, plain):
        fill(client, path, step + 1, step + 70)
    assert conclusions_about(client, rewound) == conclusions_about(client, plain)


def test_blocks_of_the_old_generation_are_refused(client: TestClient, create_run: Any) -> None:
    """A block that arrives after its run was rewound is refused and stores nothing."""
    run = create_run(client)
    fill(client, run, 0, 39, generation=0)
    rewind(client, run, 9, 0)
    late = client.post(f"{run}/steps", json={**block([10, 11]), "generation": 0})
    assert (late.status_code, late.json()["error_code"]) == (409, "stale_generation")
    assert client.get(run).json()["last_step"] == 9
    fill(client, run, 10, 19, generation=1)
    assert client.get(run).json()["last_step"] == 19


def test_a_repeated_rewind_changes_nothing(client: TestClient, create_run: Any) -> None:
    """A repeated rewind answers with the current run; another rewind of that generation is refused."""
    run = create_run(client)
    fill(client, run, 0, 39)
    first = rewind(client, run, 9, 0)
    assert rewind(client, run, 9, 0) == first
    fill(client, run, 10, 19)
    again = rewind(client, run, 9, 0)
    assert (again["generation"], again["last_step"]) == (1, 19)
    assert client.get(run).json()["last_step"] == 19
    for body, code in (({"step": 5, "generation": 0}, "stale"), ({"step": 5, "generation": 2}, "unknown")):
        response = client.post(f"{run}/rewind", json=body)
        assert (response.status_code, response.json()["error_code"]) == (409, f"{code}_generation")
    assert rewind(client, run, 9, 1)["generation"] == 2


def test_rewinding_to_before_the_first_step(client: TestClient, create_run: Any) -> None:
    """A run that is rewound to before its first step equals a new run."""
    run, plain = create_run(client), create_run(client)
    fill(client, run, 0, 99, explodes_at=50)
    answer = rewind(client, run, -1, 0)
    assert (answer["last_step"], answer["verdict"], answer["since_step"]) == (None, "undetermined", None)
    assert conclusions_about(client, run)[1:] == conclusions_about(client, plain)[1:]
    for path in (run, plain):
        fill(client, path, 0, 30)
    assert conclusions_about(client, run) == conclusions_about(client, plain)


def test_rewinding_beyond_the_last_step_drops_nothing(client: TestClient, create_run: Any) -> None:
    """A rewind to a step after the last one keeps every step and begins a generation."""
    run = create_run(client)
    fill(client, run, 0, 29)
    before = conclusions_about(client, run)
    answer = rewind(client, run, 1000, 0)
    assert (answer["generation"], answer["last_step"]) == (1, 29)
    assert conclusions_about(client, run) == before


@pytest.mark.parametrize(
    ("fields", "path"), [({"step": -2}, "step"), ({"step": None}, "step"), ({"generation": -1}, "generation")]
)
def test_bad_rewinds_are_named(client: TestClient, create_run: Any, fields: dict[str, Any], path: str) -> None:
    """An invalid field is refused with its name."""
    response = client.post(f"{create_run(client)}/rewind", json={"step": 0, "generation": 0, **fields})
    assert (response.status_code, response.json()["errors"][0]["path"]) == (422, path)


def snapshot_steps(database: Database, run: str) -> list[int]:
    """Return the steps at which a run has a snapshot."""
    with database.reading() as session:
        query = select(DiagnosisSnapshot.step).where(DiagnosisSnapshot.run_id == UUID(run.rpartition("/")[2]))
        return list(session.scalars(query.order_by(DiagnosisSnapshot.step)))


@pytest.mark.parametrize("size", [150, 2500])
def test_a_snapshot_is_stored_after_every_thousand_steps(
    client: TestClient, create_run: Any, database: Database, size: int
) -> None:
    """A snapshot is stored after each thousand steps for blocks of any length; a rewind removes later snapshots."""
    run = create_run(client)
    fill(client, run, 0, 2499, size=size)
    assert snapshot_steps(database, run) == [SNAPSHOT_STEPS - 1, 2 * SNAPSHOT_STEPS - 1]
    rewind(client, run, 1500, 0)
    assert snapshot_steps(database, run) == [SNAPSHOT_STEPS - 1]
    fill(client, run, 1501, 2100, size=size)
    assert snapshot_steps(database, run) == [SNAPSHOT_STEPS - 1, 2 * SNAPSHOT_STEPS - 1]


def test_going_back_replays_at_most_a_thousand_steps(
    client: TestClient, create_run: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A diagnosis at a step starts from the last snapshot, and equals one that reads every step."""
    run = create_run(client)
    fill(client, run, 0, 2999, size=500, explodes_at=1700)
    read: list[int] = []
    read_chunks = chunk_repository.read_chunks

    def counted(session: Any, run_id: UUID, from_step: int, to_step: int) -> Any:
        read.append(to_step - from_step + 1)
        return read_chunks(session, run_id, from_step, to_step)

    monkeypatch.setattr(chunk_repository, "read_chunks", counted)
    steps = [500, 999, 1000, 1710, 2500]
    found = [client.get(f"{run}/diagnosis", params={"at_step": step}).json() for step in steps]
    assert max(read) <= SNAPSHOT_STEPS
    with database.writing() as session:  # a state of an old version of the code
        session.execute(update(DiagnosisSnapshot).values(state=compress(b"of old")))
    replayed = [client.get(f"{run}/diagnosis", params={"at_step": step}).json() for step in steps]
    assert replayed == found
    assert [answer["step"] for answer in found] == steps
    assert {answer["verdict"] for answer in found} == {"healthy", "exploding"}
