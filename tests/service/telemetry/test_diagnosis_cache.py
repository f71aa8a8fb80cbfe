"""Diagnoses that are read again are computed once, and everything that changes a diagnosis is seen at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from pydantic import TypeAdapter
from starlette.testclient import TestClient

from gradmedic.protocol.diagnosis import Diagnosis
from gradmedic.protocol.encoding import encode_json
from gradmedic_diagnosis import Diagnostician
from gradmedic_service.database.engine import Database
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.telemetry import rediagnosis, repository
from gradmedic_service.telemetry.diagnosis_cache import DIAGNOSIS_SIZE, DiagnosisCache


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Diagnostician]:
    """The diagnosticians that were asked for a diagnosis, in the order of the questions."""
    asked: list[Diagnostician] = []
    diagnose = Diagnostician.diagnose

    def count(diagnostician: Diagnostician) -> Any:
        asked.append(diagnostician)
        return diagnose(diagnostician)

    monkeypatch.setattr(Diagnostician, "diagnose", count)
    return asked


def append(client: TestClient, run: str, first: int, count: int = 50, norm: float = 1.0) -> None:
    """Append steps whose gradients have one norm, and whose loss is twice that."""
    steps = list(range(first, first + count))
    body = {"steps": steps, "loss": [2 * norm] * count, "statistics": {"grad_norm": [[norm, norm]] * count}}
    assert client.post(f"{run}/steps", json=body).status_code == 200


def read(client: TestClient, run: str, **query: Any) -> Any:
    """Read the diagnosis of a run."""
    response = client.get(f"{run}/diagnosis", params=query)
    assert response.status_code == 200
    return response.json()


def test_a_second_reading_computes_nothing(client: TestClient, create_run: Any, computed: list[Diagnostician]) -> None:
    """A run that has not changed is diagnosed once, also if its last step is named; an earlier step is not cached."""
    run = create_run(client)
    append(client, run, 0)
    first = read(client, run)
    count = len(computed)
    assert read(client, run) == first
    assert read(client, run, at_step=49) == first
    assert len(computed) == count
    assert read(client, run, at_step=20)["step"] == 20
    assert len(computed) == count + 1
    assert read(client, run) == first


def rewind(client: TestClient, _database: Database, run: str) -> None:
    """Go back to a step before the explosion."""
    assert client.post(f"{run}/rewind", json={"step": 30, "generation": 0}).status_code == 200


def append_more(client: TestClient, _database: Database, run: str) -> None:
    """Append further steps."""
    append(client, run, 100, norm=1e30)


def mute(client: TestClient, _database: Database, run: str) -> None:
    """Mute a detector of the run."""
    found = [finding["detector"] for finding in read(client, run)["findings"]]
    assert client.patch(run, json={"muted_detectors": found}).status_code == 200


def mute_for_project(client: TestClient, _database: Database, run: str) -> None:
    """Mute a detector of the run's project."""
    found = [finding["detector"] for finding in read(client, run)["findings"]]
    project = client.get(run).json()["project"]
    response = client.patch(f"/api/v1/projects/{project}", json={"muted_detectors": found})
    assert response.status_code == 200


def change_training(client: TestClient, _database: Database, run: str) -> None:
    """Name the optimizer: some causes and remedies do not fit it."""
    facts = {"training": {"optimizers": [{"name": "Adam", "learning_rate": 0.1}]}}
    assert client.patch(run, json=facts).status_code == 200


@pytest.mark.parametrize("change", [rewind, append_more, mute, mute_for_project, change_training])
def test_every_change_is_seen_at_once(
    change: Callable[[TestClient, Database, str], None],
    client: TestClient,
    create_run: Any,
    database: Database,
    replace_services: Any,
) -> None:
    """After a change, the cached diagnosis is not used, and the answer is that of a process with an empty cache."""
    run = create_run(client)
    append(client, run, 0)
    append(client, run, 50, norm=1e25)
    before = read(client, run)
    assert before["findings"]
    change(client, database, run)
    after = read(client, run)
    replace_services(diagnosis_cache=DiagnosisCache())
    assert read(client, run) == after
    assert after != before


def test_a_rediagnosed_run_is_read_anew(
    client: TestClient, create_run: Any, database: Database, computed: list[Diagnostician]
) -> None:
    """A diagnosis that was built anew replaces the cached one."""
    run = create_run(client)
    append(client, run, 0)
    read(client, run)
    rediagnosis.rediagnose(database, FactsCache(), UUID(run.rpartition("/")[2]))
    count = len(computed)
    read(client, run)
    assert len(computed) == count + 1


def test_the_cache_is_bounded(client: TestClient, create_run: Any, database: Database) -> None:
    """A full cache loses the diagnosis that was read longest ago."""
    versions, diagnoses = [], []
    for _ in range(3):
        run = create_run(client)
        append(client, run, 0)
        diagnoses.append(TypeAdapter(Diagnosis).validate_python(read(client, run)))
        with database.reading_rows() as connection:
            version = repository.read_version(connection, diagnoses[-1].run_id)
        assert version is not None
        versions.append(version)
    layers = 2
    cache = DiagnosisCache(max_size=2 * (DIAGNOSIS_SIZE + layers))
    for version, diagnosis in zip(versions, diagnoses, strict=True):
        cache.add(version, diagnosis, layers)
    found_again = [
        cache.find(diagnosis.run_id, version) is not None
        for version, diagnosis in zip(versions, diagnoses, strict=True)
    ]
    assert found_again == [False, True, True]


def test_a_second_reading_encodes_nothing(client: TestClient, create_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON of a diagnosis is made once; of a run that has changed it is made anew."""
    made: list[bytes] = []

    def count(value: Any) -> bytes:
        made.append(encode_json(value))
        return made[-1]

    monkeypatch.setattr("gradmedic_service.telemetry.diagnosis_cache.encode_json", count)
    run = create_run(client)
    append(client, run, 0)
    first = client.get(f"{run}/diagnosis").content
    assert client.get(f"{run}/diagnosis").content == first == made[0]
    assert len(made) == 1
    append(client, run, 50)
    assert client.get(f"{run}/diagnosis").content == made[1] != first
