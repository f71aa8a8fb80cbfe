"""Decoded rollups: a picture is the same with and without them, and their memory is bounded."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from starlette.testclient import TestClient

from gradmedic_service.telemetry import chunk_writer, rollups, series_reading
from gradmedic_service.telemetry.rollup_cache import MAX_ENTRY_BYTES, DecodedPart, RollupCache, RunKey, decode_part
from gradmedic_service.telemetry.rollups import Aggregates, Bucket, Rollup, encode_rollup

KEY = RunKey(UUID(int=1), datetime(2026, 1, 1, tzinfo=UTC), 0)


def part(size: int = 1000) -> DecodedPart:
    """Make a part of a size."""
    steps = np.zeros(1, dtype=np.int64)
    return DecodedPart(steps, steps, 1, None, size)


def rollup(layers: int, nonfinite: int = 0) -> Rollup:
    """Make a rollup of three buckets of ten values, in which some of the first layer are NaN."""
    generator = np.random.default_rng(0)
    count = np.full((layers, 1), 10, dtype=np.uint32)
    bad = np.zeros((1, layers, 1), dtype=np.uint32)
    bad[0, 0] = nonfinite
    numbers = np.sort(generator.random((3, 1, layers, 1)).astype(np.float32), axis=0)
    values = Aggregates(numbers[0], numbers[1], numbers[2], count, bad, np.zeros_like(bad))
    return Rollup(encode_rollup([Bucket(first, first + 9, ("grad_norm",), values, {}) for first in (0, 10, 20)]))


def test_the_oldest_parts_leave_a_full_cache() -> None:
    """The cache never holds more than its bytes; what was read last stays."""
    cache = RollupCache(max_bytes=3000)
    for first_step in (0, 1, 2):
        cache.add(KEY, 1, first_step, "loss", part())
    assert cache.find(KEY, 1, 0, ("loss",)) is not None
    cache.add(KEY, 1, 3, "loss", part())
    assert [cache.find(KEY, 1, first, ("loss",)) is not None for first in range(4)] == [True, False, True, True]
    assert cache.size == 3000
    cache.add(KEY, 1, 3, "loss", part(500))
    assert cache.size == 2500


def test_a_part_that_is_too_large_is_not_kept() -> None:
    """A rollup of very many layers does not drive out all others."""
    cache = RollupCache()
    cache.add(KEY, 1, 0, "grad_norm", part(MAX_ENTRY_BYTES + 1))
    assert cache.size == 0


def test_all_names_must_be_known() -> None:
    """A rollup of which one series is missing is decoded again; another level, generation or run is another rollup."""
    cache = RollupCache()
    cache.add(KEY, 1, 0, "loss", part())
    assert cache.find(KEY, 1, 0, ("loss",)) is not None
    assert cache.find(KEY, 1, 0, ("loss", "grad_norm")) is None
    assert cache.find(KEY, 2, 0, ("loss",)) is None
    for other in (
        RunKey(KEY.run_id, KEY.created_at, 1),
        RunKey(UUID(int=2), KEY.created_at, 0),
        RunKey(KEY.run_id, datetime(2026, 1, 2, tzinfo=UTC), 0),
    ):
        assert cache.find(other, 1, 0, ("loss",)) is None


@pytest.mark.parametrize("nonfinite", [0, 2])
def test_counts_that_are_equal_take_the_memory_of_one(nonfinite: int) -> None:
    """A decoded part has the numbers of its rollup; its size counts arrays of equal counts as one number."""
    stored = rollup(100, nonfinite)
    decoded, expected = decode_part(stored, "grad_norm"), stored.read_statistic("grad_norm")
    assert decoded.aggregates is not None
    for name in rollups.AGGREGATE_NAMES:
        np.testing.assert_array_equal(getattr(decoded.aggregates, name), getattr(expected, name))
    arrays = 4 if nonfinite else 3
    assert 0 <= decoded.size - arrays * expected.low.nbytes <= 1100


@pytest.mark.parametrize("rows", [slice(1, 3), np.array([2, 0])])
def test_layers_are_selected(rows: Any) -> None:
    """A part can be cut to some layers; of a part that is too large for the cache they are copies."""
    for layers in (4, 20_000):
        decoded = decode_part(rollup(layers, 1), "grad_norm")
        chosen = decoded.of_layers(rows)
        assert decoded.aggregates is not None
        assert chosen.aggregates is not None
        np.testing.assert_array_equal(chosen.aggregates.low, decoded.aggregates.low[rows])
        if layers > 4:
            assert not np.shares_memory(chosen.aggregates.low, decoded.aggregates.low)


def test_a_series_that_a_rollup_lacks_is_known_to_be_missing() -> None:
    """A metric that came later is not looked for again in the rollups before it."""
    assert decode_part(rollup(2), "val_accuracy").aggregates is None


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make chunks and rollups short, and return the names of the parts that are decoded from now on."""
    monkeypatch.setattr(chunk_writer, "FULL_CHUNK_STEPS", 3)
    for module in (chunk_writer, series_reading):
        monkeypatch.setattr(module, "ROLLUP_FACTOR", 2)
    names: list[str] = []

    def decode(rollup: Rollup, name: str) -> DecodedPart:
        names.append(name)
        return decode_part(rollup, name)

    monkeypatch.setattr(series_reading, "decode_part", decode)
    return names


def append(client: TestClient, run: str, first: int, last: int, value: float) -> None:
    """Append blocks of three steps, with one value everywhere."""
    for step in range(first, last, 3):
        steps = list(range(step, step + 3))
        body = {"steps": steps, "loss": [value] * 3, "statistics": {"grad_norm": [[value, value]] * 3}}
        assert client.post(f"{run}/steps", json=body).status_code == 200


def read(client: TestClient, run: str, *names: str) -> set[float]:
    """Return every mean of a picture."""
    answer = client.get(f"{run}/steps", params={"statistic": names, "max_points": 3}).json()
    return {mean for series in answer["series"] for mean in series["mean"]}


def test_a_picture_decodes_only_what_is_new(client: TestClient, create_run: Any, decoded: list[str]) -> None:
    """The second reading decodes no rollup, and after further steps only those that were written since."""
    run = create_run(client, layers=2)
    append(client, run, 0, 96, 1.0)
    assert read(client, run, "grad_norm", "loss") == {1.0}
    first = len(decoded)
    assert first >= 2
    decoded.clear()
    assert read(client, run, "loss", "grad_norm") == {1.0}
    assert read(client, run, "grad_norm") == {1.0}
    assert decoded == []
    append(client, run, 96, 108, 1.0)
    assert read(client, run, "grad_norm") == {1.0}
    assert 0 < len(decoded) < first


def test_dropped_steps_are_never_read_again(client: TestClient, create_run: Any, decoded: list[str]) -> None:
    """After a rewind, and after a run was deleted and created again with its id, no old number is in a picture."""
    run = create_run(client, layers=2)
    append(client, run, 0, 96, 1.0)
    assert read(client, run, "grad_norm") == {1.0}
    assert client.post(f"{run}/rewind", json={"step": -1, "generation": 0}).status_code == 200
    append(client, run, 0, 96, 2.0)
    assert read(client, run, "grad_norm") == {2.0}
    stored = client.get(run).json()
    assert client.delete(run).status_code == 204
    layers = [{"name": "layer0"}, {"name": "layer1"}]
    again = {"id": stored["id"], "project": stored["project"], "layers": layers}
    assert client.post("/api/v1/runs", json=again).status_code == 201
    append(client, run, 0, 96, 3.0)
    assert read(client, run, "grad_norm") == {3.0}
    assert decoded
