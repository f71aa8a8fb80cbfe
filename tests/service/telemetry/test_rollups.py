"""Pictures from rollups: what they show is what every single step says, on both databases."""

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
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and rows so short that a few hundred steps make several levels."""
    monkeypatch.setattr(chunk_writer, "FULL_CHUNK_STEPS", SMALL_CHUNK)
    monkeypatch.setattr(chunk_writer, "ROLLUP_FACTOR", SMALL_FACTOR)
    monkeypatch.setattr(series_reading, "ROLLUP_FACTOR", SMALL_FACTOR)


class Recorded:
    """A run, and what was sent to it."""

    def __init__(self, client: TestClient, run: str, layers: int, seed: int = 0) -> None:
        self.client, self.run, self.layers = client, run, layers
        self.random = np.random.default_rng(seed)
        self.steps: list[int] = []
        self.values: dict[tuple[str, str | None], list[Any]] = {}

    def append(self, steps: list[int]) -> None:
        """Send steps with every kind of value; a third of the steps carry no statistics."""
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
        """Compare an answer with a plain loop over what was sent; return how many buckets it has."""
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
            for one in answer["series"]:
                sent = [self.values[one["statistic"], one["layer"]][index] for index in inside]
                numbers = np.array([float(value) for value in sent if value is not None], dtype=np.float64)
                if one["layer"] is not None:
                    numbers = numbers.astype(np.float32).astype(np.float64)
                finite = numbers[np.isfinite(numbers)]
                assert (one["count"][bucket], one["nonfinite"][bucket]) == (
                    len(numbers),
                    len(numbers) - len(finite),
                )
                if len(finite):
                    assert (one["min"][bucket], one["max"][bucket]) == (finite.min(), finite.max())
                    assert one["mean"][bucket] == pytest.approx(finite.mean(), rel=1e-6, abs=1e-6)
                else:
                    assert one["min"][bucket] is one["mean"][bucket] is one["max"][bucket] is None
        assert covered == np.flatnonzero((steps >= from_step) & (steps <= last)).tolist()
        return len(answer["first_step"])


def levels(database: Database, run: str) -> list[int]:
    """How many rows each level has, level 1 first."""
    with database.reading() as session:
        query = select(TelemetryRollup.level).where(TelemetryRollup.run_id == UUID(run.rpartition("/")[2]))
        found = list(session.scalars(query))
    return [found.count(level) for level in range(1, max(found, default=0) + 1)]


@pytest.mark.slow
@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("size", [1, 3, 7, 300])
def test_pictures_are_exact_whatever_they_are_made_from(
    client: TestClient, create_run: Any, database: Database, size: int
) -> None:
    """Counts, minimum and maximum of every bucket are exact, means to a millionth, for any range and resolution."""
    recorded = Recorded(client, create_run(client, layers=2), 2)
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
@pytest.mark.usefixtures("_small")
def test_rewinding_takes_rollups_back(client: TestClient, create_run: Any, database: Database) -> None:
    """After a rewind no row speaks of dropped steps, and rows are made again as the run grows again."""
    recorded = Recorded(client, create_run(client, layers=2), 2)
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


@pytest.mark.usefixtures("_small")
def test_layers_and_series_may_come_later(client: TestClient, create_run: Any) -> None:
    """Layers and metrics that a run gains have no values before that, in rollups too."""
    run = create_run(client, layers=1)
    for step in range(100):
        if step == 50:
            client.patch(run, json={"append_layers": [{"name": "late"}]})
        rows = [[1.0, 2.0]] if step >= 50 else [[1.0]]
        metrics = {"accuracy": [0.5]} if step >= 70 else {}
        body = {"steps": [step], "statistics": {"grad_norm": rows}, "metrics": metrics}
        assert client.post(f"{run}/steps", json=body).status_code == 200
    answer = client.get(f"{run}/steps", params={"statistic": ["grad_norm", "accuracy"], "max_points": 2}).json()
    assert [sum(one["count"]) for one in answer["series"]] == [100, 50, 30]
    assert [one["mean"][-1] for one in answer["series"]] == [1.0, 2.0, 0.5]


@pytest.mark.slow
def test_a_long_run_is_read_from_few_rows(
    client: TestClient, create_run: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture of a long run opens rollups in place of chunks: all but those that are not rolled up yet."""
    run = create_run(client, layers=1)
    for start in range(0, 45_000, 5_000):
        steps = list(range(start, start + 5_000))
        rows = [[float(step)] for step in steps]
        assert client.post(f"{run}/steps", json={"steps": steps, "statistics": {"grad_norm": rows}}).status_code == 200
    assert levels(database, run) == [900 // ROLLUP_FACTOR, 900 // ROLLUP_FACTOR**2]
    opened: list[str] = []

    def counting(kind: str) -> Any:
        read = getattr(chunk_repository, kind)

        def counted(*arguments: Any) -> Any:
            for data in read(*arguments):
                opened.append(kind)
                yield data

        return counted

    for kind in ("read_chunks", "read_rollups"):
        monkeypatch.setattr(chunk_repository, kind, counting(kind))
    one = client.get(f"{run}/steps", params={"statistic": "grad_norm", "max_points": 40}).json()["series"][0]
    assert (one["min"][0], one["max"][-1], sum(one["count"])) == (0, 44_999, 45_000)
    assert opened.count("read_chunks") < ROLLUP_FACTOR
    assert opened.count("read_rollups") < 3 + ROLLUP_FACTOR


def test_long_blocks_become_chunks_of_bounded_length(client: TestClient, create_run: Any, database: Database) -> None:
    """A block of thousands of steps is stored as chunks that are full but not twice as long, numbered in order."""
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
    """Steps of one layer and one statistic."""
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
    """Numbers near the largest do not overflow when they are merged, at any level."""
    largest = float(np.finfo(np.float32).max)
    row = encode_rollup([bucket_of_block(block(50 * index, 50, largest)) for index in range(ROLLUP_FACTOR)])
    bucket = bucket_of_rollup(Rollup(row))
    assert (bucket.first_step, bucket.last_step) == (0, 50 * ROLLUP_FACTOR - 1)
    for one in (bucket.values, bucket.series["loss"]):
        assert one.low.ravel() == one.mean.ravel() == one.high.ravel() == [largest]
        assert (int(one.count.item()), int(one.nonfinite.item())) == (50 * ROLLUP_FACTOR, 0)


def test_damaged_rows_are_refused() -> None:
    """A row that is cut short or of another version is an error, not a wrong picture."""
    row = encode_rollup([bucket_of_block(block(0, 50, 1.0))])
    for data in (b"", row[:-1], row + b"x", bytes([9]) + row[1:]):
        with pytest.raises(CorruptChunk):
            Rollup(data)


def test_every_level_is_a_multiple(client: TestClient, create_run: Any, database: Database) -> None:
    """However steps arrive, a row is made as soon as its parts are there, and only then."""
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
