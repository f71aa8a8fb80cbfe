"""Appending steps, exactly once, on both databases."""

from __future__ import annotations

import gzip
import itertools
import math
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, func, select, update
from starlette.testclient import TestClient
from tests.support.locks import is_transaction_waiting

from gradmedic.protocol.service import JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE
from gradmedic_service.access.principal import OPERATOR
from gradmedic_service.app import create_app
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import Run, TelemetryChunk
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.settings import Settings
from gradmedic_service.telemetry.appending import append
from gradmedic_service.telemetry.chunk_reading import read_chunks
from gradmedic_service.telemetry.chunk_writer import FULL_CHUNK_STEPS
from gradmedic_service.telemetry.decoding import decode_block
from gradmedic_service.telemetry.run_cache import RunCache

BLOCK = {"steps": [0, 1], "loss": [1.0, 0.5], "statistics": {"grad_norm": [[1.0, 2.0], [3.0, None]]}}


def steps_of(first: int, count: int) -> dict[str, Any]:
    """Return a block of one statistic and two layers whose values follow from their step."""
    steps = list(range(first, first + count))
    return {
        "steps": steps,
        "loss": [step * 1.0 for step in steps],
        "statistics": {"grad_norm": [[s, s + 0.5] for s in steps]},
    }


def series(client: TestClient, run: str, *names: str, **parameters: Any) -> Any:
    """Return series at full resolution."""
    response = client.get(f"{run}/steps", params={"statistic": names, "max_points": 10_000, **parameters})
    assert response.status_code == 200, response.text
    return response.json()


def chunk_lengths(database: Database, run: str) -> list[int]:
    """Return the number of steps of each chunk of a run, in order."""
    with database.reading() as session:
        chunks = select(TelemetryChunk.step_count).where(TelemetryChunk.run_id == UUID(run.rpartition("/")[2]))
        return list(session.scalars(chunks.order_by(TelemetryChunk.first_step)))


def test_append_and_read_back(client: TestClient, create_run: Any) -> None:
    """Appended steps are acknowledged and read back unchanged, absent layers included."""
    run = create_run(client)
    response = client.post(f"{run}/steps", json=BLOCK)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert (answer["accepted"], answer["ignored"], answer["last_step"]) == (2, 0, 1)
    assert (answer["generation"], answer["revision"], answer["stop"]) == (0, 2, False)
    stored = client.get(run).json()
    assert (stored["last_step"], stored["revision"]) == (1, 2)
    answer = series(client, run, "grad_norm", "loss")
    assert answer["first_step"] == answer["last_step"] == [0, 1]
    by_layer = {(item["statistic"], item["layer"]): item for item in answer["series"]}
    assert by_layer["grad_norm", "layer0"]["mean"] == [1.0, 3.0]
    assert by_layer["grad_norm", "layer1"]["mean"] == [2.0, None]
    assert by_layer["grad_norm", "layer1"]["count"] == [1, 0]
    assert by_layer["loss", None]["mean"] == [1.0, 0.5]


def test_resending_is_ignored(client: TestClient, create_run: Any) -> None:
    """A block that is sent again is ignored and changes nothing; of an overlapping block only new steps are stored."""
    run = create_run(client)
    client.post(f"{run}/steps", json=steps_of(0, 5))
    before = client.get(run).json()
    again = client.post(f"{run}/steps", json=steps_of(0, 5)).json()
    assert (again["accepted"], again["ignored"], again["revision"]) == (0, 5, before["revision"])
    assert client.get(run).json() == before
    overlapping = client.post(f"{run}/steps", json=steps_of(3, 5)).json()
    assert (overlapping["accepted"], overlapping["ignored"], overlapping["last_step"]) == (3, 2, 7)
    assert series(client, run, "loss")["series"][0]["mean"] == [float(step) for step in range(8)]


def test_both_forms_and_encodings_store_the_same(client: TestClient, create_run: Any) -> None:
    """JSON and msgpack store the same series, in plain, gzip and zstd encoding."""
    values = np.array([[1, 7], [np.nan, np.inf], [0, 3]], np.float32)
    as_json = msgspec.json.encode(
        {
            "steps": [0, 1, 2],
            "loss": [1, "NaN", None],
            "statistics": {"grad_norm": [[1, 7], ["NaN", "Infinity"], [None, 3]]},
        }
    )
    as_msgpack = msgspec.msgpack.encode(
        {
            "steps": [0, 1, 2],
            "loss": [1.0, math.nan, None],
            "statistics": {"grad_norm": values.tobytes()},
            "present": np.packbits([1, 1, 1, 1, 0, 1], bitorder="little").tobytes(),
        }
    )
    encodings: dict[str, Callable[[bytes], bytes]] = {"": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}
    answers = []
    for (media_type, body), (encoding, pack) in itertools.product(
        [(JSON_MEDIA_TYPE, as_json), (MSGPACK_MEDIA_TYPE, as_msgpack)], encodings.items()
    ):
        run = create_run(client)
        headers = {"Content-Type": media_type} | ({"Content-Encoding": encoding} if encoding else {})
        response = client.post(f"{run}/steps", content=pack(body), headers=headers)
        assert response.status_code == 200, response.text
        answers.append(series(client, run, "grad_norm", "loss")["series"])
    assert all(answer == answers[0] for answer in answers)


def test_bad_blocks_change_nothing(client: TestClient, create_run: Any) -> None:
    """A block that does not fit the run is refused with the name of the field; the run and its steps do not change."""
    run = create_run(client)
    client.post(f"{run}/steps", json=BLOCK)
    before = client.get(run).json()
    for content, path in (
        ({"steps": [2], "statistics": {"grad_norm": [[1]]}}, "statistics.grad_norm"),
        ({"steps": [2], "statistics": {"weight_norm": [[1, 2]]}}, "statistics.weight_norm"),
        ({"steps": [2], "sampled": [True]}, "statistics.grad_norm"),
        ({"steps": [2, 2]}, "steps[1]"),
        ({"steps": [2], "colour": 1}, "colour"),
    ):
        response = client.post(f"{run}/steps", json=content)
        assert response.status_code == 422
        assert path in [error["path"] for error in response.json()["errors"]]
    assert client.get(run).json() == before
    assert series(client, run, "loss")["first_step"] == [0, 1]


def test_only_blocks_of_the_current_generation_are_stored(
    client: TestClient, create_run: Any, database: Database
) -> None:
    """A block of another generation than the run's is refused; a block without a generation is of the current one."""
    run = create_run(client)
    with database.writing() as session:
        session.execute(update(Run).values(generation=2))
    for generation, status, code in ((1, 409, "stale_generation"), (3, 409, "unknown_generation"), (2, 200, None)):
        response = client.post(f"{run}/steps", json={**BLOCK, "generation": generation})
        assert (response.status_code, response.json().get("error_code")) == (status, code)
    assert client.post(f"{run}/steps", json=steps_of(2, 1)).json()["generation"] == 2


def test_layers_may_be_added_between_blocks(client: TestClient, create_run: Any) -> None:
    """A block from before layers were added is stored after it; the new layers are absent in it."""
    run = create_run(client, layers=1)
    client.post(f"{run}/steps", json={"steps": [0], "statistics": {"grad_norm": [[1]]}})
    client.patch(run, json={"append_layers": [{"name": "new1"}, {"name": "new2"}]})
    for steps, row, status in (([1], [2], 200), ([2], [3, 4], 422), ([2], [3, 4, 5], 200)):
        response = client.post(f"{run}/steps", json={"steps": steps, "statistics": {"grad_norm": [row]}})
        assert response.status_code == status, response.text
    means = [item["mean"] for item in series(client, run, "grad_norm")["series"]]
    assert means == [[1, 2, 3], [None, None, 4], [None, None, 5]]


def test_too_many_metric_names_are_refused(client: TestClient, create_run: Any) -> None:
    """A block is refused that brings the metric names of its run above 1,000."""
    run = create_run(client)
    for block in range(5):
        metrics = {f"m{block}.{index}": [1.0] for index in range(250)}
        response = client.post(f"{run}/steps", json={"steps": [block], "metrics": metrics})
        assert response.status_code == (200 if block < 4 else 422)
    assert "at most 1000" in response.json()["detail"]


def test_an_explosion_gives_one_alert(client: TestClient, create_run: Any) -> None:
    """The answer to the block that makes a run explode has an alert and the verdict; the next answer has no alert."""
    run = create_run(client)
    for step in range(40):
        client.post(f"{run}/steps", json={"steps": [step], "loss": [1.0], "statistics": {"grad_norm": [[1, 1]]}})
    block = {"steps": [40], "loss": ["NaN"], "statistics": {"grad_norm": [["NaN", "NaN"]]}}
    answer = client.post(f"{run}/steps", json=block).json()
    assert answer["verdict"] == "exploding"
    assert len(answer["alerts"]) == 1
    assert "xploding" in answer["alerts"][0]
    following = client.post(f"{run}/steps", json={**block, "steps": [41]}).json()
    assert (following["verdict"], following["alerts"]) == ("exploding", [])
    history = client.get(f"{run}/diagnosis/history").json()["items"]
    assert history[-1]["verdict"] == "exploding"
    assert history[-1]["step"] == 40
    assert client.get("/api/v1/runs?verdict=exploding").json()["items"][0]["id"] in run


@pytest.mark.slow
def test_single_steps_are_merged_into_few_chunks(client: TestClient, create_run: Any, database: Database) -> None:
    """Steps that are sent one by one are folded into a full chunk as soon as there are enough; no step is lost."""
    run = create_run(client)
    for step in range(150):
        assert client.post(f"{run}/steps", json=steps_of(step, 1)).status_code == 200
        lengths = chunk_lengths(database, run)
        full, short = divmod(step + 1, FULL_CHUNK_STEPS)
        assert lengths == [FULL_CHUNK_STEPS] * full + [1] * short
    assert series(client, run, "loss")["series"][0]["mean"] == [float(step) for step in range(150)]


def test_short_chunks_are_joined_when_they_are_read(client: TestClient, create_run: Any, database: Database) -> None:
    """Steps that were sent one by one are read as few chunks, whatever range is asked for."""
    run = create_run(client)
    client.post(f"{run}/steps", json=steps_of(0, FULL_CHUNK_STEPS))
    for step in range(FULL_CHUNK_STEPS, FULL_CHUNK_STEPS + 12):
        client.post(f"{run}/steps", json=steps_of(step, 1))
    run_id = UUID(run.rpartition("/")[2])
    with database.reading_rows() as connection:
        whole, tail = read_chunks(connection, run_id, 0, 10**6)
        (part,) = read_chunks(connection, run_id, FULL_CHUNK_STEPS + 3, FULL_CHUNK_STEPS + 6)
    assert whole.steps.tolist() == list(range(FULL_CHUNK_STEPS))
    assert tail.steps.tolist() == list(range(FULL_CHUNK_STEPS, FULL_CHUNK_STEPS + 12))
    assert tail.read_statistic("grad_norm")[1].tolist() == [step + 0.5 for step in tail.steps.tolist()]
    assert part.steps.tolist() == list(range(FULL_CHUNK_STEPS + 3, FULL_CHUNK_STEPS + 7))


def test_an_append_takes_two_statements(client: TestClient, create_run: Any, database: Database) -> None:
    """An append that follows another one of its process updates the run and adds a chunk, and reads nothing.

    Also a short block does, unless it completes a chunk: then the short chunks before it are removed.
    """
    run_id = UUID(create_run(client).rpartition("/")[2])
    facts, run_cache = FactsCache(), RunCache()
    statements: list[str] = []

    def append_and_count(first: int, count: int) -> list[str]:
        received = decode_block(msgspec.json.encode(steps_of(first, count)), JSON_MEDIA_TYPE, Settings().limits())
        statements.clear()
        with database.writing_rows(shares_commit=True) as connection:
            cached = append(connection, OPERATOR, facts, run_cache, run_id, received).cached
        assert cached is not None
        run_cache.add(cached)
        return [statement.split(maxsplit=1)[0] for statement in statements]

    event.listen(database.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    append_and_count(0, FULL_CHUNK_STEPS)
    assert append_and_count(FULL_CHUNK_STEPS, 1) == ["UPDATE", "INSERT"]
    assert append_and_count(FULL_CHUNK_STEPS + 1, 2) == ["UPDATE", "INSERT"]
    whole = append_and_count(FULL_CHUNK_STEPS + 3, FULL_CHUNK_STEPS)
    assert [name for name in whole if name != "BEGIN"][-2:] == ["DELETE", "INSERT"]


def test_full_blocks_are_written_once(client: TestClient, create_run: Any, database: Database) -> None:
    """Blocks as long as a full chunk become one chunk each."""
    run = create_run(client)
    for block in range(4):
        client.post(f"{run}/steps", json=steps_of(block * FULL_CHUNK_STEPS, FULL_CHUNK_STEPS))
    assert chunk_lengths(database, run) == [FULL_CHUNK_STEPS] * 4


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 70)), min_size=1, max_size=8))
def test_any_order_of_blocks_stores_each_step_once(
    sqlite_client: TestClient, create_run: Any, blocks: list[tuple[int, int]]
) -> None:
    """However blocks overlap, repeat or leave gaps, each step after the last one is stored once."""
    run = create_run(sqlite_client)
    expected: list[int] = []
    for first, count in blocks:
        answer = sqlite_client.post(f"{run}/steps", json=steps_of(first, count)).json()
        new = [step for step in range(first, first + count) if not expected or step > expected[-1]]
        assert (answer["accepted"], answer["ignored"]) == (len(new), count - len(new))
        expected += new
    answer = series(sqlite_client, run, "loss", "grad_norm", layer="layer1")
    assert answer["first_step"] == expected
    assert [item["mean"] for item in answer["series"]] == [[s + 0.5 for s in expected], [float(s) for s in expected]]


@pytest.mark.slow
def test_two_replicas_store_each_step_once(client: TestClient, create_run: Any, settings: Settings) -> None:
    """Two replicas that append overlapping blocks to one run at once store each step once and lose none."""
    run = create_run(client)
    total, answers = 60, []

    def write(replica: TestClient, sizes: list[int]) -> None:
        first = 0
        for size in itertools.cycle(sizes):
            if first >= total:
                return
            response = replica.post(f"{run}/steps", json=steps_of(first, size))
            assert response.status_code == 200, response.text
            answers.append(response.json())
            first += size

    with TestClient(create_app(settings)) as other:
        writers = [
            threading.Thread(target=write, args=(client, [1, 3])),
            threading.Thread(target=write, args=(other, [2, 4])),
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    stored = series(client, run, "loss")
    assert stored["first_step"] == list(range(len(stored["first_step"])))
    assert sum(answer["accepted"] for answer in answers) == len(stored["first_step"]) >= total
    assert client.get(run).json()["revision"] == 1 + sum(answer["accepted"] > 0 for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize("blocks_before", [0, 1])
def test_an_append_that_waited_continues_from_the_other_append(
    client: TestClient, create_run: Any, database: Database, settings: Settings, blocks_before: int
) -> None:
    """An append that waited for another replica's append continues from the diagnosis which that one stored."""
    run, alone = create_run(client), create_run(client)
    bodies = [{"steps": list(range(30 * i, 30 * i + 30)), "loss": [1.3**i] * 30} for i in range(blocks_before + 2)]
    for body in bodies:
        assert client.post(f"{alone}/steps", json=body).status_code == 200
    for body in bodies[:-2]:
        assert client.post(f"{run}/steps", json=body).status_code == 200
    answers = []
    with TestClient(create_app(settings)) as other:
        waiting = threading.Thread(target=lambda: answers.append(other.post(f"{run}/steps", json=bodies[-1])))
        with database.writing_rows() as connection:
            received = decode_block(msgspec.json.encode(bodies[-2]), JSON_MEDIA_TYPE, settings.limits())
            append(connection, OPERATOR, FactsCache(), RunCache(), UUID(run.rpartition("/")[2]), received)
            waiting.start()
            while waiting.is_alive() and not is_transaction_waiting(database):
                pass
        waiting.join()
    assert answers[0].status_code == 200, answers[0].text
    diagnoses = [client.get(f"{path}/diagnosis").json() | {"run_id": None} for path in (run, alone)]
    assert diagnoses[0] == diagnoses[1]
    assert diagnoses[0]["step"] == 30 * len(bodies) - 1


def test_appends_to_different_runs_run_in_parallel(client: TestClient, create_run: Any, settings: Settings) -> None:
    """Parallel appends to different runs store all their steps."""
    runs = [create_run(client) for _ in range(4)]

    def write(run: str) -> None:
        for block in range(10):
            assert client.post(f"{run}/steps", json=steps_of(block * 3, 3)).status_code == 200

    writers = [threading.Thread(target=write, args=(run,)) for run in runs]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    for run in runs:
        assert series(client, run, "loss")["first_step"] == list(range(30))


def test_a_failed_append_stores_nothing(
    client: TestClient, create_run: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the chunk cannot be stored, the run and its diagnosis do not change, and the answer is a 500 problem."""
    run = create_run(client)
    client.post(f"{run}/steps", json=steps_of(0, 2))
    before = client.get(run).json()

    def fail(*_arguments: object) -> bytes:
        raise RuntimeError("no more")

    with monkeypatch.context() as patch:
        patch.setattr("gradmedic_service.telemetry.chunk_writer.encode_chunk", fail)
        response = client.post(f"{run}/steps", json=steps_of(2, 2))
    assert (response.status_code, response.json()["error_code"]) == (500, "internal_error")
    assert "no more" not in response.text
    assert client.get(run).json() == before
    assert client.post(f"{run}/steps", json=steps_of(2, 2)).json()["accepted"] == 2
    with database.reading() as session:
        assert session.scalar(select(func.sum(TelemetryChunk.step_count))) == 4
