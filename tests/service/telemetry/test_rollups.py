"""Series that are read from rollups equal those of the single steps, on both databases."""

from __future__ import annotations

import itertools
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from gradmedic_diagnosis import Block, StepSeries
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import TelemetryChunk, TelemetryRollup
from gradmedic_service.telemetry import chunk_repository, chunk_writer, series_reading
from gradmedic_service.telemetry.codec import CorruptChunk
from gradmedic_service.telemetry.rollups import ROLLUP_FACTOR, Rollup, bucket_of_block, bucket_of_rollup, encode_rollup

SMALL_CHUNK, SMALL_FACTOR = 3, 4


@pytest.fixture
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks and rollups so short that a few hundred steps have several levels."""
    monkeypatch.setattr(chunk_writer, "FULL_CHUNK_STEPS", SMALL_CHUNK)
    monkeypatch.setattr(chunk_writer, "ROLLUP_FACTOR", SMALL_FACTOR)
    monkeypatch.setattr(series_reading, "ROLLUP_FACTOR", SMALL_FACTOR)


class RecordedRun:
    """A run and the values that were sent to it."""

    def __init__(self, client: TestClient, run: str, layers: int, seed: int = 0) -> None:
        self.client, self.run, self.layers = client, run, layers
        self.random = np.random.default_rng(seed)
        self.steps: list[int] = []
        self.values: dict[tuple[str, str | None], list[Any]] = {}

    def append(self, steps: list[int]) -> None:
        """Send steps with every kind of value; a third of the steps have no statistics."""
        sampled = [bool(self.random.random() < 0.7) for _ in steps]
        rows: list[list[Any]] = []
        choices = np.array([None, "NaN", "Infinity", "-Infinity", *self.random.normal(size=20).round(4)], dtype=object)
        losses = [self.random.choice(choices) for _ in steps]
        choices = np.array([None, "NaN", "Infinity", *self.random.random(size=20).round(4)], dtype=object)
        for is_sampled in sampled:
            row = [self.random.choice(choices) if is_sampled else None for _ in range(self.layers)]
            for layer, value in enumerate(row):
                self.values.setdefault(("grad_norm", f"layer{layer}"), []).append(value)
            if is_sampled:
                rows.append(row)
        self.steps += steps
        self.values.setdefault(("loss", None), []).extend(losses)
        body = {"steps": steps, "sampled": sampled, "loss": losses, "statistics": {"grad_norm": rows}}
        if not rows:
            body.pop("statistics")
        response = self.client.post(f"{self.run}/steps", json=body)
        assert response.status_code == 200, response.text

    def check(self, max_points: int, from_step: int = 0, to_step: int | None = None) -> int:
        """Check an answer against a plain loop over what was sent; return its number of buckets."""
        query: dict[str, Any] = {"statistic": ["grad_norm", "loss"], "max_points": max_points, "from_step": from_step}
        if to_step is not None:
            query["to_step"] = to_step
        response = self.client.get(f"{self.run}/steps", params=query)
        assert response.status_code == 200, response.text
        answer = response.json()
        assert len(answer["first_step"]) <= max_points
        steps = np.array(self.steps)
        last = steps[-1] if to_step is None else to_step
        covered: list[int] = []
        for bucket, (first, end) in enumerate(zip(answer["first_step"], answer["last_step"], strict=True)):
            inside = np.flatnonzero((steps >= first) & (steps <= end))
            assert (steps[inside[0]], steps[inside[-1]]) == (first, end)
            covered += inside.tolist()
            for series in answer["series"]:
                sent = [self.values[series["statistic"], series["layer"]][index] for index in inside]
                numbers = np.array([float(value) for value in sent if value is not None], dtype=np.float64)
                if series["layer"] is not None:
                    numbers = numbers.astype(np.float32).astype(np.float64)
                finite = numbers[np.isfinite(numbers)]
                assert (series["count"][bucket], series["nonfinite"][bucket]) == (
                    len(numbers),
                    len(numbers) - len(finite),
                )
                if len(finite):
                    assert (series["min"][bucket], series["max"][bucket]) == (finite.min(), finite.max())
                    assert series["mean"][bucket] == pytest.approx(finite.mean(), rel=1e-6, abs=1e-6)
                else:
                    assert series["min"][bucket] is series["mean"][bucket] is series["max"][bucket] is None
        assert covered == np.flatnonzero((steps >= from_step) & (steps <= last)).tolist()
        return len(answer["first_step"])


def levels(database: Database, run: str) -> list[int]:
    """Return the number of rollups of each level, level 1 first."""
    with database.reading() as session:
        query = select(TelemetryRollup.level).where(TelemetryRollup.run_id == UUID(run.rpartition("/")[2]))
        found = list(session.scalars(query))
    return [found.count(level) for level in range(1, max(found, default=0) + 1)]


@pytest.mark.slow
@pytest.mark.usefixtures("_short_chunks")
@pytest.mark.parametrize("size", [1, 3, 7, 300])
def test_buckets_are_exact_at_every_resolution(
    client: TestClient, create_run: Any, database: Database, size: int
) -> None:
    """Counts, minimum and maximum of every bucket are exact, means to 1e-6, for any range and resolution."""
    recorded = RecordedRun(client, create_run(client, layers=2), 2)
    steps = sorted(recorded.random.choice(900, size=300, replace=False).tolist())
    for start in range(0, len(steps), size):
        recorded.append(steps[start : start + size])
    found = levels(database, recorded.run)
    assert len(found) >= 2
    assert found[0] >= SMALL_FACTOR * found[1]
    for max_points in (1, 2, 5, 16, 40, 100, 1000):
        recorded.check(max_points)
    assert recorded.check(1000) == 300
    for from_step, to_step in ((100, 800), (1, 2), (333, 334), (500, 5000), (0, 450)):
        for max_points in (1, 7, 50):
            recorded.check(max_points, from_step, to_step)


@pytest.mark.slow
@pytest.mark.usefixtures("_short_chunks")
def test_rewinding_removes_rollups(client: TestClient, create_run: Any, database: Database) -> None:
    """After a rewind no rollup holds dropped steps; new rollups are written as the run grows again."""
    recorded = RecordedRun(client, create_run(client, layers=2), 2)
    for start in range(0, 240, 6):
        recorded.append(list(range(start, start + 6)))
    before = levels(database, recorded.run)
    for step in (201, 100, 13):
        generation = client.get(recorded.run).json()["generation"]
        assert client.post(f"{recorded.run}/rewind", json={"step": step, "generation": generation}).status_code == 200
        recorded.steps = recorded.steps[: step + 1]
        recorded.values = {name: values[: step + 1] for name, values in recorded.values.items()}
        for max_points in (1, 10, 1000):
            recorded.check(max_points)
        for start in range(step + 1, 240, 6):
            recorded.append(list(range(start, min(240, start + 6))))
        for max_points in (1, 10, 1000):
            recorded.check(max_points)
    assert len(levels(database, recorded.run)) == len(before)


@pytest.mark.usefixtures("_short_chunks")
def test_added_layers_and_metrics_have_no_values_before(client: TestClient, create_run: Any) -> None:
    """Layers and metrics that are added to a run have no values before that, also in rollups."""
    run = create_run(client, layers=1)
    for step in range(100):
        if step == 50:
            client.patch(run, json={"append_layers": [{"name": "late"}]})
        rows = [[1.0, 2.0]] if step >= 50 else [[1.0]]
        metrics = {"accuracy": [0.5]} if step >= 70 else {}
        body = {"steps": [step], "statistics": {"grad_norm": rows}, "metrics": metrics}
        assert client.post(f"{run}/steps", json=body).status_code == 200
    answer = client.get(f"{run}/steps", params={"statistic": ["grad_norm", "accuracy"], "max_points": 2}).json()
    assert [sum(series["count"]) for series in answer["series"]] == [100, 50, 30]
    assert [series["mean"][-1] for series in answer["series"]] == [1.0, 2.0, 0.5]


@pytest.mark.slow
def test_a_long_run_is_read_from_rollups(
    client: TestClient, create_run: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Series of a long run are read from rollups, and from chunks only where there is no rollup yet."""
    run = create_run(client, layers=1)
    for start in range(0, 45_000, 5_000):
        steps = list(range(start, start + 5_000))
        rows = [[float(step)] for step in steps]
        assert client.post(f"{run}/steps", json={"steps": steps, "statistics": {"grad_norm": rows}}).status_code == 200
    assert levels(database, run) == [900 // ROLLUP_FACTOR, 900 // ROLLUP_FACTOR**2]
    opened: list[str] = []

    def count_calls(name: str) -> Any:
        read = getattr(chunk_repository, name)

        def counted(*arguments: Any) -> Any:
            for data in read(*arguments):
                opened.append(name)
                yield data

        return counted

    for name in ("read_chunks", "read_rollups"):
        monkeypatch.setattr(chunk_repository, name, count_calls(name))
    series = client.get(f"{run}/steps", params={"statistic": "grad_norm", "max_points": 40}).json()["series"][0]
    assert (series["min"][0], series["max"][-1], sum(series["count"])) == (0, 44_999, 45_000)
    assert opened.count("read_chunks") < ROLLUP_FACTOR
    assert opened.count("read_rollups") < 3 + ROLLUP_FACTOR


def test_long_blocks_become_chunks_of_bounded_length(client: TestClient, create_run: Any, database: Database) -> None:
    """A long block is stored as chunks that are full but less than twice as long, with positions in order."""
    run = create_run(client, layers=1)
    for steps in (list(range(30)), list(range(30, 1777))):
        rows = [[1.0] for _ in steps]
        assert client.post(f"{run}/steps", json={"steps": steps, "statistics": {"grad_norm": rows}}).status_code == 200
    with database.reading() as session:
        query = select(TelemetryChunk.step_count, TelemetryChunk.position).order_by(TelemetryChunk.first_step)
        rows_found = session.execute(query).all()
    assert sum(count for count, _ in rows_found) == 1777
    assert all(chunk_writer.FULL_CHUNK_STEPS <= count < 2 * chunk_writer.FULL_CHUNK_STEPS for count, _ in rows_found)
    assert [position for _, position in rows_found] == list(range(len(rows_found)))


def block(first: int, count: int, value: float) -> Block:
    """Return a block of one layer and one statistic."""
    every = np.ones(count, dtype=np.bool_)
    return Block(
        steps=np.arange(first, first + count),
        sampled=every,
        skipped=~every,
        statistics=("grad_norm",),
        values=np.full((count, 1, 1), value, dtype=np.float32),
        present=np.ones((count, 1), dtype=np.bool_),
        series={"loss": StepSeries(np.full(count, value), every)},
    )


def test_the_largest_numbers_have_a_mean() -> None:
    """Merging numbers near the largest float32 does not overflow, at any level."""
    largest = float(np.finfo(np.float32).max)
    row = encode_rollup([bucket_of_block(block(50 * index, 50, largest)) for index in range(ROLLUP_FACTOR)])
    bucket = bucket_of_rollup(Rollup(row))
    assert (bucket.first_step, bucket.last_step) == (0, 50 * ROLLUP_FACTOR - 1)
    for aggregates in (bucket.values, bucket.series["loss"]):
        assert aggregates.low.ravel() == aggregates.mean.ravel() == aggregates.high.ravel() == [largest]
        assert (int(aggregates.count.item()), int(aggregates.nonfinite.item())) == (50 * ROLLUP_FACTOR, 0)


def test_damaged_rollups_are_refused() -> None:
    """A rollup that is truncated, too long or of another version raises CorruptChunk."""
    row = encode_rollup([bucket_of_block(block(0, 50, 1.0))])
    for data in (b"", row[:-1], row + b"x", bytes([9]) + row[1:]):
        with pytest.raises(CorruptChunk):
            Rollup(data)


def test_a_rollup_is_written_when_its_rows_are_there(client: TestClient, create_run: Any, database: Database) -> None:
    """However steps arrive, a rollup is written as soon as all its rows are there."""
    run = create_run(client, layers=1)
    chunks = 0
    for first, count in itertools.pairwise(itertools.accumulate([0, 60, 700, 50, 50, 3000, 50])):
        steps = list(range(first, count))
        rows = [[1.0] for _ in steps]
        assert client.post(f"{run}/steps", json={"steps": steps, "statistics": {"grad_norm": rows}}).status_code == 200
        with database.reading() as session:
            chunks = len(session.scalars(select(TelemetryChunk.position)).all())
        assert levels(database, run)[:1] == ([chunks // ROLLUP_FACTOR] if chunks >= ROLLUP_FACTOR else [])
    assert chunks > 4 * ROLLUP_FACTOR
